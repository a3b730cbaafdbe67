"""From raw files to batches.

Start at `store.py` (what is on disk) and `loader.py` (what a batch is made of); `ingest/` builds stores, `inspect/`
looks into them.
"""
