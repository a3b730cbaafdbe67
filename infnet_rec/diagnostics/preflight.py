"""What is looked at before any table is allocated: do all ranks agree, and can they do what the plan asks of them?

Rank 0 judges what all ranks said, and every rank hears the verdict, so all of them stop with one message or go on.
The number of collectives does not depend on the number of ranks, and a rank sends a few hundred bytes, unless it
disagrees.
"""

import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.diagnostics.agreement import (
    REMEDIES,
    Identity,
    Place,
    digest,
    disagreements,
    identity,
    ranks_in_words,
    store_fault,
)
from infnet_rec.diagnostics.doctor import Check
from infnet_rec.diagnostics.exchange import exchanges, meetings
from infnet_rec.diagnostics.memory import size_in_words
from infnet_rec.diagnostics.rank_checks import (
    RankFacts,
    check_all,
    clock_bound_s,
    rank_facts,
    seconds_in_words,
    spaces_of,
    times_of,
)
from infnet_rec.distributed.process_group import World, broadcast_from_rank0, gather_to_rank0
from infnet_rec.errors import CommonUserError
from infnet_rec.planner.plan_file import PlanFile


@dataclass(frozen=True, slots=True)
class ExchangeEffort:
    """How much is measured: what a rank sends in an all-to-all, and how often."""

    sizes_bytes: tuple[int, ...]
    num_trials: int


QUICK = ExchangeEffort((1 << 10, 4 << 20), num_trials=3)
THOROUGH = ExchangeEffort((1 << 10, 64 << 10, 4 << 20), num_trials=20)


class Preflight:
    """Of one training run: `agreed` when it is made, `before_tables` when the plan is known."""

    def __init__(self, config: RunConfig, data: RunData, world: World) -> None:
        """Compares what the ranks are, and measures what there is between them. Collective.

        Raises:
            UserError: on every rank, if they do not agree.
        """
        started_at = time.perf_counter()
        self._world, self._own = world, identity(config, data, world)
        refuse_preflight(agree(self._own, data, world))
        self._ranks = look_around(world, QUICK)
        self._elapsed_s = time.perf_counter() - started_at
        self._plan: PlanFile | None = None
        self._checks: list[Check] = []

    def before_tables(self, plan: PlanFile) -> None:
        """Looks whether the ranks can do what the plan asks of them. Collective.

        Raises:
            UserError: on every rank, if they cannot.
        """
        started_at = time.perf_counter()
        self._plan, self._checks = plan, judged(self._ranks, plan, self._world)
        self._elapsed_s += time.perf_counter() - started_at
        refuse_preflight(self._checks)

    def lines(self) -> list[str]:
        """One that sums it up and one a warning, on rank 0."""
        if not self._ranks:
            return []
        parts = [sum_up(self._ranks, self._plan), seconds_in_words(self._elapsed_s)]
        warnings = [f"preflight: warning: {in_words(check)}" for check in self._checks if check.remedy]
        return [f"preflight: {'; '.join(parts)}", *warnings]

    def to_json(self) -> dict[str, Any]:
        """For the run directory."""
        return {
            "elapsed_s": round(self._elapsed_s, 4),
            "agreed": {aspect: digest(values) for aspect, values in self._own.items()},
            **facts_json(self._ranks),
            "checks": [check.to_json() for check in self._checks],
        }


def agree(own: Identity, data: RunData | None, world: World) -> list[Check]:
    """Faults in which the ranks differ, or in which one of them has a broken store; the same on all ranks. Collective.

    What differs is sent only where something does.

    Args:
        own: this rank's identity.
        data: its store's.
        world: all ranks.
    """
    fault = None if data is None else store_fault(data.store)
    said = {"host": socket.gethostname(), "fault": fault, "is": {aspect: digest(own[aspect]) for aspect in own}}
    # Text, so that nothing depends on how another version of Python or of this package writes objects.
    heard = [json.loads(text) for text in gather_to_rank0(world, json.dumps(said))]
    differ = any(each["fault"] or each["is"] != heard[0]["is"] for each in heard)
    if broadcast_from_rank0(world, lambda: "differ" if differ else "agree") == "agree":
        return []
    whole = [json.loads(text) for text in gather_to_rank0(world, json.dumps(own))]

    def verdict() -> str:
        places = [Place(rank, each["host"]) for rank, each in enumerate(heard)]
        checks = _broken_stores(places, [each["fault"] for each in heard])
        return written([*checks, *disagreements(places, whole)])

    return read(broadcast_from_rank0(world, verdict))


