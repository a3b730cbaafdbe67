"""Where tables go, and what that costs: planned in seconds, without a process group, a GPU or a store.

Start at `verb.py`; `search/` decides.
"""
