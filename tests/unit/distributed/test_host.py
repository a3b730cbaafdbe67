"""What a host leaves to a rank, read from made-up files of its kernel and from the real ones."""

from pathlib import Path

import pytest

from infnet_rec.distributed import host

MIB = 2**20


def kernel_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4096 kB\n"}


def test_a_machine_without_limits_has_what_is_available(tmp_path: Path) -> None:
    assert host.free_memory_bytes(kernel_files(tmp_path, MEMINFO)) == 4 * MIB


def test_the_tightest_control_group_counts_and_its_cache_of_files_is_free(tmp_path: Path) -> None:
    root = kernel_files(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/slurm/job\n",
            "sys/fs/cgroup/slurm/job/memory.max": "max",
            "sys/fs/cgroup/slurm/job/memory.current": "1",
            "sys/fs/cgroup/slurm/job/memory.stat": "inactive_file 0\n",
            "sys/fs/cgroup/slurm/memory.max": str(3 * MIB),
            "sys/fs/cgroup/slurm/memory.current": str(2 * MIB),
            "sys/fs/cgroup/slurm/memory.stat": f"inactive_file {MIB // 2}\nactive_file {MIB // 4}\n",
        },
    )
    assert host.free_memory_bytes(root) == 3 * MIB - (2 * MIB - MIB // 2 - MIB // 4)


def test_a_container_of_the_old_kind_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    root = kernel_files(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * MIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(MIB),
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\ntotal_active_file 0\n",
        },
    )
    assert host.free_memory_bytes(root) == MIB


def test_infiniband_cards_are_listed(tmp_path: Path) -> None:
    assert host.infiniband(tmp_path) == []
    kernel_files(tmp_path, {"sys/class/infiniband/mlx5_1/x": "", "sys/class/infiniband/mlx5_0/x": ""})
    assert host.infiniband(tmp_path) == ["mlx5_0", "mlx5_1"]


def test_the_interface_is_the_one_named_or_that_of_the_host_s_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(host, "_addresses", lambda: iter([("lo", "127.0.0.1"), ("eth7", "192.0.2.7")]))
    for address, name in (("127.0.1.1", "lo"), ("192.0.2.7", "eth7"), ("192.0.2.9", "192.0.2.9")):
        found = [(2, 1, 6, "", (address, 0))]
        monkeypatch.setattr(host.socket, "getaddrinfo", lambda *_, found=found, **__: found)
        assert host.interface("gloo") == name
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert host.interface("gloo") == "ib0" and host.interface("nccl") == "an interface of its choice"


def test_this_host_answers() -> None:
    assert host.free_memory_bytes() > 64 * MIB
    num_open, limit = host.open_files()
    assert num_open >= 3 and (limit is None or limit > num_open)
    assert host.host_key() == host.host_key() != ""
    assert ("lo", "127.0.0.1") in list(host._addresses())
