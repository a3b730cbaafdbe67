"""A plan that does not fit: what lacks where, and the cheapest change that makes it fit, found by planning it."""

from collections.abc import Iterator
from typing import Any

from infnet_rec.commands.plan_case import Case
from infnet_rec.commands.plan_hints import (
    MAX_GROWTH,
    MIN_LOCAL_BATCH,
    Change,
    Inquiry,
    attempt,
    cached,
    clusters,
    halved,
    in_half_precision,
    in_host_memory,
    with_batch,
)
from infnet_rec.commands.plan_report import question
from infnet_rec.commands.plan_text import heading, hint_lines
from infnet_rec.faults import Refusal
from infnet_rec.shard.planning.planned import DoesNotFit

GIB = 2**30
SHOWN_BLAMED = 5
# A table below this part of the largest is not to blame.
BLAME_SHARE = 0.05

JSON = dict[str, Any]


class PlanRefused(Refusal):
    """The answer no, with everything that was found out as one JSON object.

    Attributes:
        facts: see `refuse`.
    """

    def __init__(self, message: str, facts: JSON) -> None:
        super().__init__(message)
        self.facts = facts


def refuse(inquiry: Inquiry, case: Case, reason: DoesNotFit) -> PlanRefused:
    """Looks for changes that fit, and words the answer.

    Args:
        inquiry: what was asked.
        case: likewise.
        reason: why there is no plan.
    """
    changes = sorted(remedies(inquiry, case), key=lambda change: change.case.rank_hours_per_epoch)
    missing = reason.missing_hbm_gib or reason.missing_host_gib
    kind = "hbm" if reason.missing_hbm_gib else "host"
    worst = max(missing, key=lambda rank: (missing[rank], -rank))
    facts = {
        "verdict": "does not fit",
        **question(case),
        "missing": {
            "kind": kind,
            "gib_by_rank": {str(rank): lacking for rank, lacking in missing.items()},
            "worst_rank": worst,
            "worst_gib": missing[worst],
            "capacity_gib": _capacity(case, kind) / GIB,
            "not_tables_gib": _reserved(case, kind) / GIB,
            "blame": [{"table": name, "weights_gib": _table_gib(case, name)} for name in _blamed(case, reason)],
        },
        "changes": [change.to_json() for change in changes],
        "remedy": changes[0].inquiry.command if changes else None,
    }
    return PlanRefused("\n".join(lines(facts)), facts)


def remedies(inquiry: Inquiry, case: Case) -> list[Change]:
    """Changes of one kind that fit, of batches and clusters the first that does; pairs where no single one does."""
    tables = (in_host_memory(inquiry, case), in_half_precision(inquiry, case))
    single = [change for change in tables if isinstance(change, Change)]
    for change in (
        _smaller_batch(inquiry, case, "a smaller batch, which trains differently"),
        _more_ranks(inquiry, case),
    ):
        if change is not None:
            single.append(change)
    return single or list(_pairs(inquiry, case))


def _smaller_batch(inquiry: Inquiry, case: Case, words: str) -> Change | None:
    size = case.local_batch_size // 2
    while size >= MIN_LOCAL_BATCH:
        change = with_batch(inquiry, words, size)
        if change is not None:
            return change
        size //= 2
    return None


def _more_ranks(inquiry: Inquiry, case: Case) -> Change | None:
    now = case.cluster.world_size
    for cluster in clusters(case.cluster.hardware, up_to=now * MAX_GROWTH):
        if cluster.world_size > now:
            change = attempt(inquiry.changed(cluster=cluster), "more ranks, the same global batch", cluster.name)
            if change is not None:
                return change
    return None


def _pairs(inquiry: Inquiry, case: Case) -> Iterator[Change]:
    """The large tables kept in another way, and a smaller batch."""
    ways = [("fp16", halved(case))] + ([("host memory", cached(case))] if case.on_gpu else [])
    for words, override in ways:
        change = _smaller_batch(inquiry.changed(override), case, f"large tables in {words}, and a smaller batch")
        if change is not None:
            yield change


def lines(facts: JSON) -> list[str]:
    """The answer for people."""
    missing, dense = facts["missing"], facts["dense"]
    kind = "HBM" if missing["kind"] == "hbm" else "host memory"
    lacking = (
        f"rank {missing['worst_rank']} lacks {missing['worst_gib']:.2f} GiB of {kind}: it has "
        f"{missing['capacity_gib']:.1f}, of which {missing['not_tables_gib']:.2f} go to what is no table"
    )
    working = dense["activation_bytes"] + dense["lookup_bytes"] + dense["exchange_bytes"] + dense["input_bytes"]
    lacking += f" (its {facts['batch']['local_batch_size']:,} examples take {working / GIB:.2f})"
    if (num_ranks := len(missing["gib_by_rank"])) > 1:
        lacking += f"; {num_ranks} ranks lack some"
    text = [*heading(facts), "", lacking]
    if missing["blame"]:
        shown = missing["blame"][:SHOWN_BLAMED]
        named = ", ".join(f"{one['table']} ({one['weights_gib']:.2f} GiB)" for one in shown)
        more = len(missing["blame"]) - len(shown)
        text.append(f"tables to blame: {named}" + (f" and {more} more" if more else ""))
    if facts["remedy"] is None:
        return [*text, "no change of one or two kinds was found that fits; take larger hardware"]
    return [
        *text,
        "",
        *hint_lines(facts["changes"]),
        "",
        "the cheapest of these, by rank hours an epoch:",
        facts["remedy"],
    ]


def _blamed(case: Case, reason: DoesNotFit) -> list[str]:
    """Without those that could as well not be there."""
    least = BLAME_SHARE * max(_table_gib(case, name) for name in reason.blame) if reason.blame else 0.0
    return [name for name in reason.blame if _table_gib(case, name) >= least]


def _capacity(case: Case, kind: str) -> int:
    return case.cluster.hbm_bytes if kind == "hbm" else case.cluster.host_memory_bytes


def _reserved(case: Case, kind: str) -> int:
    return case.workload.reserved_hbm_bytes if kind == "hbm" else case.workload.reserved_host_bytes


def _table_gib(case: Case, name: str) -> float:
    """Weights of the whole table, on all ranks together."""
    control = case.controls.get(name)
    value_bytes = 2 if control is not None and control.precision == "fp16" else 4
    traffic = case.workload.traffic[name]
    return traffic.num_rows * traffic.width * value_bytes / GIB
