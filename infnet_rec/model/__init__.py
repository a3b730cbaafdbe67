"""Plain modules of one process: schema to embeddings, embeddings to tokens, tokens to logits."""
