"""What this host leaves to a rank right now: memory, files, shared memory; and its network. No torch here."""

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")
# Of a control group: its limit, what is used of it, and what of that is a cache of files. Version 2, version 1.
GROUP_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
GROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def free_memory_bytes(root: Path = ROOT) -> int:
    """What programs here can still take: of the machine, and of every control group that this process is in.

    Args:
        root: where /proc and /sys are found.
    """
    return min([_machine_bytes(root), *_group_bytes(root)])


def host_key() -> str:
    """The same for all processes of one host, and of no other: names alone may repeat."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text(encoding='utf-8').strip() if boot.is_file() else ''}".strip()


def shared_memory_bytes() -> int | None:
    """Free in /dev/shm; None where there is none."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def open_files() -> tuple[int, int | None]:
    """Files and sockets that this process has open, and how many it may; None is without limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return psutil.Process().num_fds(), None if limit == resource.RLIM_INFINITY else limit


def locked_memory_bytes() -> int | None:
    """What may be pinned for a network card; None is without limit."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def infiniband(root: Path = ROOT) -> list[str]:
    """Network cards that NCCL can use without the host's processor."""
    folder = root / "sys/class/infiniband"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def interface(backend: str) -> str:
    """The network interface that a backend speaks over, as far as it can be known from outside."""
    variable = "GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME"
    if named := os.environ.get(variable):
        return named
    # Gloo takes the first address of the host's own name, and the loopback where it has none. NCCL looks around.
    return _interface_of_name(socket.gethostname()) if backend == "gloo" else "an interface of its choice"


def has_loopback() -> bool:
    """Whether the interface `lo` is up with its usual address: a network namespace may be without."""
    return ("lo", "127.0.0.1") in _addresses()


def _interface_of_name(name: str) -> str:
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return "lo"
    assert isinstance(address, str)
    if address.startswith("127.") or address == "::1":
        return "lo"
    return next((name for name, has in _addresses() if has == address), address)


def _addresses() -> Iterator[tuple[str, str]]:
    """The interfaces of this host with their addresses of version 4."""
    for name, addresses in psutil.net_if_addrs().items():
        yield from ((name, found.address) for found in addresses if found.family == socket.AF_INET)


def _machine_bytes(root: Path) -> int:
    path = root / "proc/meminfo"
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return available[0] if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes(root: Path) -> Iterator[int]:
    """What is left of each limit, from our own group up to the top of what is mounted here."""
    path = root / "proc/self/cgroup"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inner = PurePosixPath(place.lstrip("/"))
        for part in (inner, *inner.parents):
            left = _left_bytes(top / part, GROUP_V1 if controllers else GROUP_V2)
            if left is not None:
                yield left


def _left_bytes(group: Path, files: tuple[str, str, tuple[str, ...]]) -> int | None:
    limit_file, used_file, caches = files
    try:
        limit = (group / limit_file).read_text(encoding="utf-8").strip()
        used_bytes = int((group / used_file).read_text(encoding="utf-8"))
        stat = dict(line.split()[:2] for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None
    cached_bytes = sum(int(stat.get(name, 0)) for name in caches)
    return max(0, int(limit) - max(0, used_bytes - cached_bytes)) if limit.isdecimal() else None


def num_cores() -> int:
    """Cores that this process may use, which a container or taskset may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
