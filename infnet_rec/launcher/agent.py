"""What starts a node's ranks, watches them, and hears of other nodes: torchrun's agent, and what it lacks.

It gives up restarts where they cannot help: ranks that said in one line what is wrong only say it again. Where a rank
fails, torchrun shows a table of all that noticed; here the first error is said once, before the others are ended. And
where ranks of one node end for good, the launchers of the others would go on waiting for them; here they are told.
"""

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)

from infnet_rec.errors import TRY_AGAIN
from infnet_rec.launcher.failures import Cause, End, describe_cause, first_of, read_end

# A fault and a refusal: ranks that are started again only say it again.
FINAL = (2, 3)
VERDICT = "verdict"  # in the store of the launchers
LISTEN_EVERY_S = 1.0
# How long the store may not answer before the node that keeps it counts as lost, where the others could go on without
# it, and where they only wait with it.
SILENT_ELASTIC_S, SILENT_S = 60.0, 600.0
# A command that a script may name: it hands the job in again when the node is lost that would have done so.
WHEN_FIRST_IS_LOST = "INFNET_REC_WHEN_FIRST_NODE_IS_LOST"
FIRST_IS_LOST = "the node where all meet does not answer; if it is lost, start the job again"
# The launcher that keeps the store stays so long after it has said why it ends.
OTHERS_LISTEN_S = 3 * LISTEN_EVERY_S


def hand_in_again() -> None:
    """Does what the job's script asks for when the first node is lost; every other node may do so."""
    command = os.environ.get(WHEN_FIRST_IS_LOST)
    if command:
        subprocess.run(shlex.split(command), stdin=subprocess.DEVNULL, timeout=60, check=False)