def look_around(world: World, effort: ExchangeEffort) -> list[RankFacts]:
    """What every rank found, on rank 0. Collective."""
    met, sent = [], []
    if world.world_size > 1:
        met, sent = meetings(world), exchanges(world, effort.sizes_bytes, effort.num_trials)
    own = rank_facts(world, socket.gethostname(), met, sent)
    return [RankFacts.model_validate_json(text) for text in gather_to_rank0(world, own.model_dump_json())]


def judged(ranks: Sequence[RankFacts], plan: PlanFile | None, world: World) -> list[Check]:
    """All checks of what rank 0 knows, the same on all ranks. Collective."""
    return read(broadcast_from_rank0(world, lambda: written(check_all(ranks, plan))))


def refuse_preflight(checks: Sequence[Check]) -> None:
    """Says what has to be mended, all of it at once.

    Raises:
        CommonUserError: there is a fault among the checks, which are the same on all ranks.
    """
    faults = [in_words(check) for check in checks if not check.sound]
    if len(faults) == 1:
        raise CommonUserError(faults[0])
    if faults:
        raise CommonUserError(
            "\n".join([f"{len(faults)} faults before the start", *(f"  {fault}" for fault in faults)])
        )


def in_words(check: Check) -> str:
    """A fault or a warning in one line."""
    return f"{check.name}: {check.found}; {check.remedy}"


def sum_up(ranks: Sequence[RankFacts], plan: PlanFile | None) -> str:
    """All that is well, in one line."""
    num_hosts = len({rank.host_key for rank in ranks})
    parts = [f"{len(ranks)} rank{'s' * (len(ranks) > 1)}"]
    if len(ranks) > 1:
        largest = times_of(ranks)[-1]
        over = " and ".join(dict.fromkeys(rank.network for rank in ranks))
        parts = [
            f"{parts[0]} on {num_hosts} host{'s' * (num_hosts > 1)} agree",
            f"{over}, all-to-all {largest.rate_in_words}",
            f"clocks within {seconds_in_words(clock_bound_s(ranks))}",
        ]
    tightest = max(spaces_of(ranks, plan), key=lambda space: space.share)
    parts += [f"tables {size_in_words(tightest.table_bytes)} of {size_in_words(tightest.free_bytes)} free"]
    return "; ".join(parts)


def facts_json(ranks: Sequence[RankFacts]) -> dict[str, Any]:
    """What was measured, without a line for every rank."""
    between: dict[str, Any] = {}
    if len(ranks) > 1:
        times = [
            {"rank_bytes": kind.rank_bytes, "sent_bytes": kind.sent_bytes, "best_s": kind.best_s}
            for kind in times_of(ranks)
        ]
        between = {"all_to_all": times, "clock_bound_s": clock_bound_s(ranks)}
    if not ranks:
        return {}
    hosts = dict(Counter(rank.host for rank in ranks))
    return {"ranks_by_host": hosts, "network": list(dict.fromkeys(rank.network for rank in ranks)), **between}


def _broken_stores(places: Sequence[Place], faults: Sequence[str | None]) -> list[Check]:
    found: dict[str, list[Place]] = {}
    for place, fault in zip(places, faults, strict=True):
        if fault:
            found.setdefault(fault, []).append(place)
    return [Check("store", f"{fault} on {ranks_in_words(those)}", REMEDIES["store"]) for fault, those in found.items()]


def written(checks: Sequence[Check]) -> str:
    """For other ranks; see `read`."""
    return json.dumps([[check.name, check.found, check.remedy, check.kind] for check in checks])


def read(text: str) -> list[Check]:
    """What another rank has `written`."""
    return [Check(*fields) for fields in json.loads(text)]
