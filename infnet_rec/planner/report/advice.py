"""What else would fit, each answer found by planning it: other batches, other clusters, tables kept in another way.

Where a plan does not fit, the cheapest change that makes it fit is found by planning it.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infnet_rec.config.load import load_config
from infnet_rec.errors import Refusal, UserError
from infnet_rec.planner.hardware import Cluster, Hardware
from infnet_rec.planner.plan import DoesNotFit
from infnet_rec.planner.report.facts import question
from infnet_rec.planner.report.text import hint_lines, plan_heading
from infnet_rec.planner.run_plan import PlannedRun, PlanRequest, PlanSource, Trials, plan_request, planned_run

GIB = 2**30
# Tables that hold so much of all bytes are the large ones.
LARGE_SHARE = 0.9
CACHED_PART = 0.1
# Larger clusters are not looked for.
MAX_GROWTH = 64
MIN_LOCAL_BATCH = 16

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A command line, from which others are made.

    Attributes:
        config_path: the run's file.
        overrides: laid on it.
        source: the manifest; the same for every variation.
        hardware_name: as it was given.
        cluster: what is asked about.
        trials: of towers; all variations share them.
    """

    config_path: Path
    overrides: tuple[str, ...]
    source: PlanSource
    hardware_name: str
    cluster: Cluster
    trials: Trials = field(default_factory=dict)

    def planned(self) -> PlannedRun:
        """Its plan.

        Raises:
            UserError: it cannot be asked; see `plan_request`.
            DoesNotFit: there is no plan.
        """
        config = load_config(self.config_path, self.overrides)
        return planned_run(config, self.source.data(config), self.cluster, trials=self.trials)

    def request(self) -> PlanRequest:
        """What is known of it without a plan.

        Raises:
            UserError: it cannot be asked; see `plan_request`.
        """
        config = load_config(self.config_path, self.overrides)
        return plan_request(config, self.source.data(config), self.cluster, trials=self.trials)

    def changed(self, *overrides: str, cluster: Cluster | None = None) -> "Inquiry":
        """Another command line; an override takes the place of an earlier one of its key."""
        keys = {override.partition("=")[0] for override in overrides}
        kept = tuple(o for o in self.overrides if o.partition("=")[0].strip() not in keys)
        return replace(self, overrides=(*kept, *overrides), cluster=cluster or self.cluster)

    @property
    def command(self) -> str:
        """To type."""
        words = ["infnet-rec", "plan", str(self.config_path), "-j", self.cluster.name, "--hardware", self.hardware_name]
        return shlex.join([*words, *(word for override in self.overrides for word in ("--set", override))])


@dataclass(frozen=True, slots=True)
class Change:
    """Another command line whose plan fits."""

    question: str
    answer: str
    inquiry: Inquiry
    run: PlannedRun

    def to_json(self) -> JSON:
        """For people and scripts."""
        return {
            "question": self.question,
            "answer": self.answer,
            "command": self.inquiry.command,
            "found": found(self.run),
        }


def found(run: PlannedRun) -> JSON:
    """The numbers that plans are compared by."""
    cluster = run.request.cluster
    return {
        "cluster": cluster.name,
        "step_ms": run.step.total_ms,
        "examples_per_s": run.request.config.train.global_batch_size / run.step.total_ms * 1e3,
        "fullest_gib": fullest_gib(run),
        "rank_hours": run.rank_hours_per_epoch,
        "price": run.price_per_epoch,
        "currency": cluster.hardware.currency,
    }


def fullest_gib(run: PlannedRun) -> float:
    """What the fullest rank uses of the memory that its device works in."""
    cluster = run.request.cluster
    capacity = cluster.hbm_bytes if run.request.on_gpu else cluster.host_memory_bytes
    return (capacity - _free_bytes(run)) / GIB


def hints(inquiry: Inquiry, run: PlannedRun) -> list[JSON]:
    """Answers to the usual questions about a plan that fits."""
    makers: list[Callable[[], Change | JSON | None]] = [
        lambda: largest_batch(inquiry, run),
        lambda: smallest_cluster(inquiry, run),
        lambda: in_host_memory(inquiry, run.request),
        lambda: in_half_precision(inquiry, run.request),
    ]
    answers = [make() for make in makers]
    return [answer.to_json() if isinstance(answer, Change) else answer for answer in answers if answer is not None]


