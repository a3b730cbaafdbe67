"""What a raw value means: kinds of columns, numbers, times, predicates, formats of text files.

Start at `values.py`.
"""
