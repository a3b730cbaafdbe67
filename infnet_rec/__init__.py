"""infnet_rec: distributed training of INFNet, the task-aware ranking network, on TorchRec."""

__version__ = "0.1.0"
