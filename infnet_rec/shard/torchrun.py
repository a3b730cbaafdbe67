"""torchrun with an exit code that a scheduler understands: `python -m infnet_rec.shard.torchrun`, same arguments.

torchrun itself ends with a traceback and code 1 when it or its ranks were asked to stop, so a preempted run looks like
a broken one; and it would start ranks again that said in one line what is wrong, to hear it again. Ranks that it starts
again find the addresses of those that died in the store that the launchers share, and call them in vain. Where ranks of
one node end for good, the launchers of the others would go on waiting for them.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.launcher import api
from torch.distributed.run import parse_args, parse_min_max_nnodes, run

from infnet_rec.faults import TRY_AGAIN, Fault
from infnet_rec.shard.meeting import look_at_meeting

# A fault and a refusal: ranks that are started again only say it again.
FINAL = (2, 3)
VERDICT = "verdict"  # in the store of the launchers
LISTEN_EVERY_S = 1.0
# The launcher that keeps the store stays so long after it has said why it ends.
OTHERS_LISTEN_S = 3 * LISTEN_EVERY_S


class Ended(Exception):
    """The job is over for this node for a reason that lies elsewhere; the code is for the shell."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Agent(LocalElasticAgent):
    """torchrun's, which gives up its restarts where they cannot help, and tells the other nodes."""

    is_elastic = False
    _codes: frozenset[int] = frozenset()
    _listened_at = 0.0

    # torch's are wrapped in a way that has no type.
    def run(self, role: str = "default") -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        try:
            return super().run(role)  # pyright: ignore[reportCallIssue]
        except RendezvousError as error:
            self._lost(error)

    def _monitor_workers(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, worker_group: WorkerGroup
    ) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]
        if result.state == WorkerState.HEALTHY:
            self._listen()
        if result.state not in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            return result
        self._codes = frozenset(failure.exitcode for failure in result.failures.values())
        # Ranks that a signal ended have saved. The nodes that are left go on where they may be fewer.
        final = FINAL if self.is_elastic else (*FINAL, TRY_AGAIN)
        if self._codes.intersection(final):
            self._remaining_restarts = 0
        if self._remaining_restarts == 0:
            code = next((code for code in final if code in self._codes), 1)
            self._tell(json.dumps({"host": socket.gethostname(), "code": code}))
        return result

    def _tell(self, verdict: str) -> None:
        """Says why the job ends, for launchers whose ranks may still be waiting for ours."""
        if self._worker_group.group_world_size == 1:
            return
        try:
            self._board().set(VERDICT, verdict)
            time.sleep(OTHERS_LISTEN_S)
        except RuntimeError:
            return  # who kept the store has left before us

    def _listen(self) -> None:
        """Ends this node's ranks when those of another node ended for good."""
        now = time.monotonic()
        if self._worker_group.group_world_size == 1 or now - self._listened_at < LISTEN_EVERY_S:
            return
        self._listened_at = now
        try:
            board = self._board()
            said = board.get(VERDICT).decode() if board.check([VERDICT]) else ""
        except RuntimeError:
            return  # torchrun asks the store next, and knows what to do
        if said:
            verdict = json.loads(said)
            what = "stopped on a signal, and saved" if verdict["code"] == TRY_AGAIN else "ended; its log says why"
            raise Ended(f"the ranks of {verdict['host']} {what}", verdict["code"])

    def _board(self) -> dist.Store:
        """The store without the number of the round, which launchers may count differently."""
        store = self._store
        assert store is not None, "ranks were started without a store"
        while isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        return dist.PrefixStore("infnet_rec", store)

    def _lost(self, error: RendezvousError) -> NoReturn:
        match error:
            case RendezvousClosedError():
                text = "another node has ended the job; its log says why"
            case RendezvousTimeoutError():
                text = "too few nodes have come to where they meet; start the others too, or look at why they ended"
            case RendezvousConnectionError():
                text = "the node where all meet does not answer; if it is lost, start the job again"
            case _:
                raise error
        stopped = TRY_AGAIN in self._codes
        raise Ended(text, TRY_AGAIN if stopped else 1) from error


def torchrun(arguments: Sequence[str]) -> int:
    """Runs it; the exit code is `TRY_AGAIN` where a signal ended the run and it can be continued.

    Raises:
        ChildFailedError: ranks failed, and have said how.
    """
    api.LocalElasticAgent = Agent
    # A store of their own for every start of the ranks.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    args = parse_args(list(arguments))
    try:
        least, most = parse_min_max_nnodes(args.nnodes)
        Agent.is_elastic = least < most
        look_at_meeting(args)
        record(run)(args)
    except Fault as fault:
        print(f"infnet-rec: fault: {fault}", file=sys.stderr)
        return 2
    except Ended as ended:
        print(f"infnet-rec: ended: {ended}", file=sys.stderr)
        return ended.code
    except RendezvousConnectionError:
        print(f"infnet-rec: failed: {args.rdzv_endpoint}: nothing answers where the nodes meet", file=sys.stderr)
        return 1
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