def largest_batch(inquiry: Inquiry, run: PlannedRun) -> Change | None:
    """The largest local batch, of powers of two and halfway between, that fits on the same ranks."""
    question, request = "largest local batch", run.request
    sizes = _grid(request.data.store.num_examples("train") // request.cluster.world_size)
    per_example = 1.1 * request.dense.working_bytes / request.local_batch_size
    guess = request.local_batch_size + _free_bytes(run) / max(1.0, per_example)
    place = max(0, sum(size <= guess for size in sizes) - 1)
    best = None
    while 0 <= place < len(sizes):
        change = with_batch(inquiry, question, sizes[place])
        if change is None:
            if best is not None:
                break
            place -= 1
            continue
        if best is not None and sizes[place] < best.run.request.local_batch_size:
            break
        best = change
        place += 1
    return best


def smallest_cluster(inquiry: Inquiry, run: PlannedRun) -> Change | None:
    """The fewest ranks of this hardware that take the same global batch."""
    question, now = "smallest cluster, same global batch", run.request.cluster
    device_bytes = now.hbm_bytes if run.request.on_gpu else now.host_memory_bytes
    needed = sum(t.hbm_bytes + t.host_bytes for t in run.planned.tables)
    for cluster in clusters(now.hardware, up_to=now.world_size):
        if cluster.world_size * device_bytes < needed and run.request.on_gpu and not _uses_host(run):
            continue
        change = attempt(inquiry.changed(cluster=cluster), question, cluster.name)
        if change is not None:
            return change
    return None


def in_host_memory(inquiry: Inquiry, request: PlanRequest) -> Change | JSON | None:
    """The large tables in the host's memory, a part of their rows cached in HBM; GPUs only."""
    if not request.on_gpu:
        return None
    question = f"{_listed(large_tables(request))} in host memory, {CACHED_PART:.0%} cached"
    return attempt(inquiry.changed(cached(request)), question, "fits") or _no(question)


def in_half_precision(inquiry: Inquiry, request: PlanRequest) -> Change | JSON | None:
    """The large tables in fp16."""
    question = f"{_listed(large_tables(request))} in fp16"
    return attempt(inquiry.changed(halved(request)), question, "fits") or _no(question)


def cached(request: PlanRequest) -> str:
    """The override that moves the large tables to the host's memory."""
    names = large_tables(request)
    rules = [{"match": n, "kernel": "fused_uvm_caching", "cache_load_factor": CACHED_PART} for n in names]
    return tables_override(request, rules)


def halved(request: PlanRequest) -> str:
    """The override that keeps the large tables in fp16."""
    return tables_override(request, [{"match": name, "precision": "fp16"} for name in large_tables(request)])


def large_tables(request: PlanRequest) -> list[str]:
    """The fewest tables that hold nearly all rows; those that are managed can be kept in one way only."""
    schema = request.data.schema
    plain = [table for table in (*schema.bag_tables, *schema.sequence_tables) if not table.managed]
    tables = sorted(plain, key=lambda table: -table.num_rows)
    wanted, held, names = LARGE_SHARE * sum(table.num_rows for table in tables), 0, []
    for table in tables:
        if held >= wanted:
            break
        names.append(table.name)
        held += table.num_rows
    return names


def tables_override(request: PlanRequest, rules: Sequence[JSON]) -> str:
    """The run's rules for tables and these after them, as one override; of two rules the later one counts."""
    known = [rule.model_dump(exclude_none=True) for rule in request.config.sharding.tables]
    inline = ", ".join(
        "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in rule.items()) + "}"
        for rule in [*known, *rules]
    )
    return f"sharding.tables=[{inline}]"


