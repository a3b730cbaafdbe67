"""The catalogue, one's own hardware, and clusters in TorchRec's units."""

from pathlib import Path

import pytest

from infnet_rec.errors import UserError
from infnet_rec.planner.hardware import CATALOGUE, catalogue, load_hardware, parse_cluster
from infnet_rec.planner.search.estimates import to_topology

H100 = (CATALOGUE / "h100.toml").read_text()


@pytest.mark.parametrize("name", catalogue())
def test_the_catalogue_loads_and_is_in_the_units_it_says(name: str) -> None:
    hardware = load_hardware(name)
    assert 100 <= hardware.host_memory_gib <= 8192
    assert hardware.fp32_tflops < hardware.bf16_tflops
    assert hardware.inter_node_gb_per_s < hardware.intra_node_gb_per_s < hardware.host_memory_gb_per_s * 2
    if hardware.device == "cuda":
        assert 30 < hardware.hbm_gib < 200
        assert hardware.pcie_gb_per_s < hardware.hbm_gb_per_s
        # Faster than the network by far, or the unit is wrong (a network's bits for bytes).
        assert hardware.hbm_gb_per_s > 50 * hardware.inter_node_gb_per_s
    assert "ource" in (CATALOGUE / f"{name}.toml").read_text()


def test_the_catalogue_has_what_is_promised() -> None:
    assert set(catalogue()) == {"a100-40g", "a100-80g", "h100", "h200", "b200", "l20", "cpu-node"}


def test_an_unknown_name_is_a_fault_with_the_closest_one() -> None:
    with pytest.raises(UserError, match=r"h10: is not in the catalogue \(did you mean 'h100'\?\)"):
        load_hardware("h10")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(H100 + 'price_per_node_hour = 20.0\ncurrency = "EUR"\n')
    assert parse_cluster("3x4", load_hardware(str(path))).price_per_hour == 60.0


def test_a_bad_file_lists_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        H100.replace("ranks_per_node = 8", "ranks_per_node = 0")
        .replace("pcie_gb_per_s", "pci_gb_per_s")
        .replace("hbm_gb_per_s = 3350.0", 'hbm_gb_per_s = "fast"')
    )
    with pytest.raises(UserError) as caught:
        load_hardware(str(path))
    message = str(caught.value)
    assert "4 faults" in message
    assert "ranks_per_node = 0" in message
    assert "pci_gb_per_s: unknown key (did you mean 'pcie_gb_per_s'?)" in message
    assert "pcie_gb_per_s: missing" in message
    assert "hbm_gb_per_s = 'fast'" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('device = "cuda"', 'device = "cpu"', "hbm_gib, hbm_gb_per_s, pcie_gb_per_s: must be 0"),
        ("hbm_gib = 79.1", "hbm_gib = 0.0", "hbm_gib: must be more than 0"),
        ('name = "', 'currency = "EUR"\nname = "', "give both or neither"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(H100.replace(old, new))
    with pytest.raises(UserError, match=expected):
        load_hardware(str(path))


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_hardware(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("text", ["0x8", "4x0", "-1x8", "4", "x8", "4x8x2", "4 x 8", "four", "", "1e3x8"])
def test_a_cluster_that_cannot_be(text: str) -> None:
    with pytest.raises(UserError, match="NODESxRANKS"):
        parse_cluster(text, load_hardware("h100"))


def test_no_more_ranks_than_gpus() -> None:
    with pytest.raises(UserError, match="has 8 GPUs"):
        parse_cluster("1x9", load_hardware("h100"))
    assert parse_cluster("1x33", load_hardware("cpu-node")).world_size == 33


def test_a_cluster_in_torchrecs_units() -> None:
    cluster = parse_cluster("4x4", load_hardware("h100"))
    topology = to_topology(cluster, reserved_hbm_bytes=2**30, reserved_host_bytes=2**31)
    assert (topology.world_size, topology.local_world_size, topology.compute_device) == (16, 4, "cuda")
    # GB/s to bytes/ms: a second has 1,000 ms and a GB 10^9 bytes.
    assert topology.hbm_mem_bw == pytest.approx(3350 * 10**9 / 1000)
    assert topology.intra_host_bw == pytest.approx(450 * 10**9 / 1000)
    assert topology.inter_host_bw == pytest.approx(50 * 10**9 / 1000)
    assert topology.hbm_to_ddr_mem_bw == pytest.approx(63 * 10**9 / 1000)
    # A node's memory and its bandwidth are shared by its ranks.
    assert topology.ddr_mem_bw == pytest.approx(614.4 / 4 * 10**9 / 1000)
    assert {d.storage.hbm for d in topology.devices} == {int(79.1 * 2**30) - 2**30}
    assert {d.storage.ddr for d in topology.devices} == {2048 * 2**30 // 4 - 2**31}


def test_a_cpu_has_no_hbm() -> None:
    topology = to_topology(parse_cluster("1x2", load_hardware("cpu-node")))
    assert {d.storage.hbm for d in topology.devices} == {0}
    assert {d.storage.ddr for d in topology.devices} == {256 * 2**30}
    assert topology.ddr_mem_bw == pytest.approx(614.4 / 2 * 1e6)
