"""What all ranks must have alike: configuration, code, store and versions; and what is said where they do not.

An identity is a dictionary of values by key, for each of these aspects. Comparing needs no ranks: `disagreements` is a
function of what they said.
"""

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch.cuda import nccl

import infnet_rec
from infnet_rec.config.load import flatten_config
from infnet_rec.config.plugins import SHOWN, plugin_of
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.data.store import Store
from infnet_rec.diagnostics.doctor import Check
from infnet_rec.distributed.process_group import World

# Where a store lies and how a host reads it is the host's affair; what is in it is compared.
MAY_DIFFER = ("data.store", "data.manifest", "data.loader_threads", "data.read_ahead", "train.num_threads")
PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow", "pydantic")
REMEDIES = {
    "config": "start all ranks with one configuration file and the same --set",
    "code": "install the same version of infnet_rec on every host",
    "store": "copy one store to every host, or name it by a URL",
    "versions": "install the same requirements.txt on every host",
}
MAX_NAMED = 3
SAMPLE_BYTES = 4096
NOTHING = "missing"

# Values by key, by aspect.
Identity = Mapping[str, Mapping[str, str]]


class Place(NamedTuple):
    """A rank and the name of its host."""

    rank: int
    host: str


def identity(config: RunConfig | None, data: RunData | None, world: World) -> Identity:
    """This rank's; without a configuration, what does not depend on one."""
    found = {"code": code(Path(infnet_rec.__file__).parent), "versions": versions(world)}
    if config is not None:
        settings = flatten_config(config.model_dump(mode="json"))
        if (plugin := plugin_of(config.model)) is not None:
            found["code"][f"plugin {plugin.name}"] = plugin.sha256[:SHOWN]
        found["config"] = {key: json.dumps(value) for key, value in settings.items() if key not in MAY_DIFFER}
    if data is not None:
        found["store"] = store_contents(data.store)
    return found


def digest(values: Mapping[str, str]) -> str:
    """Twelve characters that stand for all of it."""
    return _hash(json.dumps(values, sort_keys=True).encode())


def code(package: Path) -> dict[str, str]:
    """A hash of every source file: nodes may have other checkouts, or none that git knows."""
    return {str(path.relative_to(package.parent)): _hash(path.read_bytes()) for path in sorted(package.rglob("*.py"))}


def versions(world: World) -> dict[str, str]:
    """Versions of the packages that compute, and the kind of device."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "device": world.device.type}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if world.device.type == "cuda":
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, nccl.version()))
    return found


def store_contents(store: Store) -> dict[str, str]:
    """The manifest's hash, and samples of the files that training reads: a copy may be wrong beneath it."""
    names = [name for name in sorted(store.manifest["files"]) if not name.startswith("vocab/")]
    samples = {name: _sample(store.path / name) for name in names if (store.path / name).is_file()}
    return {"manifest": store.fingerprint, **samples}


def store_fault(store: Store) -> str | None:
    """The first file that is missing or has another length than the manifest says; contents are not read."""
    for name, facts in sorted(store.manifest["files"].items()):
        path = store.path / name
        num_bytes = path.stat().st_size if path.is_file() else None
        if num_bytes != facts["bytes"]:
            has = NOTHING if num_bytes is None else f"{num_bytes:,} bytes long"
            return f"{path} is {has}, and its manifest says {facts['bytes']:,} bytes"
    return None


def disagreements(places: Sequence[Place], identities: Sequence[Identity]) -> list[Check]:
    """A fault for each aspect in which ranks differ, with the ranks, their hosts and the values.

    Args:
        places: in any order; the first one's values are named first.
        identities: of the same ranks.
    """
    checks = []
    for aspect in identities[0]:
        keys = sorted({key for each in identities for key in each[aspect]})
        values = {key: [each[aspect].get(key, NOTHING) for each in identities] for key in keys}
        other = [key for key in keys if len(set(values[key])) > 1]
        if other:
            phrases = [f"{key} is {_by_value(places, values[key])}" for key in other[:MAX_NAMED]]
            phrases += [f"and {len(other) - MAX_NAMED} more"] if len(other) > MAX_NAMED else []
            checks.append(Check(aspect, "; ".join(phrases), REMEDIES[aspect]))
    return checks


def ranks_in_words(places: Sequence[Place]) -> str:
    """Such as "rank 3 (host b)" and "ranks 0-3, 8 (hosts a, c)"; of many hosts, the first."""
    hosts = list(dict.fromkeys(place.host for place in places))
    more = f" and {len(hosts) - MAX_NAMED} more" if len(hosts) > MAX_NAMED else ""
    where = f"host{'s' * (len(hosts) > 1)} {', '.join(hosts[:MAX_NAMED])}{more}"
    return f"rank{'s' * (len(places) > 1)} {_spans([place.rank for place in places])} ({where})"


def _by_value(places: Sequence[Place], values: Sequence[str]) -> str:
    who: dict[str, list[Place]] = defaultdict(list)
    for place, value in zip(places, values, strict=True):
        who[value].append(place)
    return " and ".join(f"{value} on {ranks_in_words(those)}" for value, those in who.items())


def _spans(ranks: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return ", ".join(words[:MAX_NAMED]) + (", ..." if len(words) > MAX_NAMED else "")


def _sample(path: Path) -> str:
    """A hash of the beginning, the middle and the end."""
    num_bytes, parts = path.stat().st_size, []
    with path.open("rb") as file:
        for start in (0, num_bytes // 2, max(0, num_bytes - SAMPLE_BYTES)):
            file.seek(start)
            parts.append(file.read(SAMPLE_BYTES))
    return _hash(b"".join(parts))


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()
