"""torchrun with an exit code that a scheduler understands: `python -m infnet_rec.shard.torchrun`, same arguments.

torchrun itself ends with a traceback and code 1 when it or its ranks were asked to stop, so a preempted run looks like
a broken one.
"""

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from infnet_rec.faults import TRY_AGAIN


def torchrun(arguments: Sequence[str]) -> int:
    """Runs it; the exit code is `TRY_AGAIN` where a signal ended the run and it can be continued."""
    try:
        main(list(arguments))
    except SignalException:
        return TRY_AGAIN
    except ChildFailedError as error:
        # The first to end is who decided it; the agent may have ended the others with a signal.
        if error.get_first_failure()[1].exitcode == TRY_AGAIN:
            return TRY_AGAIN
        raise
    return 0


if __name__ == "__main__":
    sys.exit(torchrun(sys.argv[1:]))
