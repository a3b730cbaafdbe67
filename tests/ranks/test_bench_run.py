"""`bench run` and `bench input` for real, on a tiny store: what the parts must keep to, not how long they take."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_rec.benchmark import loader
from infnet_rec.benchmark.exchange import Exchange
from infnet_rec.benchmark.report import bench_run_lines
from infnet_rec.benchmark.trace import COMMUNICATION, PARTS

CONFIG = Path(__file__).parents[1] / "small.toml"


@pytest.fixture(scope="module")
def measured(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The result of two ranks, and the folder of its files."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["bench", "run", str(CONFIG), f"--set=data.store='{small_store}'", "-j", "1x2", "--steps=12"]
    words += [
        "--price-per-hour=3",
        f"--trace={folder / 't.json'}",
        f"--out={folder / 'a.json'}",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "infnet_rec.cli", *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "USDT" not in done.stderr
    return json.loads(done.stdout), folder


@pytest.mark.slow
def test_parts_are_not_negative_and_add_up(measured: tuple[dict[str, Any], Path]) -> None:
    result, _ = measured
    parts, step = result["parts"], result["step"]
    assert list(parts) == list(PARTS)
    assert all(part["ms"] >= 0 for part in parts.values())
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(step["mean_ms"])
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    # What is in no range: between the pipeline's own stages.
    assert parts["rest"]["share"] < 0.25
    for part in ("data", "lookup", "tower_forward", "tower_backward", "table_update", "optimizer"):
        assert parts[part]["ms"] > 0
    for part in COMMUNICATION:
        fact = parts[part]
        assert 0 <= fact["exposed_ms"] <= fact["in_flight_ms"]
        assert fact["exposed_ms"] <= fact["ms"] + 1e-9
        assert fact["overlapped_ms"] == pytest.approx(fact["in_flight_ms"] - fact["exposed_ms"])
        # Two ranks have something to tell each other in each of them.
        assert fact["sent_bytes"] > 0 and fact["in_flight_ms"] > 0


@pytest.mark.slow
def test_what_is_reported_besides(measured: tuple[dict[str, Any], Path]) -> None:
    result, folder = measured
    step = result["step"]
    assert step["num_samples"] == len(step["samples_s"]) == 12 and step["p50_ms"] <= step["p95_ms"]
    assert result["num_ranks"] == len(result["ranks"]) == 2 and result["global_batch_size"] == 64
    assert result["examples_per_s"] == pytest.approx(64 / step["mean_ms"] * 1e3)
    assert result["examples_per_s_per_rank"] == pytest.approx(result["examples_per_s"] / 2)
    assert 0 < result["rates"]["model_flops_utilisation"] < 1
    # DDP's all-reduce sends every dense gradient, of four bytes.
    assert result["parts"]["dense_all_reduce"]["sent_bytes"] * 2 == pytest.approx(
        4 * dense_parameters(result), rel=0.02
    )
    epoch = result["epoch"]
    assert epoch["rank_hours"] == pytest.approx(epoch["seconds"] * 2 / 3600)
    assert epoch["price"] == pytest.approx(3 * epoch["rank_hours"])
    assert result["memory"]["peak_bytes"] > 1 << 26
    assert json.loads((folder / "a.json").read_text()) == result
    text = bench_run_lines(result)
    assert any(line.startswith(f"{result['verdict']['bound']}-bound: ") for line in text)


def dense_parameters(result: dict[str, Any]) -> int:
    """Counted from the configuration of the result."""
    import torch

    from infnet_rec.config.load import validate_run
    from infnet_rec.data.run_data import open_data
    from infnet_rec.planner.tables import meta_model

    config = validate_run(result["config"], "the result")
    with torch.device("meta"):
        tower = meta_model(config, open_data(config)).tower
    return sum(parameter.numel() for parameter in tower.parameters())


@pytest.mark.slow
def test_every_rank_leaves_a_trace_of_whole_steps(measured: tuple[dict[str, Any], Path]) -> None:
    _, folder = measured
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "t.rank0.json", "t.rank1.json"]
    for rank in range(2):
        events = json.loads((folder / f"t.rank{rank}.json").read_text())["traceEvents"]
        names = [event.get("name", "") for event in events]
        assert names.count("infnet_rec step") == names.count("infnet_rec next batch") == 5
        assert sum(name.startswith("gloo:") for name in names) > 20


@pytest.mark.slow
def test_the_input_verb(small_store: Path) -> None:
    result = loader.bench_input(CONFIG, [f"data.store='{small_store}'"], num_batches=12)
    assert result["batch"]["num_samples"] == 12 and result["examples_per_s"] > 0
    stages = result["stages_ms"]
    assert len(stages) == 6
    # Nothing is counted twice: something is left for labels and tensors.
    assert all(ms > 0 for ms in stages.values())
    assert result["times_needed"] == pytest.approx(result["examples_per_s"] / result["needed_examples_per_s"])
    assert loader.loader_lines(result)[0].startswith("batches of 64 examples with ")


def sent_by(rank: int, world_size: int) -> tuple[float, dict[str, int]]:
    """Rank 0 sends 3 rows to rank 1 and keeps 1; rank 1 sends 2 and keeps 5."""
    import torch.distributed as dist

    send = [[1, 3], [2, 5]]
    taken = [send[other][rank] for other in range(world_size)]
    out, source = torch.empty(sum(taken), 4), torch.ones(sum(send[rank]), 4)
    with Exchange(rank, world_size) as exchange:
        dist.all_to_all_single(out, source, taken, send[rank])
        dist.all_reduce(torch.ones(8))
    return exchange.sent_bytes, exchange.calls


@pytest.mark.slow
def test_bytes_to_other_ranks_are_counted(ranks: Any) -> None:
    (first, calls), (second, _) = ranks(sent_by)
    assert first == 3 * 16 + 8 * 4 / 2
    assert second == 2 * 16 + 8 * 4 / 2
    assert calls == {"alltoall_base_": 1, "allreduce_": 1}
