"""The files of `attention`: all numbers as JSON and CSV, tables and pictures in one Markdown page."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infnet_rec.analysis import pictures
from infnet_rec.experiments.report_text import header, line
from infnet_rec.files import write_json

MARKDOWN, NUMBERS, TABLE = "attention.md", "attention.json", "attention.csv"
PARTS = ("sequences", "behaviours", "attributes")
SHOWN_FIELDS = 10

JSON = dict[str, Any]


def names_of(result: JSON) -> list[str]:
    """All files, the one to open first."""
    return [MARKDOWN, TABLE, NUMBERS, *_pictures(result)]


def _pictures(result: JSON) -> list[str]:
    parts = ["fields.png", *(["sequences.png", "behaviours.png"] if _has_events(result) else [])]
    gates = ["gates.png"] if result["gates"] else []
    return [*parts, *gates, *(f"example-{example['row']}.png" for example in result["examples"])]


def _has_events(result: JSON) -> bool:
    return result["num_examples_with_events"] > 0


def write_attention_files(result: JSON, folder: Path) -> None:
    """Writes everything into an empty folder."""
    write_json(folder / NUMBERS, result)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "of", "name", "position", "share", "std", "even", "times_even", "num_examples"])
        writer.writerows(_rows(result))
    pictures.draw_attention(result, folder, _pictures(result))
    (folder / MARKDOWN).write_text("\n".join(_page(result)), encoding="utf-8")


def _rows(result: JSON) -> Iterator[list[Any]]:
    """A row for each query and each field, part of the history and position."""
    for query in result["queries"]:
        for of in ("fields", *PARTS):
            for part in result.get(of, []):
                found = part["attention"][query]
                numbers = [found["share"], found["std"], part["even"], found["times_even"], part["num_examples"]]
                yield [query, of, part["name"], "", *numbers]
        for sequence in result["positions"]:
            num_positions = len(sequence["num_examples"])
            for place, num_examples in enumerate(sequence["num_examples"]):
                share, times = sequence["share"][query][place], sequence["times_even"][query][place]
                if num_examples:
                    position = place - num_positions
                    yield [query, "positions", sequence["name"], position, share, "", "", times, num_examples]


def _page(result: JSON) -> list[str]:
    lines = [*_heading(result), *_fields_section(result)]
    if _has_events(result):
        lines += _events_section(result)
    if result["gates"]:
        lines += _gates_section(result)
    for example in result["examples"]:
        lines += _example_section(example)
    return lines


def _heading(result: JSON) -> list[str]:
    model, of = result["model"], result["num_examples_of_split"]
    which = "all" if result["num_examples"] == of else f"{result['num_examples']:,} evenly spread ones of the {of:,}"
    heads = f", means over {model['num_heads']} heads" if model["num_heads"] > 1 else ""
    return [
        f"# Attention of {result['dataset']['name']}'s tasks",
        "",
        "Made by `infnet-rec attention`; not to be edited. "
        f"Step {result['checkpoint']['step']} of `{result['checkpoint']['where']}`; {which} examples of "
        f"{result['split']}; the last of {model['num_blocks']} blocks{heads}.",
        "",
        "The token of each task, and each shared task token, reads the categorical fields and, apart from them, all "
        "events of all sequences: two softmaxes, so shares sum to 1 over the fields and once more over the events. "
        "*Times even* is the share divided by what everything would get if the query told nothing apart: 1 / fields, "
        "or 1 / events of the example. A share is a weight on a token's value, not proof that the prediction hangs "
        "on it.",
        "",
    ]


def _fields_section(result: JSON) -> list[str]:
    queries, fields = result["queries"], result["fields"]
    ranked = {q: sorted(fields, key=lambda f: -f["attention"][q]["share"])[:SHOWN_FIELDS] for q in queries}
    lines = [
        "## What each task attends to most",
        "",
        f"Mean share of the {len(fields)} fields, and times even ({_percent(1 / len(fields))}).",
        "",
        *header(["", *queries]),
    ]
    for place in range(min(SHOWN_FIELDS, len(fields))):
        cells = [(ranked[q][place], ranked[q][place]["attention"][q]) for q in queries]
        lines.append(
            line(
                [str(place + 1), *(f"{f['name']} {_percent(a['share'])} ({_times(a['times_even'])})" for f, a in cells)]
            )
        )
    effective = result["effective_number"]["fields"]
    lines.append(line(["fields as if", *(f"{effective[q]:.1f} of {len(fields)}" for q in queries)]))
    return [
        *lines,
        "",
        "*Fields as if*: e to the entropy of an example's shares, on average; all of them where attention is even.",
        "",
        "![Attention to the categorical fields](fields.png)",
        "",
    ]


def _events_section(result: JSON) -> list[str]:
    queries, with_events = result["queries"], result["num_examples_with_events"]
    lines = [
        "## Histories",
        "",
        f"Of the {with_events:,} examples with events, {result['events_per_example']:,.1f} tokens each (one for every "
        "event and attribute). *Even* is the part of an example's tokens that are of this kind.",
        "",
        *header(["", "examples", "even", *queries]),
    ]
    for of in ("behaviours", "attributes"):
        for part in result[of]:
            shares = (part["attention"][q] for q in queries)
            cells = [f"{_percent(a['share'])} ({_times(a['times_even'])})" for a in shares]
            lines.append(line([part["name"], f"{part['num_examples']:,}", _percent(part["even"]), *cells]))
    effective = result["effective_number"]["events"]
    lines.append(line(["tokens as if", "", "", *(f"{effective[q]:.1f}" for q in queries)]))
    return [
        *lines,
        "",
        "![Attention to behaviours and attributes](behaviours.png)",
        "",
        "![Attention to the positions of all sequences](sequences.png)",
        "",
    ]


def _gates_section(result: JSON) -> list[str]:
    quantiles = list(result["gates"][0]["quantiles"])
    offset = result["model"]["residual"] in ("both", "gate")
    lines = [
        "## Gates",
        "",
        "The sigmoid of each proxy gated unit, over examples and dimensions"
        + ("; tokens are multiplied by 1 more, because `residual` says so" if offset else "")
        + ". The last block gates task tokens only: nothing reads the others after it.",
        "",
        *header(["block", "tokens", "mean", "std", "std between examples", *(f"{float(q):.0%}" for q in quantiles)]),
    ]
    for gate in result["gates"]:
        numbers = [gate[key] for key in ("mean", "std", "std_between_examples")]
        numbers += [gate["quantiles"][q] for q in quantiles]
        lines.append(line([str(gate["block"]), gate["tokens"], *(f"{number:.3f}" for number in numbers)]))
    return [*lines, "", "![Gates](gates.png)", ""]


def _example_section(example: JSON) -> list[str]:
    labels = ", ".join(
        f"{task} {label} (predicted {example['predicted'][task]:.3f})" for task, label in example["labels"].items()
    )
    events = ", ".join(f"{number} {behaviour}" for behaviour, number in example["events"].items() if number)
    return [
        f"## Example {example['row']}: user {example['user']}, item {example['item']}",
        "",
        f"{labels}. Events: {events or 'none'}.",
        "",
        f"![Attention of example {example['row']}](example-{example['row']}.png)",
        "",
    ]


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
