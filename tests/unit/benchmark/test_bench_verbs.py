"""The verbs of `infnet-rec bench`: what they answer, leave behind and refuse."""

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from infnet_rec import cli
from infnet_rec.benchmark.forms import tower_verb
from infnet_rec.errors import UserError

CONFIG = Path(__file__).parents[2] / "small.toml"
TINY = ["--set=train.global_batch_size=8", "--set=data.sequence_length=3", "--set=model.width=8", "--rounds=1"]


@pytest.fixture(autouse=True)
def small_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits are not what is tested."""
    monkeypatch.setattr("infnet_rec.benchmark.machine.COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("infnet_rec.benchmark.machine.MATMUL_SIZES", (64,))
    monkeypatch.setattr("infnet_rec.benchmark.samples.MIN_ROUND_S", 0.01)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.mark.parametrize("ragged", [[], ["--ragged"]])
def test_the_tower_verb_without_a_configuration(ragged: list[str]) -> None:
    answer = json.loads(invoke("tower", *TINY, "--device=cpu", "--json", *ragged).stdout)
    assert answer["bench"] == "tower"
    assert answer["shape"]["num_features"] == 89 and answer["shape"]["num_sequences"] == 28
    assert (answer["shape"]["events_per_example"] < 84) == bool(ragged)
    assert answer["ceilings"]["copy_bytes_per_s"] > 0
    assert answer["ceilings"]["matmul_flops_per_s"].keys() == {"float32", "bfloat16"}
    assert answer["machine"]["versions"]["torch"] == metadata.version("torch")
    assert answer["passes"]["forward_backward"]["forms"].keys() == {"literal", "eager"}


def test_the_tower_verb_with_a_configuration(small_store: Path) -> None:
    answer = invoke("tower", CONFIG, f"--set=data.store={small_store}", "--rounds=1", "--device=cpu", "--ragged")
    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("batch 64: 89 features, 28 sequences with ")
    assert any(line.startswith("of the roofline") for line in lines)
    assert lines[-1].startswith("eager: ")


@pytest.mark.slow
def test_the_sweep_leaves_a_picture_and_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnet_rec.benchmark.forms.tower_verb.LENGTHS", (1, 2, 3))
    monkeypatch.setattr("infnet_rec.benchmark.forms.tower_verb.WIDTHS", (4,))
    picture = tmp_path / "sweep.png"
    for _ in range(2):
        answer = invoke("tower", *TINY, "--device=cpu", "--sweep", picture)
        assert answer.exit_code == 0, answer.output
    points = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [(p["shape"]["width"], p["shape"]["most_events_of_a_sequence"]) for p in points] == [
        (width, length) for width in (4, 8) for length in (1, 2, 3)
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.jsonl", "sweep.png"]


def test_a_file_that_is_no_sweep_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_text("mine")
    with pytest.raises(UserError, match="is no sweep"):
        tower_verb.check_sweep_files(tmp_path / "sweep.png")


@pytest.mark.slow
def test_the_embedding_verb(small_store: Path) -> None:
    answer = invoke("embedding", CONFIG, f"--set=data.store={small_store}", "--rounds=1", "--json")
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout.splitlines()[-1])
    distinct, tokens = result["lookups"]["distinct"], result["lookups"]["every_token"]
    assert distinct["tokens"] == tokens["tokens"] == tokens["ids"] > distinct["ids"]
    assert result["tokens_per_distinct_id"] == pytest.approx(tokens["ids"] / distinct["ids"])
    assert distinct["forward_bytes_between_ranks"] == tokens["backward_bytes_between_ranks"] == 0
    assert distinct["forward_backward_tokens_per_s"] > 0


def test_the_step_verb(small_store: Path) -> None:
    """Its own check is that all four variants start with the same loss."""
    answer = invoke("step", CONFIG, f"--set=data.store={small_store}", "--rounds=1", "--json")
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout.splitlines()[-1])
    assert len(result["steps"]) == 4
    first, *others = (fact["first_loss"] for fact in result["steps"].values())
    assert all(loss == pytest.approx(first, abs=1e-5) for loss in others)
    assert result["times_plain_with_reading"] < result["steps"]["ours"]["times_plain"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tower", "--device=gpu"], ["--device 'gpu'", "cpu, cuda"]),
        (["tower", "--device=cuda"], ["no GPU here"]),
        (["tower", "--set=model.widht=8"], ["widht", "did you mean 'width'"]),
        (["tower", "--sweep=sweep.txt"], ["end its name with .png"]),
        (["tower", str(CONFIG)], ["store"]),
        (["embedding", str(CONFIG)], ["store"]),
        (["step", "nothing.toml"], ["nothing.toml"]),
        (["input", "nothing.toml"], ["nothing.toml"]),
        (["run", str(CONFIG)], ["store"]),
        (["run", str(CONFIG), "-j", "1x2"], ["store"]),
        (["run", str(CONFIG), "-j", "2x2"], ["-j 2x2", "1x2"]),
        (["run", str(CONFIG), "-j", "two"], ["-j two", "NODESxRANKS"]),
        (["compare", "nothing.json", "b.json"], ["nothing.json", "no such file"]),
    ],
)
def test_faults_end_with_one_message_and_code_2(
    arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("sys.argv", ["infnet-rec", "bench", *arguments])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    text = capsys.readouterr().err
    assert ended.value.code == 2
    assert text.startswith("infnet-rec: fault: ") and all(word in text for word in words), text
