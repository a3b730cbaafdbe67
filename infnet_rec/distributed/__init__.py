"""The room that speaks TorchRec distributed: process group, sharded model, optimizers.

Start at `parallelize.py`.
"""
