"""Raw files to a store.

Start at `build.py`. May import the rest of `data`, `config` and below.
"""
