"""What a person reads of a plan: its facts, text, picture, what would help, and how two plans differ.

Start at `facts.py`.
"""
