"""infnet_rec: distributed training of INFNet, the task-aware ranking network, on TorchRec."""

import logging

__version__ = "0.1.0"

# fbgemm 1.6 and 1.7 do not know the torch that they are built for, and say so once for each of their libraries while
# they are imported. `infnet-rec doctor` knows.
logging.getLogger().addFilter(lambda record: "_fbgemm_torch_compat_table has no entry" not in str(record.msg))
