"""What is in a store: counts, checks, single examples, pictures.

Start at `stats.py`.
"""
