"""A run on disk: everything that is needed to go on as if it had never stopped.

Start at `store.py`. Knows no model and no trainer.
"""
