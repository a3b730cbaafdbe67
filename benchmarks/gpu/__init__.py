"""Everything that only a GPU can prove, by one command: `python -m benchmarks.gpu`.

Start in `__main__.py`, which runs the parts, and in `records.py`, which says what a part writes. Every part is a module
with a function `run(settings, write)`, runs as a process of its own under a time limit, and adds lines to one
`gpu.jsonl` as soon as it knows something, so that a machine that is taken away still leaves what was found. `pack.py`
makes the folder of libraries for a machine that reaches no package index.

Nothing on this way imports duckdb, optuna, torchx or torchmetrics.
"""
