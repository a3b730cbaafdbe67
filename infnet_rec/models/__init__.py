"""Plain modules of one process: schema to embeddings, embeddings to tokens, tokens to logits.

Start at `ranking_model.py`; `registry.py` says which tower a section of the configuration makes.
"""
