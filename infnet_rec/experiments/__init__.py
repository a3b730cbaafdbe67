"""Grids of runs, their results and reports.

Start at `runner.py`. May import the trainer and below.
"""
