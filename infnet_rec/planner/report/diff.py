"""Two plans side by side: which tables moved, what that costs and how many bytes a rank gains. Pure."""

from dataclasses import dataclass
from typing import Literal

from infnet_rec.planner.plan import RankLoad, RankMemory
from infnet_rec.planner.plan_file import PlanFile, PlannedTable, fingerprint_differences

MAX_RANKS_NAMED = 4
MAX_LINES = 40
MIB = 2**20


@dataclass(frozen=True, slots=True)
class TableChange:
    """A table that stands elsewhere, or in one of the plans only.

    Attributes:
        name: of the table.
        before: how it stood, in words; "absent" where the first plan has no such table.
        after: how it stands.
        before_ms: the first plan's estimate for the slowest of its shards.
        after_ms: the second plan's.
        before_bytes: of all its shards, everything counted.
        after_bytes: likewise.
    """

    name: str
    before: str
    after: str
    before_ms: float
    after_ms: float
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class RankChange:
    """What a rank holds and does; a rank that one plan has not holds nothing there."""

    rank: int
    hbm_bytes: tuple[int, int]
    host_bytes: tuple[int, int]
    ms: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """From a first plan to a second.

    Attributes:
        made_for: what the plans were made for, where that differs.
        tables: that moved, came or went, the costliest change first.
        num_unmoved: tables that stand where they stood.
        ranks: all of both.
        critical: the slowest rank of each plan, and its estimated ms a step.
    """

    made_for: tuple[str, ...]
    tables: tuple[TableChange, ...]
    num_unmoved: int
    ranks: tuple[RankChange, ...]
    critical: tuple[tuple[int, float], tuple[int, float]]


def plan_diff(before: PlanFile, after: PlanFile) -> PlanDiff:
    """Compares two plans."""
    old, new = ({table.name: table for table in plan.tables} for plan in (before, after))
    names = list(dict.fromkeys([*old, *new]))
    changes = [_change(name, old.get(name), new.get(name)) for name in names if _moved(old.get(name), new.get(name))]
    old_ranks, new_ranks = ({load.rank: load for load in plan.ranks} for plan in (before, after))
    return PlanDiff(
        made_for=tuple(fingerprint_differences(before.fingerprint, after.fingerprint)),
        tables=tuple(sorted(changes, key=lambda c: -abs(c.after_ms - c.before_ms))),
        num_unmoved=len(names) - len(changes),
        ranks=tuple(
            _rank_change(rank, old_ranks.get(rank), new_ranks.get(rank)) for rank in sorted(old_ranks | new_ranks)
        ),
        critical=(_critical(before), _critical(after)),
    )


def plan_diff_lines(diff: PlanDiff) -> list[str]:
    """The difference for people."""
    text = [f"made for different things: {phrase}" for phrase in diff.made_for]
    if not diff.tables and all(
        r.hbm_bytes[0] == r.hbm_bytes[1] and r.host_bytes[0] == r.host_bytes[1] for r in diff.ranks
    ):
        return [*text, f"the same plan: all {diff.num_unmoved} tables stand where they stood"]
    text.append(f"{len(diff.tables)} of {len(diff.tables) + diff.num_unmoved} tables moved")
    if diff.tables:
        wide = max(len("table"), *(len(change.name) for change in diff.tables))
        then = max(len("before"), *(len(change.before) for change in diff.tables))
        now = max(len("after"), *(len(change.after) for change in diff.tables))
        text += ["", f"{'table':<{wide}}  {'before':<{then}}  {'after':<{now}}  {'ms':>9}{'MiB':>11}"]
        text += [
            f"{c.name:<{wide}}  {c.before:<{then}}  {c.after:<{now}}  {c.after_ms - c.before_ms:>+9.3f}"
            f"{(c.after_bytes - c.before_bytes) / MIB:>+11.2f}"
            for c in diff.tables[:MAX_LINES]
        ]
    if len(diff.tables) > MAX_LINES:
        text.append(f"... and {len(diff.tables) - MAX_LINES} more, which change less")
    text += ["", f"{'rank':>4}{'HBM MiB':>12}{'gains':>11}{'host MiB':>12}{'gains':>11}{'ms':>10}{'gains':>9}"]
    most = sorted(
        diff.ranks, key=lambda r: -abs(sum(r.hbm_bytes[1:]) + r.host_bytes[1] - r.hbm_bytes[0] - r.host_bytes[0])
    )
    text += [
        f"{r.rank:>4}{r.hbm_bytes[1] / MIB:>12.2f}{(r.hbm_bytes[1] - r.hbm_bytes[0]) / MIB:>+11.2f}"
        f"{r.host_bytes[1] / MIB:>12.2f}{(r.host_bytes[1] - r.host_bytes[0]) / MIB:>+11.2f}"
        f"{r.ms[1]:>10.3f}{r.ms[1] - r.ms[0]:>+9.3f}"
        for r in sorted(most[:MAX_LINES], key=lambda r: r.rank)
    ]
    if len(most) > MAX_LINES:
        text.append(f"... and {len(most) - MAX_LINES} more ranks, which gain less")
    (old_rank, old_ms), (new_rank, new_ms) = diff.critical
    text += ["", f"the slowest rank takes {new_ms:.3f} ms (rank {new_rank}), before {old_ms:.3f} ms (rank {old_rank})"]
    return text


def _moved(old: PlannedTable | None, new: PlannedTable | None) -> bool:
    if old is None or new is None:
        return True
    return _place(old) != _place(new)


def _place(table: PlannedTable) -> tuple[object, ...]:
    shards = [(s.rank, s.first_row, s.first_column, s.num_rows, s.num_columns) for s in table.shards]
    return (table.sharding, table.kernel, table.cache, shards)


def _change(name: str, old: PlannedTable | None, new: PlannedTable | None) -> TableChange:
    return TableChange(name, _words(old), _words(new), _ms(old), _ms(new), _bytes(old), _bytes(new))


def _words(table: PlannedTable | None) -> str:
    if table is None:
        return "absent"
    ranks = sorted({shard.rank for shard in table.shards})
    if len(ranks) <= MAX_RANKS_NAMED:
        where = f"rank{'s' * (len(ranks) > 1)} {','.join(map(str, ranks))}"
    else:
        where = f"{len(ranks)} ranks {ranks[0]}-{ranks[-1]}"
    cache = "" if table.cache is None or table.cache.load_factor is None else f" {table.cache.load_factor:g}"
    return f"{table.sharding} {table.kernel}{cache} {where}"


def _ms(table: PlannedTable | None) -> float:
    return 0.0 if table is None else max(shard.times.total_ms for shard in table.shards)


def _bytes(table: PlannedTable | None) -> int:
    return 0 if table is None else sum(shard.hbm.total_bytes + shard.host.total_bytes for shard in table.shards)


def _rank_change(rank: int, old: RankLoad | None, new: RankLoad | None) -> RankChange:
    def both(kind: Literal["hbm", "host"]) -> tuple[int, int]:
        before, after = (RankMemory() if load is None else getattr(load, kind) for load in (old, new))
        return before.total_bytes, after.total_bytes

    before_ms, after_ms = (0.0 if load is None else load.times.total_ms for load in (old, new))
    return RankChange(rank, both("hbm"), both("host"), (before_ms, after_ms))


def _critical(plan: PlanFile) -> tuple[int, float]:
    slowest = max(plan.ranks, key=lambda load: (load.times.total_ms, -load.rank))
    return slowest.rank, slowest.times.total_ms
