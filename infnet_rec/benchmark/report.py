"""What `bench run` measured on every rank, as one result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infnet_rec.benchmark.bottleneck import Setting, judge
from infnet_rec.benchmark.forms.tower_verb import machine_line
from infnet_rec.benchmark.meter import PROFILED_STEPS
from infnet_rec.benchmark.samples import summary
from infnet_rec.benchmark.trace import COMMUNICATION, PARTS, Part
from infnet_rec.benchmark.trace_parts import StepParts
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.distributed.process_group import World
from infnet_rec.models.registry import table_width
from infnet_rec.planner.dense_cost import TowerCost
from infnet_rec.planner.run_plan import run_cluster
from infnet_rec.trainer.metric_logger import format_duration

# Of each looked-up row: read forward; read and written by its optimizer.
ROW_PASSES = 3

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BenchRankFacts:
    """What one rank measured.

    Attributes:
        rank: which.
        steps_s: of each untouched step.
        waited_s: of that, for data.
        parts: of the profiled steps.
        sent: the collectives of a step with the bytes that went to other ranks, in their order.
        peak_bytes: of memory.
        ids_per_step: looked up for this rank's examples.
        events_per_step: of its sequences.
        ceilings: of the machine, while all ranks measured it.
    """

    rank: int
    steps_s: list[float]
    waited_s: list[float]
    parts: StepParts
    sent: list[tuple[str, float]]
    peak_bytes: int
    ids_per_step: float
    events_per_step: float
    ceilings: JSON


@dataclass(frozen=True, slots=True)
class Measured:
    """What all of them measured, and what is known besides."""

    ranks: Sequence[BenchRankFacts]
    tower: TowerCost
    machine: JSON
    price_per_hour: float | None


def bench_report(config: RunConfig, data: RunData, world: World, measured: Measured) -> JSON:
    """The result for scripts; `report.bench_run_lines` is the same for people.

    A part's milliseconds are its share of the profiled steps times the mean untouched step, so they add up to that.
    """
    ranks = measured.ranks
    steps_s = np.mean([facts.steps_s for facts in ranks], axis=0).tolist()
    step_s, batch_size = float(np.mean(steps_s)), config.train.global_batch_size
    parts = _parts(ranks, step_s)
    imbalance = _imbalance(ranks)
    limits = _ceilings([facts.ceilings for facts in ranks])
    cores = measured.machine["cores"] - world.local_world_size * measured.machine["threads"]
    setting = Setting(
        on_gpu=world.device.type == "cuda",
        loader_threads=config.data.loader_threads,
        communication=config.sharding.communication,
        precision=config.train.precision,
        spare_cores=max(0, cores),
    )
    spent: dict[Part, float] = {part: parts[part]["share"] for part in PARTS}
    exposed: dict[Part, float] = {part: parts[part]["exposed_ms"] / 1e3 / step_s for part in COMMUNICATION}
    profiled_s = float(np.mean([facts.parts.step_s for facts in ranks]))
    return {
        "bench": "run",
        "machine": measured.machine,
        "store": data.store.fingerprint,
        "config": config.model_dump(mode="json"),
        "num_ranks": world.world_size,
        "ranks_per_node": world.local_world_size,
        "global_batch_size": batch_size,
        "step": {**summary(steps_s), "samples_s": steps_s},
        "examples_per_s": batch_size / step_s,
        "examples_per_s_per_rank": batch_size / step_s / world.world_size,
        "waited_for_data_ms": 1e3 * float(np.mean([facts.waited_s for facts in ranks])),
        "profiled": {"num_steps": PROFILED_STEPS, "step_ms": 1e3 * profiled_s, "times_untouched": profiled_s / step_s},
        "parts": parts,
        "imbalance": imbalance,
        "ranks": [_rank(facts) for facts in ranks],
        "memory": {
            "kind": "allocated on the GPU" if setting.on_gpu else "resident",
            "peak_bytes": max(facts.peak_bytes for facts in ranks),
        },
        "ceilings": limits,
        "rates": _rates(config, data, measured, parts, limits, step_s),
        "verdict": asdict(judge(spent, exposed, imbalance["share"], setting)),
        "epoch": _epoch(config, data, world, step_s, measured.price_per_hour),
    }


def _parts(ranks: Sequence[BenchRankFacts], step_s: float) -> dict[Part, JSON]:
    """By part, means over ranks."""
    found: dict[Part, JSON] = {}
    for part in PARTS:
        share = float(np.mean([facts.parts.spent_s[part] / facts.parts.step_s for facts in ranks]))
        found[part] = {"share": share, "ms": 1e3 * share * step_s}
        if part not in COMMUNICATION:
            continue
        of_step = {
            name: float(np.mean([getattr(facts.parts, name)[part] / facts.parts.step_s for facts in ranks]))
            for name in ("exposed_s", "in_flight_s")
        }
        exposed_ms, in_flight_ms = (1e3 * step_s * of_step[name] for name in ("exposed_s", "in_flight_s"))
        found[part] |= {
            "exposed_ms": exposed_ms,
            "in_flight_ms": in_flight_ms,
            "overlapped_ms": in_flight_ms - exposed_ms,
            "sent_bytes": _sent_bytes(ranks, part),
        }
    return found


def _sent_bytes(ranks: Sequence[BenchRankFacts], part: Part) -> float | None:
    """What a mean rank sends in a step; None where the counted step had other collectives than the profiled one."""
    found = []
    for facts in ranks:
        calls = facts.parts.collectives
        if [kind for kind, _ in calls] != [_kind(name) for name, _ in facts.sent]:
            return None
        found.append(sum(size for (_, of), (_, size) in zip(calls, facts.sent, strict=True) if of == part))
    return float(np.mean(found))


def _kind(operator: str) -> str:
    """As `infnet_rec.benchmark.trace_parts.kind_of` calls it."""
    return operator.replace("_", "").removesuffix("base")


def _imbalance(ranks: Sequence[BenchRankFacts]) -> JSON:
    """Who has most to do, and what would be saved if all had the same."""
    busy = [facts.parts.step_s - sum(facts.parts.exposed_s.values()) for facts in ranks]
    step_s = float(np.mean([facts.parts.step_s for facts in ranks]))
    share = (max(busy) - float(np.mean(busy))) / step_s
    return {"slowest_rank": int(np.argmax(busy)), "share": share, "busiest_over_mean": max(busy) / float(np.mean(busy))}


def _rank(facts: BenchRankFacts) -> JSON:
    parts = facts.parts
    return {
        "rank": facts.rank,
        "step_ms": summary(facts.steps_s),
        "waited_for_data_ms": 1e3 * float(np.mean(facts.waited_s)),
        "profiled_step_ms": 1e3 * parts.step_s,
        "busy_ms": 1e3 * (parts.step_s - sum(parts.exposed_s.values())),
        "spent_ms": {part: 1e3 * s for part, s in parts.spent_s.items()},
        "exposed_ms": {part: 1e3 * s for part, s in parts.exposed_s.items()},
        "in_flight_ms": {part: 1e3 * s for part, s in parts.in_flight_s.items()},
        "peak_bytes": facts.peak_bytes,
        "ids_per_step": facts.ids_per_step,
        "events_per_step": facts.events_per_step,
    }


def _ceilings(of_ranks: Sequence[JSON]) -> JSON:
    """What a mean rank may expect while the others are at work too."""
    rates = [limits["matmul_flops_per_s"] for limits in of_ranks]
    return {
        "copy_bytes_per_s": float(np.mean([limits["copy_bytes_per_s"] for limits in of_ranks])),
        "matmul_flops_per_s": {dtype: float(np.mean([rate[dtype] for rate in rates])) for dtype in rates[0]},
    }


def _rates(
    config: RunConfig, data: RunData, measured: Measured, parts: Mapping[Part, JSON], limits: JSON, step_s: float
) -> JSON:
    """A rank's arithmetic and traffic, against the machine's.

    The tower's FLOPs and bytes are those of its operators, forward and backward; what lookups must move is each row
    read once, and read and written by its optimizer.
    """
    rates = limits["matmul_flops_per_s"]
    # Some processors multiply bfloat16 slower, and nobody has to.
    matmul = max(rates.values()) if config.train.precision == "bf16" else rates["float32"]
    copy = limits["copy_bytes_per_s"]
    tower_s = (parts["tower_forward"]["ms"] + parts["tower_backward"]["ms"]) / 1e3
    table_s = (parts["lookup"]["ms"] + parts["table_update"]["ms"]) / 1e3
    ids = float(np.mean([facts.ids_per_step for facts in measured.ranks]))
    row_bytes = ROW_PASSES * 4 * table_width(config, data.schema) * ids
    tower = measured.tower
    return {
        "tower_flops_per_step": tower.flops,
        "tower_moved_bytes_per_step": tower.moved_bytes,
        "table_bytes_per_step": row_bytes,
        "model_flops_utilisation": tower.flops / step_s / matmul,
        "tower_fraction_of_matmul": tower.flops / max(tower_s, 1e-9) / matmul,
        "tower_fraction_of_copy": tower.moved_bytes / max(tower_s, 1e-9) / copy,
        "table_fraction_of_copy": row_bytes / max(table_s, 1e-9) / copy,
        "bytes_per_s": {
            part: parts[part]["sent_bytes"] / (parts[part]["in_flight_ms"] / 1e3)
            for part in COMMUNICATION
            if parts[part]["sent_bytes"] and parts[part]["in_flight_ms"]
        },
    }


def _epoch(config: RunConfig, data: RunData, world: World, step_s: float, price_per_hour: float | None) -> JSON:
    """What an epoch takes; evaluation and saving aside."""
    steps = data.store.num_examples("train") // config.train.global_batch_size
    rank_hours = steps * step_s * world.world_size / 3600
    cluster, currency = run_cluster(config, world), None
    if price_per_hour is None and cluster.price_per_hour is not None:
        price_per_hour = cluster.price_per_hour / cluster.world_size
        currency = cluster.hardware.currency
    return {
        "num_steps": steps,
        "seconds": steps * step_s,
        "rank_hours": rank_hours,
        "price_per_rank_hour": price_per_hour,
        "currency": currency,
        "price": None if price_per_hour is None else price_per_hour * rank_hours,
    }


TITLES: dict[Part, str] = {
    "data": "waiting for data",
    "input_all_to_all": "input all-to-all",
    "lookup": "lookup",
    "output_all_to_all": "output all-to-all, and back",
    "tower_forward": "tower and loss, forward",
    "tower_backward": "tower and loss, backward",
    "table_update": "update of tables, backward",
    "dense_all_reduce": "all-reduce of dense gradients",
    "optimizer": "dense optimizer",
    "rest": "the rest",
}


def bench_run_lines(result: JSON) -> list[str]:
    """The whole report for people: speed, parts of a step, limits, verdict."""
    return [*_speed(result), "", *_part_lines(result), "", *_limits(result), "", *_verdict(result)]


def _speed(result: JSON) -> list[str]:
    step, ranks, machine = result["step"], result["num_ranks"], result["machine"]
    each = f" ({result['examples_per_s_per_rank']:,.0f} a rank)" if ranks > 1 else ""
    return [
        f"{ranks} rank{'s' * (ranks > 1)}, {result['ranks_per_node']} on this node of {machine['cores']} cores",
        machine_line(machine, result["ceilings"]) + (" a rank, all at once" if ranks > 1 else ""),
        "",
        f"{result['examples_per_s']:,.0f} examples/s{each}",
        f"step of {result['global_batch_size']:,} examples: p50 {step['p50_ms']:,.1f} ms, p95 "
        f"{step['p95_ms']:,.1f} ms, mean {step['mean_ms']:,.1f} +- {step['mean_ms_half_width']:,.1f} ms over "
        f"{step['num_samples']} steps",
    ]


def _part_lines(result: JSON) -> list[str]:
    text = [
        f"{'where a step goes':<32}{'ms':>9}{'share':>8}{'waiting':>10}{'in flight':>11}{'overlapped':>12}"
        f"{'MiB sent':>10}"
    ]
    for part in PARTS:
        fact = result["parts"][part]
        row = f"{TITLES[part]:<32}{fact['ms']:>9,.1f}{fact['share']:>8.1%}"
        if part in COMMUNICATION:
            row += f"{fact['exposed_ms']:>10,.1f}{fact['in_flight_ms']:>11,.1f}{fact['overlapped_ms']:>12,.1f}"
            row += "-".rjust(10) if fact["sent_bytes"] is None else f"{fact['sent_bytes'] / 2**20:>10,.2f}"
        text.append(row)
    profiled, imbalance = result["profiled"], result["imbalance"]
    text.append(f"{'step':<32}{result['step']['mean_ms']:>9,.1f}{1:>8.1%}")
    text += [
        f"shares are of {profiled['num_steps']} steps under the profiler, which took {profiled['times_untouched']:.2f} "
        "times as long; waiting: for other ranks or the network, and nothing else done",
        f"untouched steps waited {result['waited_for_data_ms']:,.1f} ms for data",
    ]
    if result["num_ranks"] > 1:
        text.append(
            f"rank {imbalance['slowest_rank']} has most to do, {imbalance['busiest_over_mean']:.2f} times the mean; "
            f"{imbalance['share']:.1%} of a step is lost by that"
        )
    return text


def _limits(result: JSON) -> list[str]:
    rates, memory = result["rates"], result["memory"]
    text = [
        f"memory: {memory['peak_bytes'] / 2**30:,.2f} GiB {memory['kind']} at the most on a rank",
        f"model FLOPs utilisation: {rates['model_flops_utilisation']:.1%} of the rate of products "
        f"({rates['tower_flops_per_step'] / 1e9:,.2f} GFLOP a rank and step)",
        f"tower: {rates['tower_fraction_of_matmul']:.1%} of the rate of products while it runs; its operators move "
        f"{rates['tower_fraction_of_copy']:.1%} of what a copy moves",
        f"tables: rows move at {rates['table_fraction_of_copy']:.1%} of the rate of a copy",
    ]
    if rates["bytes_per_s"]:
        found = (f"{TITLES[part]} {rate / 1e6:,.0f} MB/s" for part, rate in rates["bytes_per_s"].items())
        text.append("between ranks, a rank while in flight: " + "; ".join(found))
    return text


def _verdict(result: JSON) -> list[str]:
    verdict, epoch = result["verdict"], result["epoch"]
    text = [
        f"{verdict['bound']}-bound: {verdict['because']}",
        f"what would help most: {verdict['change']}; at most {verdict['at_most']:.2f} times faster",
        f"an epoch is {epoch['num_steps']:,} steps, {format_duration(epoch['seconds'])}, "
        f"{epoch['rank_hours']:.4g} rank hours",
    ]
    if epoch["price"] is not None:
        unit = f" {epoch['currency']}" if epoch["currency"] else ""
        text[-1] += f"; at {epoch['price_per_rank_hour']:,.2f}{unit} a rank hour {epoch['price']:,.4g}{unit}"
    return text
