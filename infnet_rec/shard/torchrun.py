"""torchrun with an exit code that a scheduler understands: `python -m infnet_rec.shard.torchrun`, same arguments.

torchrun itself ends with a traceback and code 1 when it or its ranks were asked to stop, so a preempted run looks like
a broken one; and it would start ranks again that said in one line what is wrong, to hear it again. Ranks that it starts
again find the addresses of those that died in the store that the launchers share, and call them in vain. And where one
rank fails, it shows a table of all that noticed; here the first error is said once, before the others are ended.
"""

import logging
import os
import socket
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api
from torch.distributed.run import main

from infnet_rec.faults import TRY_AGAIN
from infnet_rec.shard.first_error import Cause, End, describe, first_of, read_end
from infnet_rec.shard.last_words import SPOKEN_FOR

# A fault and a refusal: ranks that are started again only say it again.
FINAL = (2, 3)
# What they have to say of ranks that end is said here.
TALKATIVE = ("api", "errors.error_handler")


class Agent(LocalElasticAgent):
    """torchrun's, which gives up its restarts where they cannot help, and says which rank failed first.

    Attributes:
        first: the end that the others followed, at the last failure of this process's ranks.
    """

    first: End | None = None

    # torch's is wrapped in a way that has no type.
    def _monitor_workers(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, worker_group: WorkerGroup
    ) -> RunResult:
        before = self._ends(worker_group)
        first = first_of(before) if any(end.code not in (None, 0) for end in before) else None
        # Said at once: those that hang in a collective are waited for, for up to half a minute, before they are killed.
        said = first is not None and first.cause <= Cause.SAID_WHY
        if first is not None and said:
            self._say(first)
        result: RunResult = super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]
        if not result.failures:
            return result
        lived = [end.rank for end in before if end.code is None] if first is not None else []
        after = self._ends(worker_group, told_to_end=lived)
        Agent.first = next(end for end in after if end.rank == first.rank) if first and said else first_of(after)
        if not said and all(end.code != TRY_AGAIN for end in after):
            self._say(Agent.first)
        if any(failure.exitcode in FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        if self._remaining_restarts:
            left = f"restarts left: {self._remaining_restarts - 1}"
            print(f"infnet-rec: the ranks are started again ({left})", file=sys.stderr, flush=True)
        return result

    def _ends(self, worker_group: WorkerGroup, *, told_to_end: Collection[int] = ()) -> list[End]:
        """What became of this machine's ranks."""
        context: Any = self._pcontext
        codes = {i: handler.proc.poll() for i, handler in context.subprocess_handlers.items()}
        files = {i: Path(file) for i, file in context.error_files.items()}
        ranks = {i: worker.global_rank for i, worker in enumerate(worker_group.workers)}
        return [read_end(ranks[i], codes[i], files[i], was_told_to=ranks[i] in told_to_end) for i in ranks]

    def _say(self, end: End) -> None:
        elsewhere = (self._worker_group.group_world_size or 1) > 1
        # The bar of a rank that was killed still stands on a terminal's last line.
        start = "\n" if sys.stderr.isatty() else ""
        text = describe(end, socket.gethostname(), others_elsewhere=elsewhere)
        print(f"{start}{text}", file=sys.stderr, flush=True)


def torchrun(arguments: Sequence[str]) -> int:
    """Runs it; the exit code is `TRY_AGAIN` where a signal ended the run and it can be continued."""
    api.LocalElasticAgent = Agent
    # A store of their own for every start of the ranks.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[SPOKEN_FOR] = "1"
    if "LOGLEVEL" not in os.environ:
        for name in TALKATIVE:
            logging.getLogger(f"torch.distributed.elastic.multiprocessing.{name}").setLevel(logging.CRITICAL)
    try:
        main(list(arguments))
    except SignalException:
        return TRY_AGAIN
    except ChildFailedError as error:
        # The first to end is who decided it; the agent may have ended the others with a signal.
        code = Agent.first.code if Agent.first else error.get_first_failure()[1].exitcode
        return code if code in (TRY_AGAIN, *FINAL) else 1
    return 0


if __name__ == "__main__":
    sys.exit(torchrun(sys.argv[1:]))
