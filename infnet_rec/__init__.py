"""infnet_rec: distributed training of INFNet, the task-aware ranking network, on TorchRec.

Start at `cli` with a verb; its room is named there. `trainer/loop.py` is the training loop, `data/store.py` what it
reads, `models/infnet/model.py` what it trains. Imports run one way, as `pyproject.toml` says.
"""

import logging

__version__ = "0.1.0"

# fbgemm 1.6 and 1.7 do not know the torch that they are built for, and say so once for each of their libraries while
# they are imported. `infnet-rec doctor` knows.
logging.getLogger().addFilter(lambda record: "_fbgemm_torch_compat_table has no entry" not in str(record.msg))
