"""What a measurement says in words, how sure a ratio is, and which results may be compared."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infnet_rec import cli
from infnet_rec.benchmark.bottleneck import Setting, judge
from infnet_rec.benchmark.compare import compare_results, comparison_lines
from infnet_rec.benchmark.run import BenchArgs
from infnet_rec.benchmark.samples import half_width, percentile, ratio, summary
from infnet_rec.benchmark.trace import COMMUNICATION, PARTS, Part
from infnet_rec.errors import UserError
from test_rank_environment import rank_environ

CPU = Setting(on_gpu=False, loader_threads=1, communication="fp32", precision="fp32", spare_cores=0)
GPU = Setting(on_gpu=True, loader_threads=1, communication="fp32", precision="fp32", spare_cores=8)


def verdict(setting: Setting, imbalance: float = 0.0, waits: dict[str, float] | None = None, **spent: float) -> Any:
    """Of made-up shares; what is missing to 1 is the tower's backward pass."""
    shares: dict[Part, float] = {part: spent.get(part, 0.0) for part in PARTS}
    shares["tower_backward"] += 1 - sum(shares.values())
    return judge(shares, {part: (waits or {}).get(part, 0.0) for part in COMMUNICATION}, imbalance, setting)


def test_input_bound() -> None:
    found = verdict(GPU, data=0.5)
    assert found.bound == "input" and found.at_most == pytest.approx(2) and "data.loader_threads, now 1" in found.change
    assert verdict(CPU, data=0.5).change != found.change
    # A little waiting is no reason.
    assert verdict(GPU, data=0.05).bound == "compute"


def test_communication_bound() -> None:
    waits = {"output_all_to_all": 0.5, "input_all_to_all": 0.1}
    found = verdict(GPU, waits=waits, output_all_to_all=0.5, input_all_to_all=0.15, data=0.12)
    assert found.bound == "communication" and "bf16" in found.change
    # Half the bytes save half of that exchange at most.
    assert found.at_most == pytest.approx(1 / 0.75)
    assert "fp16" in verdict(CPU, waits=waits, output_all_to_all=0.5, input_all_to_all=0.15).change
    uneven = verdict(GPU, imbalance=0.4, waits=waits, output_all_to_all=0.5, input_all_to_all=0.15)
    assert "work out" in uneven.change and uneven.at_most == pytest.approx(1 / 0.6)
    reduce = verdict(GPU, waits={"dense_all_reduce": 0.6}, dense_all_reduce=0.6)
    assert "global_batch_size" in reduce.change and reduce.at_most == pytest.approx(2.5)


def test_exchange_behind_work_is_no_reason() -> None:
    assert verdict(GPU, output_all_to_all=0.3, waits={"output_all_to_all": 0.05}).bound == "compute"


@pytest.mark.parametrize(
    ("spent", "setting", "words", "at_most"),
    [
        ({"tower_forward": 0.3}, GPU, "train.precision", 1e3),
        ({"lookup": 0.4, "table_update": 0.35}, CPU, "embeddings", 4.0),
        ({"optimizer": 0.6}, CPU, "train.global_batch_size", 2.5),
        ({"rest": 0.6}, GPU, "the host's own work", 2.5),
        ({"input_all_to_all": 0.6}, CPU, "data_parallel_max_rows", 2.5),
    ],
)
def test_compute_bound(spent: dict[str, float], setting: Setting, words: str, at_most: float) -> None:
    found = verdict(setting, **spent)
    assert found.bound == "compute" and words in found.change and found.at_most == pytest.approx(at_most)


def steps(mean: float, spread: float, number: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, spread) for _ in range(number)]


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    number, hits = 100, 0
    for seed in range(200):
        samples = steps(1.0, 0.2, number, seed)
        hits += abs(sum(samples) / number - 1.0) <= half_width(samples)
    assert 0.88 <= hits / 200 <= 0.99
    assert half_width([2.0] * 10) == 0 and half_width([1.0]) == 0


def test_percentiles() -> None:
    samples = [float(i) for i in range(101)]
    assert percentile(samples, 0.5) == 50 and percentile(samples, 0.95) == 95
    facts = summary([s / 1e3 for s in samples])
    assert facts["p50_ms"] == pytest.approx(50) and facts["mean_ms"] == pytest.approx(50)


def test_ratios() -> None:
    slow, fast = steps(2.0, 0.1, 100, 1), steps(1.0, 0.1, 80, 2)
    found = ratio(slow, fast)
    assert found["low"] < found["ratio"] < found["high"] and found["ratio"] == pytest.approx(2, rel=0.05)
    assert found["low"] > 1.9 and found["high"] < 2.2
    same = ratio(slow, slow)
    assert same["ratio"] == 1 and same["low"] < 1 < same["high"]


