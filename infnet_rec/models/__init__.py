"""Plain modules of one process: schema to embeddings, embeddings to tokens, tokens to logits.

Start at `ranking_model.py`; `registry.py` maps names to builders.
"""
