"""A recipe for files that nobody has described yet.

Start at `sniffer.py`.
"""
