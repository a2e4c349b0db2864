"""vLLM's pooling server: classify, pooling, embeddings, score, rerank, tokenize. SGLang shares most of its paths."""