def result(samples_s: list[float], **changed: Any) -> dict[str, Any]:
    """As `bench run` writes it, but for what `compare` does not read."""
    machine = {"date": "2026-01-01", "load": 1.0, "name": "one", "versions": {"torch": "1"}}
    config = {"train": {"global_batch_size": 8, "seed": 0}}
    whole = {"bench": "run", "machine": machine, "config": config, "num_ranks": 2, "global_batch_size": 8}
    return {**whole, "step": {"samples_s": samples_s}, **changed}


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_a_result_and_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", result(steps(1.0, 0.1, 50, 0)))
    answer = CliRunner().invoke(cli.app, ["bench", "compare", str(path), str(path), "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    one = found["ratios"]["step"]
    assert one["ratio"] == 1 and one["low"] <= 1 <= one["high"] and found["differences"] == []
    assert "may be no difference" in "\n".join(comparison_lines(found))


def test_examples_and_not_steps_are_compared(tmp_path: Path) -> None:
    before = write(tmp_path / "a.json", result([1.0] * 20))
    machine = {"date": "2026-01-02", "load": 9.0, "name": "two", "versions": {"torch": "1"}}
    after = write(tmp_path / "b.json", result([1.0] * 20, global_batch_size=16, machine=machine))
    found = compare_results(before, after)
    assert found["ratios"]["step"]["ratio"] == pytest.approx(2)
    # The date and the load are never the same, and are no conditions.
    assert [one["key"] for one in found["differences"]] == ["global_batch_size", "machine.name"]
    assert "  machine.name: one and two" in comparison_lines(found)


def test_other_verbs_are_compared_by_what_they_share(tmp_path: Path) -> None:
    def tower(ms: float) -> dict[str, Any]:
        forms = {"eager": {"ms_of_rounds": [ms] * 5}}
        return {"bench": "tower", "shape": {"batch_size": 4}, "passes": {"forward": {"forms": forms}}}

    found = compare_results(write(tmp_path / "a.json", tower(3.0)), write(tmp_path / "b.json", tower(2.0)))
    assert found["ratios"]["forward, eager"]["ratio"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a JSON file"),
        ("[1]", "no JSON object"),
        ('{"a": 1}', "no result of infnet-rec bench"),
        ('{"bench": "run"}', "no times of bench run"),
        ('{"bench": "run", "step": {"samples_s": [1, "x"]}, "global_batch_size": 8}', "no times"),
        ('{"bench": "run", "step": {"samples_s": []}, "global_batch_size": 8}', "no times"),
        ('{"bench": "sweep"}', "compare two results of one verb"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, words: str) -> None:
    sound = write(tmp_path / "a.json", result([1.0] * 5))
    with pytest.raises(UserError, match=words) as fault:
        compare_results(sound, write(tmp_path / "b.json", text))
    assert "\n" not in str(fault.value)


def test_ranks_to_start() -> None:
    asked = BenchArgs()
    assert asked.ranks_to_start(None, {}) == 1
    assert asked.ranks_to_start("1x2", {}) == 2
    eight = rank_environ(rank=0, world_size=8)
    assert asked.ranks_to_start("2x4", eight) == 1
    for size, environment, words in (
        ("2x1", {}, "this node only"),
        ("1:2x4", {}, "one number of nodes"),
        ("1x2", eight, "torchrun started 8 ranks"),
        ("1x2", {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no number"),
        ("2", {}, "NODESxRANKS"),
    ):
        with pytest.raises(UserError, match=words):
            asked.ranks_to_start(size, environment)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    taken = write(tmp_path / "t.rank1.json", "mine")
    with pytest.raises(UserError, match="would be overwritten"):
        BenchArgs(trace=tmp_path / "t.json").check(2)
    BenchArgs(trace=tmp_path / "t.json").check(1)
    with pytest.raises(UserError, match="would be overwritten"):
        BenchArgs(out=taken).check(1)
    with pytest.raises(UserError, match="there is no folder"):
        BenchArgs(out=tmp_path / "nowhere" / "a.json").check(1)


def test_the_command_of_every_rank_asks_for_the_same(tmp_path: Path) -> None:
    words = BenchArgs(3, trace=tmp_path / "t", price_per_hour=0.5).words()
    assert words == ["--steps=3", f"--trace={tmp_path / 't'}", "--price-per-hour=0.5"]