class NodeEnded(Exception):
    """The job is over for this node for a reason that lies elsewhere; the code is for the shell."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Agent(LocalElasticAgent):
    """Of one node.

    Attributes:
        is_elastic: whether the job may go on with fewer nodes.
        first: the end that the others followed, at the last failure of this node's ranks.
    """

    is_elastic = False
    first: End | None = None
    _remaining_restarts: int
    _codes: frozenset[int] = frozenset()
    _listened_at = 0.0
    # When the loop was last there, while it does nothing but look and ask the store.
    _looked_at: float | None = None
    _watched = False

    # torch's are wrapped in a way that has no type.
    def run(self, role: str = "default") -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        try:
            return super().run(role)  # pyright: ignore[reportCallIssue]
        except RendezvousError as error:
            self._lost(error)

    def _monitor_workers(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, worker_group: WorkerGroup
    ) -> RunResult:
        self._looked_at = time.monotonic()
        self._watch_store()
        before = self._ends(worker_group)
        first = first_of(before) if any(end.code not in (None, 0) for end in before) else None
        # Said at once: those that hang in a collective are waited for, for up to half a minute, before they are killed.
        said = first is not None and first.cause <= Cause.SAID_WHY
        if first is not None and said:
            self._say(first)
        result: RunResult = super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]
        if result.state == WorkerState.HEALTHY:
            self._listen()
            if self.is_elastic and (lost := self._num_lost_nodes()):
                return self._go_on_without(lost)
        if result.state == WorkerState.HEALTHY:
            return result
        self._looked_at = None
        if result.state not in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            return result
        lived = [end.rank for end in before if end.code is None] if first is not None else []
        after = self._ends(worker_group, told_to_end=lived)
        Agent.first = next(end for end in after if end.rank == first.rank) if first and said else first_of(after)
        if not said and all(end.code != TRY_AGAIN for end in after):
            self._say(Agent.first)
        codes = {failure.exitcode for failure in result.failures.values()}
        # Those that were ended may have been asked to stop; only who was first counts among them.
        self._codes = frozenset(codes | {Agent.first.exit_code or 1})
        self._go_on_or_tell()
        return result

    # torch's are wrapped in a way that has no type.
    def _stop_workers(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, *arguments: Any, **options: Any
    ) -> None:
        self._looked_at = None
        super()._stop_workers(*arguments, **options)  # pyright: ignore[reportCallIssue]

    def _watch_store(self) -> None:
        """Starts the thread that ends this node's ranks and launcher when the store has not answered for long.

        What keeps the store may have lost power, and then native code waits for its answer for a quarter of an hour.
        """
        if self._watched or not self._has_peers:
            return
        self._watched = True

        def watch() -> None:
            silent_s, seen = 0.0, None
            # Counted by itself: a job that was suspended has a clock that went on.
            while silent_s < (SILENT_ELASTIC_S if self.is_elastic else SILENT_S):
                time.sleep(LISTEN_EVERY_S)
                now = self._looked_at
                silent_s = silent_s + LISTEN_EVERY_S if now is not None and now == seen else 0.0
                seen = now
            print(f"infnet-rec: ended: {FIRST_IS_LOST}", file=sys.stderr, flush=True)
            hand_in_again()
            # Its ranks end with it.
            os._exit(1)

        threading.Thread(target=watch, name="store", daemon=True).start()

    def _num_lost_nodes(self) -> int:
        """Nodes of this round whose launchers say nothing any more, as the rendezvous counts them: after 15 s.

        Their ranks' connections stay open where a node lost power or its cable, so ours would wait in a collective
        until its time is up. torchrun itself looks only for nodes that come.
        """
        handler: Any = self._worker_group.spec.rdzv_handler
        state = getattr(getattr(handler, "_state_holder", None), "state", None)
        if state is None or not state.complete:
            return 0
        return max(0, (self._worker_group.group_world_size or 1) - len(state.participants))

    def _go_on_without(self, num_lost: int) -> RunResult:
        """Has this node's ranks started again, which costs no try."""
        text = f"{num_lost} node{'s' * (num_lost > 1)} no longer answer{'s' * (num_lost == 1)}"
        print(f"infnet-rec: {text}; the ranks are started again without", file=sys.stderr, flush=True)
        # They wait for ranks that are gone, and could save nothing; a signal that they handle would not end them.
        context: Any = self._pcontext
        context.close(signal.SIGKILL)
        self._remaining_restarts += 1
        return RunResult(state=WorkerState.UNHEALTHY)

    def _ends(self, worker_group: WorkerGroup, *, told_to_end: Collection[int] = ()) -> list[End]:
        """What became of this node's ranks."""
        context: Any = self._pcontext
        codes = {i: handler.proc.poll() for i, handler in context.subprocess_handlers.items()}
        files = {i: Path(file) for i, file in context.error_files.items()}
        ranks = {i: worker.global_rank for i, worker in enumerate(worker_group.workers)}
        return [read_end(ranks[i], codes[i], files[i], was_told_to=ranks[i] in told_to_end) for i in ranks]

    def _say(self, end: End) -> None:
        # The bar of a rank that was killed still stands on a terminal's last line.
        start = "\n" if sys.stderr.isatty() else ""
        if self._has_peers and end.facts.get("word") is not None and not self._is_news(end.facts["text"]):
            return
        text = describe_cause(end, socket.gethostname(), others_elsewhere=self._has_peers)
        print(f"{start}{text}", file=sys.stderr, flush=True)

    def _is_news(self, text: str) -> bool:
        """Whether no other node has said it: most faults are found by the ranks of all nodes alike."""
        key = f"said/{self._remaining_restarts}/{hashlib.sha256(text.encode()).hexdigest()}"
        try:
            return self._board().add(key, 1) == 1
        except RuntimeError:
            return True  # who kept the store has left before us

    @property
    def _has_peers(self) -> bool:
        return (self._worker_group.group_world_size or 1) > 1

    def _go_on_or_tell(self) -> None:
        """Starts this node's ranks again, if that may help; if not, the other nodes hear of it."""
        # Ranks that a signal ended have saved. The nodes that are left go on where they may be fewer.
        final = FINAL if self.is_elastic else (*FINAL, TRY_AGAIN)
        if self._codes.intersection(final):
            self._remaining_restarts = 0
        if self._remaining_restarts:
            left = f"restarts left: {self._remaining_restarts - 1}"
            print(f"infnet-rec: the ranks are started again ({left})", file=sys.stderr, flush=True)
            return
        code = next((code for code in final if code in self._codes), 1)
        self._tell(json.dumps({"host": socket.gethostname(), "code": code}))

    def _tell(self, verdict: str) -> None:
        """Says why the job ends, for launchers whose ranks may still be waiting for ours."""
        if not self._has_peers:
            return
        try:
            self._board().set(VERDICT, verdict)
            time.sleep(OTHERS_LISTEN_S)
        except RuntimeError:
            return  # who kept the store has left before us

    def _listen(self) -> None:
        """Ends this node's ranks when those of another node ended for good."""
        now = time.monotonic()
        if not self._has_peers or now - self._listened_at < LISTEN_EVERY_S:
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
            raise NodeEnded(f"the ranks of {verdict['host']} {what}", verdict["code"])

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
                text = FIRST_IS_LOST
                hand_in_again()
            case _:
                raise error
        stopped = TRY_AGAIN in self._codes
        raise NodeEnded(text, TRY_AGAIN if stopped else 1) from error
