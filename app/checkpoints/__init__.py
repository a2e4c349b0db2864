"""Everything between a checkpoint directory and a model that is ready to score. Knows no batches and no HTTP."""
