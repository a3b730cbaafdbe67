"""Is the installation sound, do the ranks agree?

Start at `doctor.py`. May import the planner and below.
"""
