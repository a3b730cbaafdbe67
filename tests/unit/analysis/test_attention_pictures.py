"""Attention's sums by hand, and pictures of numbers that other datasets may give.

Shapes: B examples, Q queries, M fields, F sequences, S positions, D width.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infnet_rec.analysis import files, pictures
from infnet_rec.analysis.sums import Names, Sums
from infnet_rec.models.infnet.recorder import Recorded

NAMES = Names(
    queries=("click", "shared 1"),
    num_tasks=1,
    fields=("user_id", "tag"),
    sides=("user", "item"),
    sequences=(("click", "id"), ("click", "tag"), ("like", "id")),
    num_positions=3,
)


def recorded() -> Recorded:
    """Two examples: one with three clicks and a like, all even but for the tag of the last click; one without any."""
    event_BQFS = torch.zeros(2, 2, 3, 3)
    event_BQFS[0, :, :2] = 1 / 8
    event_BQFS[0, :, 1, 2] = 2 / 8
    event_BQFS[0, :, 2, 2] = 0.0
    field_BQM = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]])
    gate_BD = torch.tensor([[0.2, 0.8], [0.4, 0.8]])
    return Recorded(field_BQM, event_BQFS, torch.tensor([[3, 0], [3, 0], [1, 0]]), {(1, "task"): gate_BD})


def test_sums_by_hand() -> None:
    sums = Sums(NAMES)
    sums.add(recorded(), 2)
    result = sums.to_json()
    assert (result["num_examples"], result["num_examples_with_events"], result["events_per_example"]) == (2, 1, 7.0)
    tag = result["fields"][1]["attention"]
    assert tag["click"] == {"share": 0.5, "std": 0.0, "times_even": 1.0}
    assert tag["shared 1"] == {"share": 0.5, "std": 0.5, "times_even": 1.0}
    assert result["effective_number"]["fields"] == {"click": 2.0, "shared 1": 1.0}
    click, like = result["behaviours"]
    assert click["attention"]["click"] == {"share": 7 / 8, "std": 0.0, "times_even": pytest.approx(49 / 48, rel=1e-5)}
    assert like["even"] == pytest.approx(1 / 7, rel=1e-5) and like["attention"]["click"]["share"] == 0.0
    assert result["attributes"][1]["attention"]["shared 1"]["share"] == 0.5
    second = result["positions"][1]
    assert second["num_examples"] == [1, 1, 1] and second["share"]["click"] == [0.125, 0.125, 0.25]
    assert second["times_even"]["click"] == [0.875, 0.875, 1.75]
    assert result["positions"][2]["share"]["click"] == [None, None, 0.0]
    (gate,) = result["gates"]
    assert (gate["block"], gate["tokens"]) == (2, "task")
    assert gate["mean"] == pytest.approx(0.55) and gate["std"] == pytest.approx(np.std([0.2, 0.8, 0.4, 0.8]), rel=1e-5)
    assert gate["std_between_examples"] == pytest.approx(0.1 / np.sqrt(2), rel=1e-5)
    assert gate["quantiles"]["0.5"] == pytest.approx(0.4, abs=1e-3)
    assert gate["quantiles"]["0.95"] == pytest.approx(0.8, abs=1e-3)


def many(num_fields: int, num_queries: int, *, with_events: bool) -> dict[str, Any]:
    """What another dataset might give."""
    rng = np.random.default_rng(0)
    lengths_FB = torch.full((3, 40), 3 if with_events else 0)
    names = Names(
        queries=tuple(f"a_rather_long_task_{q}" for q in range(num_queries)),
        num_tasks=num_queries,
        fields=tuple(f"a_feature_with_a_long_name_{m}" for m in range(num_fields)),
        sides=("user", "item", "context", *["item"] * num_fields)[:num_fields],
        sequences=NAMES.sequences,
        num_positions=3,
    )
    field_BQM = torch.from_numpy(rng.dirichlet(np.ones(num_fields), (40, num_queries)))
    event_BQFS = torch.from_numpy(rng.dirichlet(np.ones(9), (40, num_queries))).unflatten(2, (3, 3))
    sums = Sums(names)
    sums.add(Recorded(field_BQM, event_BQFS * with_events, lengths_FB, {(0, "sequence"): torch.rand(40, 8)}), 40)
    example = {
        "row": 3,
        "user": 1,
        "item": 2,
        "labels": dict.fromkeys(names.queries, 0),
        "predicted": dict.fromkeys(names.queries, 0.5),
        "events": {},
        "num_tokens": 0,
        "fields": {query: field_BQM[0, q].tolist() for q, query in enumerate(names.queries)},
        "positions": {query: [[], [], []] for query in names.queries},
    }
    whole = {"num_examples_of_split": 40, "split": "test", "queries": list(names.queries), "tasks": list(names.queries)}
    return {**whole, **sums.to_json(), "examples": [example]}


@pytest.mark.parametrize(("num_fields", "num_queries"), [(1, 1), (50, 7)])
def test_names_of_columns_do_not_run_into_each_other(
    num_fields: int, num_queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_FIELDS", 48)
    result = many(num_fields, num_queries, with_events=True)
    figures = [pictures.fields(result), pictures.sequences(result), pictures.behaviours(result)]
    figures += [pictures.gates(result), pictures.example_picture(result, result["examples"][0])]
    for figure in figures:
        figure.canvas.draw()
        width, height = figure.get_size_inches() * figure.dpi
        for axes in figure.axes:
            names = [label for label in axes.get_xticklabels() if label.get_text() and axes.axison]
            boxes = sorted((label.get_window_extent() for label in names), key=lambda box: box.x0)
            assert all(a.x1 < b.x0 for a, b in pairwise(boxes)), [n.get_text() for n in names]
            rows = [label.get_window_extent() for label in axes.get_yticklabels() if axes.axison]
            assert all(min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height for box in rows)


def test_a_split_without_histories_has_pictures_of_its_fields(tmp_path: Path) -> None:
    result = many(5, 2, with_events=False)
    assert result["num_examples_with_events"] == 0 and "behaviours" not in result
    pictures.draw_attention(result, tmp_path, files._pictures(result))
    assert {path.name for path in tmp_path.iterdir()} == {"fields.png", "gates.png", "example-3.png"}
