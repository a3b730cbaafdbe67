"""`infnet-rec attention`: its numbers, its files, and what it refuses.

Shapes: Q queries, M fields, F sequences, S positions.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharded_runs
from infnet_rec import cli
from infnet_rec.analysis import attention as command
from infnet_rec.analysis import pictures as attention_plot
from infnet_rec.data.store import Store
from infnet_rec.trainer.train import train
from test_rank_environment import rank_environ
from test_stats_plot import png_size

TINY = ["data.sequence_length=4", "data.profile=safe", "model.num_heads=2"]
TRAINED = ["train.num_epochs=0.2", "train.num_threads=1", "train.dense.lr=0.03", "train.sparse.lr=0.3"]
NUM_EXAMPLES = 200


@pytest.fixture(scope="module")
def run_dir(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention") / "run"
    train(sharded_runs.CONFIG, [f"data.store={small_store}", *TINY, *TRAINED], folder)
    return folder


@pytest.fixture(scope="module")
def made(small_store: Path, run_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The folder, and what it was made of."""
    out = run_dir.parent / "pictures"
    asked = command.AttentionArgs(str(run_dir), "test", NUM_EXAMPLES)
    return out, command.write_attention(sharded_runs.CONFIG, [f"data.store={small_store}", *TINY], asked, out)


def test_shares_add_up(made: tuple[Path, dict[str, Any]]) -> None:
    result = made[1]
    assert result["num_examples"] == NUM_EXAMPLES < result["num_examples_of_split"]
    assert result["queries"] == ["click", "like", "long_view", "shared 1", "shared 2"]
    with_events = result["num_examples_with_events"]
    assert 0 < with_events <= NUM_EXAMPLES
    for query in result["queries"]:
        for part in ("fields", "sequences", "behaviours", "attributes"):
            assert sum(p["attention"][query]["share"] for p in result[part]) == pytest.approx(1, abs=1e-4)
            assert sum(p["even"] for p in result[part]) == pytest.approx(1, abs=1e-4)
        # Positions are means over other examples than whole sequences are: those that have an event there.
        for sequence, positions in zip(result["sequences"], result["positions"], strict=True):
            shares = [s or 0.0 for s in positions["share"][query]]
            total = np.dot(shares, positions["num_examples"]) / with_events
            assert sequence["name"] == positions["name"]
            assert sequence["attention"][query]["share"] == pytest.approx(total, abs=1e-5)
    shares = [f["attention"]["click"]["share"] for f in result["fields"]]
    assert max(shares) > 1.05 * min(shares), "nothing was learned"


