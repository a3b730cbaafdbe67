"""What `benchmarks/scaling.py` computes: efficiencies of what was measured, and the simulation's own rules."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling, scaling_page, scaling_plot
from benchmarks.scaling_simulated import Latency, Loader, Step, efficiency
from infnet_rec.benchmark.trace import COMMUNICATION, PARTS
from infnet_rec.planner.step_time import StepTime

ROOT = Path(__file__).parents[3]
PLANNED = StepTime(2.0, 5.0, 10.0, 0.5, 0.1, "launches")
LOADER = Loader(100_000.0, 500.0, "a machine")


def run(number: int, ranks: int, batch: int, rate: float) -> dict[str, Any]:
    parts = {
        part: {"ms": 10.0, **({"exposed_ms": 4.0, "in_flight_ms": 9.0} if part in COMMUNICATION else {})}
        for part in PARTS
    }
    return {
        "round": number,
        "num_ranks": ranks,
        "global_batch_size": batch,
        "examples_per_s": rate,
        "load_before": 0.5 + number,
        "step": {"mean_ms": 100.0},
        "parts": parts,
    }


RUNS = [
    run(0, 1, 512, 1000.0),
    run(0, 2, 1024, 1800.0),
    run(0, 2, 512, 1500.0),
    run(1, 2, 512, 1400.0),
    run(1, 2, 1024, 1400.0),
    run(1, 1, 512, 1000.0),
    # Its round has no run of one rank yet.
    run(2, 2, 512, 9999.0),
]


def test_efficiency_is_a_rank_s_rate_against_the_base_s() -> None:
    assert efficiency(1800.0, 2, 1000.0) == pytest.approx(0.9)
    assert efficiency(4000.0, 16, 4000.0, 8) == pytest.approx(0.5)


def test_measured_efficiencies_are_taken_within_rounds() -> None:
    rows = {(row["kind"], row["num_ranks"]): row for row in scaling.scaled(RUNS, 512)}
    weak, strong = rows["weak", 2], rows["strong", 2]
    assert rows["weak", 1]["efficiency"] == rows["strong", 1]["efficiency"] == 1.0
    assert (weak["efficiency_low"], weak["efficiency"], weak["efficiency_high"]) == pytest.approx((0.7, 0.8, 0.9))
    assert (strong["efficiency_low"], strong["efficiency_high"]) == pytest.approx((0.7, 0.75))
    assert (weak["num_rounds"], weak["global_batch_size"], strong["global_batch_size"]) == (2, 1024, 512)


def test_runs_of_a_round() -> None:
    assert scaling.wanted([2, 1], 512) == [(1, 512), (2, 1024), (2, 512)]
    # What does not divide is not asked for.
    assert scaling.wanted([1, 3], 512) == [(1, 512), (3, 1536)]


@pytest.mark.parametrize("collective", ["all_to_all", "reduce_scatter", "all_reduce"])
def test_latency_grows_with_ranks_and_is_none_for_one(collective: str) -> None:
    of = getattr(Latency(), collective)
    sizes = [of(1, 1), of(1, 2), of(1, 8), *(of(nodes, 8) for nodes in (2, 4, 16, 128))]
    assert sizes[0] == 0.0 < sizes[1]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[2]


def test_latency_is_a_collective_for_each_way_of_sharding() -> None:
    latency = Latency()
    one = latency.exchange([("bags", "table_wise")], 4, 8)
    assert one == latency.all_to_all(4, 8)
    assert latency.exchange([("bags", "table_wise"), ("events", "row_wise")], 4, 8) == 2 * one
    assert latency.exchange([("bags", "data_parallel")], 4, 8) == 0.0
    # Only ranks of one place in their nodes write to each other.
    assert latency.exchange([("bags", "table_row_wise")], 128, 8) < latency.exchange([("bags", "table_wise")], 128, 8)


def test_parts_of_a_step_add_up_and_what_is_beside_it_hides_in_it() -> None:
    hidden = Step(PLANNED, latency_ms=1.0, input_ms=3.0, loader_ms=18.6)
    assert hidden.total_ms == pytest.approx(18.6)
    for step in (hidden, Step(PLANNED, latency_ms=1.0, input_ms=3.0, loader_ms=25.0)):
        row = step.row()
        assert sum(row["parts"].values()) == pytest.approx(row["step_ms"])
        assert row["step_ms"] >= max(row["planned_ms"], *row["beside"].values())
    assert row["parts"]["waits_ms"] == pytest.approx(25.0 - 18.6)


def test_reading_takes_as_long_as_ids_and_threads_say() -> None:
    assert LOADER.batch_ms(1000, 500.0, 1) == pytest.approx(10.0)
    assert LOADER.batch_ms(1000, 1000.0, 4) == pytest.approx(5.0)


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    """A few sizes of the real thing."""
    results: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        # The manifest's path in the run's file is relative.
        patch.chdir(ROOT)
        scaling.add_simulated(results, (8, 32, 1024))
    return results


@pytest.mark.slow
def test_simulated_steps_add_up_and_nobody_gains_by_company(simulated: dict[str, Any]) -> None:
    rows = simulated["simulated"]["rows"]
    assert all(row["simulated"] for row in rows)
    for kind in ("weak", "strong"):
        own = [row for row in rows if row["kind"] == kind]
        assert [row["gpus"] for row in own] == [8, 32, 1024]
        for row in own:
            assert sum(row["parts"].values()) == pytest.approx(row["step_ms"])
            assert row["examples_per_s"] == pytest.approx(row["global_batch_size"] / row["step_ms"] * 1e3)
            assert row["examples_per_s"] <= row["planned_examples_per_s"]
        rates = [row["examples_per_s"] / row["gpus"] for row in own]
        assert rates == sorted(rates, reverse=True)
        assert [row["parts"]["latency_ms"] for row in own] == sorted(row["parts"]["latency_ms"] for row in own)
    # The configuration's own cluster: both kinds meet there.
    assert len({row["step_ms"] for row in rows if row["gpus"] == 32}) == 1
    assert len({row["global_batch_size"] for row in rows if row["kind"] == "strong"}) == 1
    assert len({row["local_batch_size"] for row in rows if row["kind"] == "weak"}) == 1


def test_files_say_what_is_simulated_and_that_the_machine_was_busy(simulated: dict[str, Any], tmp_path: Path) -> None:
    machine = {"cores": 1, "name": "a machine", "device": "cpu", "versions": {"torch": "2"}, "date": "2026-01-01"}
    measured = {"asked": {"config": "x.toml"}, "machine": machine, "runs": RUNS, "scaling": scaling.scaled(RUNS, 512)}
    results = {"measured": measured, **simulated}
    scaling.write(tmp_path / "s.json", results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "s.md", "s.png"]
    text = (tmp_path / "s.md").read_text()
    assert all(
        "SIMULATED" in line
        for line in text.splitlines()
        if line.startswith(("##", "###")) and "easured, on" not in line
    )
    assert "| weak | 2 | 1,024 | 1,600 | **0.80** | 0.70 to 0.90 | 2 |" in text
    assert "busy" in text
    assert "busy" not in scaling_page.page({"measured": {**measured, "machine": {**machine, "cores": 2}}})
    for axes in scaling_plot.figure_of(results).axes[:2]:
        assert "SIMULATED" in axes.get_title()
    # Either half alone makes a picture too.
    for half in ({"measured": measured}, simulated):
        assert scaling_plot.figure_of(half).axes
