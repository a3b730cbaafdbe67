"""Where tables go, and what that costs: planned in seconds, without a process group, a GPU or a store.

Start at `run_plan.py`: `planned_run` is what the verb, the check and the training call. `search/` decides, `report/`
tells people. It imports what is below it (distributed, models, data, config), and nothing that trains.
"""
