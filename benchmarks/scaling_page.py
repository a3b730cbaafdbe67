"""Results of `benchmarks/scaling.py` for people."""

from collections.abc import Sequence
from typing import Any

from benchmarks.scaling_simulated import BASE_GPUS, KINDS, assumptions, efficiency
from infnet_rec.benchmark.report import TITLES
from infnet_rec.planner.report.text import STEP_WORDS

# A load of this many runnable processes beside our own makes measured ratios worthless.
QUIET = 1.0
WORDS = {**STEP_WORDS, "latency_ms": "latency of collectives (assumed)", "waits_ms": "waiting for ids or the loader"}

JSON = dict[str, Any]


def page(results: JSON) -> str:
    """Everything; what was measured apart from what was simulated."""
    lines = [
        "# Scaling",
        "",
        "`python -m benchmarks.scaling`; how stands at its top.",
        "",
        "![scaling](scaling.png)",
        "",
    ]
    if measured := results.get("measured"):
        lines += measured_lines(measured)
    if simulated := results.get("simulated"):
        lines += simulated_lines(simulated)
    return "\n".join(lines).rstrip() + "\n"


def measured_lines(measured: JSON) -> list[str]:
    """This machine."""
    machine, rows = measured["machine"], measured["scaling"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "## Measured, on this machine",
        "",
        f"`{measured['asked']['config']}`, {machine['cores']} cores of {machine['name']} ({machine['device']}), one "
        f"thread a rank; {versions}; {machine['date']}. Weak: as many examples a rank; strong: the same global batch. "
        "Efficiency is examples/s over ranks times the examples/s of one rank in the same round; medians, and from the "
        "lowest to the highest of all rounds. With as many ranks as cores, the loader and gloo share the cores that "
        "ranks compute on; a rank alone leaves them the rest.",
        "",
        *busy(rows, machine["cores"]),
        "| scaling | ranks | global batch | examples/s | efficiency | from to | rounds | load before |",
        "|---|--:|--:|--:|--:|---|--:|---|",
    ]
    for row in rows:
        spread = "-" if row["num_rounds"] == 1 else f"{row['efficiency_low']:.2f} to {row['efficiency_high']:.2f}"
        low, high = row["load_before"]
        lines.append(
            f"| {row['kind']} | {row['num_ranks']} | {row['global_batch_size']:,} | {row['examples_per_s']:,.0f} | "
            f"**{row['efficiency']:.2f}** | {spread} | {row['num_rounds']} | {low:.1f} to {high:.1f} |"
        )
    return [*lines, "", *part_lines(rows), ""]


def busy(rows: Sequence[JSON], cores: int) -> list[str]:
    """A warning, where others were at work."""
    # What our own last run leaves in the average is no more than its ranks and their loaders.
    load = max(row["load_before"][1] for row in rows)
    if load <= cores + QUIET:
        return []
    return [
        f"**The machine was busy with other work (load up to {load:.1f} on {cores} cores): these efficiencies say "
        "little, and are to be measured again.**",
        "",
    ]


def part_lines(rows: Sequence[JSON]) -> list[str]:
    """Where a step goes, a column a run."""
    runs = [row for row in rows if row["kind"] == "weak" or row["num_ranks"] > 1]
    heads = [f"{row['num_ranks']} ({row['kind']})" if row["num_ranks"] > 1 else "1" for row in runs]
    lines = [
        "ms a step by part, means of ranks and rounds; of communication, what was waited for and what was in flight:",
        "",
        f"| part, ranks | {' | '.join(heads)} |",
        f"|---|{'--:|' * len(runs)}",
    ]
    for part, title in TITLES.items():
        cells = []
        for row in runs:
            fact = row["parts"][part]
            more = f" ({fact['exposed_ms']:.1f}, {fact['in_flight_ms']:.1f})" if "exposed_ms" in fact else ""
            cells.append(f"{fact['ms']:.1f}{more}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    totals = [f"{row['step_ms']:.1f}" for row in runs]
    return [*lines, f"| step | {' | '.join(totals)} |"]


def simulated_lines(simulated: JSON) -> list[str]:
    """The cluster that nobody has here."""
    lines = [
        "## SIMULATED, not measured: 8 to 1,024 GPUs",
        "",
        f"`{simulated['config']}` by the planner's estimates, on these assumptions:",
        "",
        *(f"- {line}" for line in assumptions(simulated)),
        "",
        f"Efficiency is relative to one node of {BASE_GPUS} GPUs (one GPU alone exchanges nothing and is above 1); in "
        "brackets without latency. The last column says how many times faster than needed the loader would read.",
        "",
    ]
    for kind in KINDS:
        lines += [*kind_lines(simulated, kind), ""]
    return lines


def kind_lines(simulated: JSON, kind: str) -> list[str]:
    """One table."""
    rows = [row for row in simulated["rows"] if row["kind"] == kind]
    base = next(row for row in rows if row["gpus"] == BASE_GPUS)
    size = f"{base['local_batch_size']:,} examples a GPU" if kind == "weak" else f"{base['global_batch_size']:,} in all"
    parts = [part for part in WORDS if any(row["parts"][part] for row in rows if "parts" in row)]
    lines = [
        f"### {kind.capitalize()} scaling, SIMULATED: {size}",
        "",
        f"| GPUs | examples/s | efficiency | step, ms | {' | '.join(WORDS[part] for part in parts)} | loader |",
        f"|--:|--:|--:|--:|{'--:|' * len(parts)}--:|",
    ]
    for row in rows:
        if "fault" in row:
            lines.append(f"| {row['gpus']:,} | {row['fault'].split(';')[0]} |" + " |" * (len(parts) + 3))
            continue
        found, planned = (
            efficiency(row[key], row["gpus"], base[key], BASE_GPUS)
            for key in ("examples_per_s", "planned_examples_per_s")
        )
        loader = row["beside"]["loader_ms"]
        cells = [f"{row['parts'][part]:.2f}" for part in parts]
        times = f"{row['step_ms'] / loader:.1f}" if loader else "-"
        lines.append(
            f"| {row['gpus']:,} | {row['examples_per_s']:,.0f} | **{found:.2f}** ({planned:.2f}) | "
            f"{row['step_ms']:.2f} | {' | '.join(cells)} | {times} |"
        )
    return lines
