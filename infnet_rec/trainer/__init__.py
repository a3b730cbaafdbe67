"""Trains, evaluates, stops and goes on.

Start at `train.py`, then `loop.py`. May import everything but experiments, benchmarks, analysis and `cli`.
"""
