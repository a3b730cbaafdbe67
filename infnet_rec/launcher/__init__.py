"""One description of a job and all its renderings, and the agent that runs a node's ranks.

Start at `job.py`. Imports no torch to render.
"""
