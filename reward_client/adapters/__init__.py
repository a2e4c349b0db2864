"""Reward functions in the shapes that trainers call, one module per trainer, `plain` for those that call a plain function. None imports its trainer."""
