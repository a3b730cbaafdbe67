"""torchrun with an exit code that a scheduler understands: `python -m infnet_rec.shard.torchrun`, same arguments.

torchrun itself ends with a traceback and code 1 when it or its ranks were asked to stop, so a preempted run looks like
a broken one; and it would start ranks again that said in one line what is wrong, to hear it again. Ranks that it starts
again find the addresses of those that died in the store that the launchers share, and call them in vain.
"""

import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api
from torch.distributed.run import main

from infnet_rec.faults import TRY_AGAIN

# A fault and a refusal: ranks that are started again only say it again.
FINAL = (2, 3)


class Agent(LocalElasticAgent):
    """torchrun's, which gives up its restarts where they cannot help."""

    # torch's is wrapped in a way that has no type.
    def _monitor_workers(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, worker_group: WorkerGroup
    ) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]
        if any(failure.exitcode in FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def torchrun(arguments: Sequence[str]) -> int:
    """Runs it; the exit code is `TRY_AGAIN` where a signal ended the run and it can be continued."""
    api.LocalElasticAgent = Agent
    # A store of their own for every start of the ranks.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        main(list(arguments))
    except SignalException:
        return TRY_AGAIN
    except ChildFailedError as error:
        # The first to end is who decided it; the agent may have ended the others with a signal.
        code = error.get_first_failure()[1].exitcode
        if code in (TRY_AGAIN, *FINAL):
            return code
        raise
    return 0


if __name__ == "__main__":
    sys.exit(torchrun(sys.argv[1:]))
