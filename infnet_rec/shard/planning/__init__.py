"""Where tables go, and what that costs: planned in seconds, without a process group, a GPU or data.

`demand.py` says what goes in, `search.py` what to call, `planned.py` what comes out.
"""
