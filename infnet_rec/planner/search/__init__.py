"""Candidates of every table, and the search among them.

Start at `search.py`.
"""