def test_batches_and_their_padding_do_not_matter(
    made: tuple[Path, dict[str, Any]], small_store: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 examples as 67 and 67 and 66, from the checkpoint itself."""
    monkeypatch.setattr(command, "BATCH_SIZE", 67)
    monkeypatch.setattr(command.files, "write_attention_files", lambda *_: None)
    (checkpoint,) = (run_dir / "checkpoints").glob("step-*")
    asked = command.AttentionArgs(str(checkpoint), "test", NUM_EXAMPLES)
    again = command.write_attention(sharded_runs.CONFIG, [f"data.store={small_store}", *TINY], asked, tmp_path / "out")

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict | list):
            return [x for part in (value.values() if isinstance(value, dict) else value) for x in numbers(part)]
        return [value] if isinstance(value, int | float) else []

    keys = ("fields", "behaviours", "positions", "examples", "effective_number")
    for key in keys:
        assert numbers(again[key]) == pytest.approx(numbers(made[1][key]), rel=1e-3, abs=1e-6), key
    for gate, other in zip(again["gates"], made[1]["gates"], strict=True):
        assert [gate["mean"], gate["std"]] == pytest.approx([other["mean"], other["std"]], rel=1e-4)


def test_single_examples_are_the_splits_own(made: tuple[Path, dict[str, Any]], small_store: Path) -> None:
    positive, negative = made[1]["examples"]
    store = Store(small_store)
    examples = store.examples("test")
    assert any(positive["labels"].values()) and not any(negative["labels"].values())
    assert positive["user"] != negative["user"]
    for example in (positive, negative):
        row = example["row"]
        assert example["labels"] == {task: int(column[row]) for task, column in examples.labels.items()}
        assert example["user"] == store.user_keys[int(examples.user_N[row])].as_py()
        assert example["events"] == {b: min(int(examples.seen[b][row]), 4) for b in example["events"]}
        for query in made[1]["queries"]:
            assert sum(example["fields"][query]) == pytest.approx(1, abs=1e-4)
            assert sum(map(sum, example["positions"][query])) == pytest.approx(1, abs=1e-4)
    lengths = [e["num_tokens"] for e in (positive, negative)]
    mean = made[1]["events_per_example"]
    assert min(lengths) > mean


def test_every_file_is_there_and_the_page_shows_every_picture(made: tuple[Path, dict[str, Any]]) -> None:
    out, result = made
    pictures = ["fields.png", "sequences.png", "behaviours.png", "gates.png"]
    pictures += [f"example-{example['row']}.png" for example in result["examples"]]
    assert {path.name for path in out.iterdir()} == {"attention.md", "attention.json", "attention.csv", *pictures}
    page = (out / "attention.md").read_text()
    for name in pictures:
        assert min(png_size(out / name)) > 300 and f"]({name})" in page
    assert json.loads((out / "attention.json").read_text())["fields"] == result["fields"]
    best = max(result["fields"], key=lambda f: f["attention"]["like"]["share"])
    first = next(line for line in page.splitlines() if line.startswith("| 1 | "))
    assert first.split(" | ")[2].startswith(f"{best['name']} ")

    rows = list(csv.DictReader((out / "attention.csv").read_text().splitlines()))
    per_query = [len(result[part]) for part in ("fields", "sequences", "behaviours", "attributes")]
    per_query.append(sum(n > 0 for s in result["positions"] for n in s["num_examples"]))
    assert len(rows) == 5 * sum(per_query)
    row = next(r for r in rows if (r["query"], r["of"], r["position"]) == ("shared 2", "positions", "-1"))
    assert float(row["share"]) == result["positions"][0]["share"]["shared 2"][-1]


def test_the_same_numbers_give_the_same_bytes(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = made
    attention_plot.draw_attention(result, tmp_path, ["behaviours.png", "gates.png"])
    monkeypatch.setattr(attention_plot, "draw_attention", lambda *_: None)
    command.files.write_attention_files({key: value for key, value in result.items() if key != "out"}, tmp_path)
    paths = list(tmp_path.iterdir())
    assert len(paths) == 5
    for path in paths:
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


REFUSED = {
    "another model": (["model={name='fm', width=8}"], {}, 'model.name is "fm": attention is drawn for "infnet" alone'),
    "no task tokens": (["model.ablation=no_task_tokens"], {}, "it has no task tokens"),
    "deaf task tokens": (["model.ablation=no_cross_attention"], {}, "its task tokens read nothing"),
    "weights that would fit all the same": (
        ["model.residual=none", "data.sequence_length=3", "model.attention=eager"],
        {},
        "is of a run with other settings\n"
        "  data.sequence_length = 3, was 4\n  model.residual = 'none', was 'both'\nset them as they were, with --set",
    ),
    "no such split": ([], {"--split": "tset"}, "(did you mean 'test'?)"),
    "no such example": ([], {"--example": "600000"}, "--example 600000: test has "),
    "no checkpoint": ([], {"--checkpoint": "nowhere"}, "nowhere: holds no checkpoint"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infnet-rec", "attention", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def arguments(store: Path, run_dir: Path, out: Path, overrides: list[str], options: dict[str, str]) -> list[str]:
    chosen = {"--checkpoint": str(run_dir), "--out": str(out), **options}
    sets = [f"--set={override}" for override in (f"data.store={store}", *TINY, *overrides)]
    return [str(sharded_runs.CONFIG), *sets, *(f"{name}={value}" for name, value in chosen.items())]


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_message(case: str, run: Any, small_store: Path, run_dir: Path, tmp_path: Path) -> None:
    overrides, options, message = REFUSED[case]
    code, out, err = run(*arguments(small_store, run_dir, tmp_path / "out", overrides, options))
    assert (code, out) == (2, "") and err.startswith("infnet-rec: fault: ") and message in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_and_several_ranks_are_refused(
    run: Any, small_store: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("dear to someone")
    monkeypatch.setattr(command, "shard_model", lambda *_: pytest.fail("began"))
    code, _, err = run(*arguments(small_store, run_dir, tmp_path, [], {}))
    assert code == 2 and "not empty, and nothing is overwritten" in err
    for name, value in rank_environ(rank=0, world_size=2).items():
        monkeypatch.setenv(name, value)
    code, _, err = run(*arguments(small_store, run_dir, tmp_path / "new", [], {}))
    assert code == 2 and "works on one rank, and torchrun started 2" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_store_of_other_bytes_is_refused_and_a_failure_leaves_nothing(
    run: Any, small_store: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "fingerprint", "another")
    code, _, err = run(*arguments(small_store, run_dir, tmp_path / "out", [], {}))
    assert code == 2 and "it has fingerprint another, that one" in err
    monkeypatch.undo()
    monkeypatch.setattr(attention_plot, "draw_attention", lambda *_: 1 / 0)
    asked = command.AttentionArgs(str(run_dir), "valid", 3, (0,))
    with pytest.raises(ZeroDivisionError):
        command.write_attention(sharded_runs.CONFIG, [f"data.store={small_store}", *TINY], asked, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_people_are_told_what_is_attended_to_most(
    run: Any, small_store: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        attention_plot, "draw_attention", lambda _, folder, names: [(folder / name).touch() for name in names]
    )
    out = tmp_path / "out"
    options = {"--examples": "3", "--split": "valid", "--example": "7"}
    code, said, _ = run(*arguments(small_store, run_dir, out, [], options))
    assert code == 0 and said.startswith("3 evenly spread of ") and f"{out}/example-7.png" in said
    assert len(list(out.iterdir())) == 8
