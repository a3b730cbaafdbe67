"""The result of `bench run` for people."""

from typing import Any

from infnet_rec.bench.spans import COMMUNICATION, PARTS, Part
from infnet_rec.commands.bench_tower import machine_line
from infnet_rec.train.report import clock

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

JSON = dict[str, Any]


def lines(result: JSON) -> list[str]:
    """All of it."""
    return [*_speed(result), "", *_parts(result), "", *_limits(result), "", *_verdict(result)]


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


def _parts(result: JSON) -> list[str]:
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
        f"an epoch is {epoch['num_steps']:,} steps, {clock(epoch['seconds'])}, {epoch['rank_hours']:.4g} rank hours",
    ]
    if epoch["price"] is not None:
        unit = f" {epoch['currency']}" if epoch["currency"] else ""
        text[-1] += f"; at {epoch['price_per_rank_hour']:,.2f}{unit} a rank hour {epoch['price']:,.4g}{unit}"
    return text
