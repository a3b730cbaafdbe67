"""What a trained model attends to, and what it is made of.

Start at `attention.py`. May import every room but `cli`.
"""
