"""What is measured, how, and what came of it; programs of the repository, not of the package.

Start at a program's own docstring: what it measures, how it is started, and which file of `results` it writes.
"""