def clusters(hardware: Hardware, *, up_to: int) -> Iterator[Cluster]:
    """Growing clusters: powers of two within a node, then whole nodes."""
    ranks = 1
    while ranks < hardware.ranks_per_node:
        if ranks <= up_to:
            yield Cluster(hardware, 1, ranks)
        ranks *= 2
    for nodes in _grid(up_to // hardware.ranks_per_node):
        yield Cluster(hardware, nodes, hardware.ranks_per_node)


def _grid(up_to: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... as far as it goes."""
    sizes = {size for power in range(40) for size in (1 << power, 3 << power) if size <= up_to}
    return sorted(sizes)


def with_batch(inquiry: Inquiry, question: str, local_batch_size: int) -> Change | None:
    """The same with another batch, if that fits."""
    world = inquiry.cluster.world_size
    override = f"train.global_batch_size={local_batch_size * world}"
    return attempt(inquiry.changed(override), question, f"{local_batch_size:,} ({local_batch_size * world:,} in all)")


def attempt(inquiry: Inquiry, question: str, answer: str) -> Change | None:
    """The change, if its plan fits."""
    try:
        return Change(question, answer, inquiry, inquiry.planned())
    except (UserError, DoesNotFit):
        # Not every variation can be asked for: a batch may not divide, a rule may contradict another.
        return None


def _no(question: str) -> JSON:
    return {"question": question, "answer": "does not fit", "command": None, "found": None}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"the {len(names)} largest tables"


def _uses_host(run: PlannedRun) -> bool:
    return any(load.host.weight_bytes for load in run.planned.ranks)


def _free_bytes(run: PlannedRun) -> int:
    """On the fullest rank, in the memory that its device works in."""
    on_gpu = run.request.on_gpu
    return min(load.hbm_free_bytes if on_gpu else load.host_free_bytes for load in run.planned.ranks)


SHOWN_BLAMED = 5
# A table below this part of the largest is not to blame.
BLAME_SHARE = 0.05


class PlanRefused(Refusal):
    """The answer no, with everything that was found out as one JSON object.

    Attributes:
        facts: see `refuse`.
    """

    def __init__(self, message: str, facts: JSON) -> None:
        super().__init__(message)
        self.facts = facts


def refuse_plan(inquiry: Inquiry, reason: DoesNotFit) -> PlanRefused:
    """Looks for changes that fit, and words the answer.

    Args:
        inquiry: what was asked.
        reason: why there is no plan.
    """
    request = inquiry.request()
    changes = sorted(remedies(inquiry, request), key=lambda change: change.run.rank_hours_per_epoch)
    missing = reason.missing_hbm_gib or reason.missing_host_gib
    kind = "hbm" if reason.missing_hbm_gib else "host"
    worst = max(missing, key=lambda rank: (missing[rank], -rank))
    facts = {
        "verdict": "does not fit",
        **question(request, inquiry.source),
        "missing": {
            "kind": kind,
            "gib_by_rank": {str(rank): lacking for rank, lacking in missing.items()},
            "worst_rank": worst,
            "worst_gib": missing[worst],
            "capacity_gib": _capacity(request, kind) / GIB,
            "not_tables_gib": _reserved(request, kind) / GIB,
            "blame": [{"table": name, "weights_gib": _table_gib(request, name)} for name in _blamed(request, reason)],
        },
        "changes": [change.to_json() for change in changes],
        "remedy": changes[0].inquiry.command if changes else None,
    }
    return PlanRefused("\n".join(remedy_lines(facts)), facts)


def remedies(inquiry: Inquiry, request: PlanRequest) -> list[Change]:
    """Changes of one kind that fit, of batches and clusters the first that does; pairs where no single one does."""
    tables = (in_host_memory(inquiry, request), in_half_precision(inquiry, request))
    single = [change for change in tables if isinstance(change, Change)]
    for change in (
        _smaller_batch(inquiry, request, "a smaller batch, which trains differently"),
        _more_ranks(inquiry, request),
    ):
        if change is not None:
            single.append(change)
    return single or list(_pairs(inquiry, request))


def _smaller_batch(inquiry: Inquiry, request: PlanRequest, words: str) -> Change | None:
    size = request.local_batch_size // 2
    while size >= MIN_LOCAL_BATCH:
        change = with_batch(inquiry, words, size)
        if change is not None:
            return change
        size //= 2
    return None


def _more_ranks(inquiry: Inquiry, request: PlanRequest) -> Change | None:
    now = request.cluster.world_size
    for cluster in clusters(request.cluster.hardware, up_to=now * MAX_GROWTH):
        if cluster.world_size > now:
            change = attempt(inquiry.changed(cluster=cluster), "more ranks, the same global batch", cluster.name)
            if change is not None:
                return change
    return None


def _pairs(inquiry: Inquiry, request: PlanRequest) -> Iterator[Change]:
    """The large tables kept in another way, and a smaller batch."""
    ways = [("fp16", halved(request))] + ([("host memory", cached(request))] if request.on_gpu else [])
    for words, override in ways:
        change = _smaller_batch(inquiry.changed(override), request, f"large tables in {words}, and a smaller batch")
        if change is not None:
            yield change


def remedy_lines(facts: JSON) -> list[str]:
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
    text = [*plan_heading(facts), "", lacking]
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


def _blamed(request: PlanRequest, reason: DoesNotFit) -> list[str]:
    """Without those that could as well not be there."""
    least = BLAME_SHARE * max(_table_gib(request, name) for name in reason.blame) if reason.blame else 0.0
    return [name for name in reason.blame if _table_gib(request, name) >= least]


def _capacity(request: PlanRequest, kind: str) -> int:
    return request.cluster.hbm_bytes if kind == "hbm" else request.cluster.host_memory_bytes


def _reserved(request: PlanRequest, kind: str) -> int:
    return request.workload.reserved_hbm_bytes if kind == "hbm" else request.workload.reserved_host_bytes


def _table_gib(request: PlanRequest, name: str) -> float:
    """Weights of the whole table, on all ranks together."""
    control = request.controls.get(name)
    value_bytes = 2 if control is not None and control.precision == "fp16" else 4
    traffic = request.workload.traffic[name]
    return traffic.num_rows * traffic.width * value_bytes / GIB
