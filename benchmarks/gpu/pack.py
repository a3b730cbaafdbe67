"""Packs what a GPU machine without a package index lacks into one small folder, for `python -m benchmarks.gpu` there.

    python -m benchmarks.gpu.pack --out .gpu              fbgemm, torchrec, pydantic and what they need; some minutes
    mkdir SITE && cat .gpu/part.* | tar -xJ -C SITE       on the GPU machine; SITE is any folder outside the checkout
    export PYTHONPATH=SITE:$PWD && python -m benchmarks.gpu

The CUDA wheel of fbgemm-gpu unpacks to 2.4 GB, since it holds every kernel for several generations of GPUs and a dozen
optimizers. Device code that is not wanted here is overwritten with zeros, so that offsets and symbols stay, every
library still loads and the whole packs into some 40 MB. CUDA reads a module when its first kernel is launched: one that
was left out fails there with an error of CUDA, never with a wrong number. `infnet-rec doctor` says which are missing.

Beside the libraries go the quickstart's store and what a CPU makes of it, where `make train` has made the store.

Exit codes: 0 packed, 1 a failure, 2 the command line is at fault, 3 the parts are larger than --most-mib.
"""

import argparse
import json
import mmap
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

ROOT = Path(__file__).parents[2]
STORE = ROOT / "runs" / "quickstart" / "store"
PACKED_STORE, CONTENTS = "quickstart_store", "packed.json"
# What the machine lacks beside fbgemm and torchrec; the second with all that it needs itself.
WITHOUT_NEEDS = ("tensordict", "iopath", "pyvers", "orjson", "cloudpickle", "importlib-metadata", "zipp", "pyyaml")
WITH_NEEDS = ("filelock", "pydantic", "pyre-extensions", "tabulate")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

MAGIC = struct.pack("<I", 0xBA55ED50)
ZSTD = b"\x28\xb5\x2f\xfd"
HEADER_BYTES, ENTRY_BYTES, CUBIN = 16, 64, 2
# Table lookups forward; backward of tables that every rank copies, and what all backward kernels share.
ALWAYS = (
    r"split_embedding(_nobag)?_codegen_forward_unweighted(_small)?(_v2)?_kernel",
    r"dense_embedding(_nobag)?_codegen_forward_unweighted(_small)?_kernel",
    r"split_embedding(_nobag)?_backward_codegen_(dense|find_long_segments)_unweighted",
)
OPTIMIZERS = ("rowwise_adagrad", "adam", "adagrad", "sgd")
# Small libraries, whose device code stays whole, for the one generation.
WHOLE = (
    "fbgemm_gpu_py.so",
    "fbgemm_gpu_tbe_cache.so",
    "fbgemm_gpu_tbe_utils.so",
    "fbgemm_gpu_tbe_common.so",
    "fbgemm_gpu_sparse_async_cumsum.so",
    "fbgemm_gpu_embedding_inplace_ops.so",
    "fbgemm_gpu_config.so",
)
# Of kernels that nothing here calls: quantized inference, batches of several sizes, global weight decay.
DROPPED = (
    "fbgemm_gpu_tbe_inference.so",
    "fbgemm_gpu_tbe_training_backward_gwd.so",
    "fbgemm_gpu_tbe_training_backward_vbe.so",
    "fbgemm_gpu_tbe_index_select.so",
    "fbgemm_gpu_tbe_optimizers.so",
)
TIED = re.compile(r"\.(?:cpython|pypy)-?(\d+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image in a fat binary: device code of one translation unit for one generation.

    Attributes:
        start: first byte of the image in the file.
        size: bytes of it.
        packed: bytes of it that are compressed data; 0 where all are, or none.
        raw: bytes when unpacked.
        kind: 2 is machine code, others are PTX.
        arch: of the generation, such as 90.
    """

    start: int
    size: int
    packed: int
    raw: int
    kind: int
    arch: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which device code stays: of one generation, kernels whose names a pattern finds."""

    arch: int
    keep: re.Pattern[str]

    @classmethod
    def of(cls, arch: int, optimizers: Sequence[str], further: Sequence[str]) -> "Wanted":
        """Kernels of these fused optimizers and of further patterns."""
        own = [rf"split_embedding(_nobag)?_backward_codegen_{name}_unweighted_kernel" for name in optimizers]
        return cls(arch, re.compile("|".join([*ALWAYS, *own, *further])))


def main() -> int:
    """Packs what is asked for; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".gpu"), help="folder of the parts (%(default)s)")
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (%(default)s)")
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 is Hopper (%(default)s)")
    parser.add_argument("--fbgemm", default="1.6.0", help="fbgemm-gpu; 1.6 fits torch 2.11 (%(default)s)")
    parser.add_argument("--torchrec", default="1.6.1", help="torchrec (%(default)s)")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS[:2]))
    parser.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="further kernels, by their names"
    )
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME", help="further packages, without their needs")
    parser.add_argument("--store", type=Path, default=STORE, help="the small store that goes along (%(default)s)")
    parser.add_argument("--no-store", action="store_true", help="pack libraries alone")
    parser.add_argument("--part-mib", type=int, default=50, help="of a part, at most (%(default)s)")
    parser.add_argument("--most-mib", type=int, default=55, help="of all parts together (%(default)s)")
    asked = parser.parse_args()
    if fault := _fault(asked):
        print(f"benchmarks.gpu.pack: fault: {fault}", file=sys.stderr)
        return 2
    # Beside its place, so that it gets there by a rename, whole or not at all.
    with tempfile.TemporaryDirectory(prefix=".gpu-pack-", dir=asked.out.absolute().parent) as folder:
        work = Path(folder)
        site = work / "site"
        unpack(download(asked, work / "wheels"), site)
        for line in slim_all(site, Wanted.of(asked.arch, asked.optimizers, asked.keep)):
            print(line, flush=True)
        if not asked.no_store:
            add_store(asked.store, site)
        write_contents(asked, site)
        parts = pack(site, work / "parts", asked.part_mib << 20)
        total = sum(part.stat().st_size for part in parts)
        shutil.rmtree(asked.out, ignore_errors=True)
        (work / "parts").rename(asked.out)
    print(f"{len(parts)} parts, {total / 2**20:.1f} MiB: {asked.out}")
    if total > asked.most_mib << 20:
        print(f"benchmarks.gpu.pack: more than {asked.most_mib} MiB; leave an optimizer out", file=sys.stderr)
        return 3
    return 0


def _fault(asked: argparse.Namespace) -> str | None:
    """What is wrong with the command line, before anything is fetched."""
    out: Path = asked.out
    if out.exists() and not (out.is_dir() and all(re.fullmatch(r"part\.\d+", path.name) for path in out.iterdir())):
        return f"--out {out}: exists and is not a folder of parts; name another"
    if not out.absolute().parent.is_dir():
        return f"--out {out}: there is no folder {out.absolute().parent}; make it first"
    if re.fullmatch(r"3\.\d+", asked.python) is None:
        return f"--python {asked.python}: is a version such as 3.12"
    for pattern in asked.keep:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"--keep {pattern}: is no regular expression ({error})"
    if not asked.no_store and not (asked.store / "manifest.json").is_file():
        return f"--store {asked.store}: holds no store; make the quickstart's by `make train`, or say --no-store"
    for tool in ("tar", "xz"):
        if shutil.which(tool) is None:
            return f"{tool}: not found, and the parts are made with it; install it"
    return None


def download(asked: argparse.Namespace, folder: Path) -> list[Path]:
    """Fetches the wheels for the GPU machine's Python."""
    common = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--only-binary=:all:"]
    common += [f"--python-version={asked.python}", "--implementation=cp", f"--dest={folder}"]
    common += [f"--platform={platform}" for platform in PLATFORMS]
    pair = [f"fbgemm-gpu=={asked.fbgemm}", f"torchrec=={asked.torchrec}"]
    for wanted in (["--no-deps", *pair, *WITHOUT_NEEDS, *asked.add], [*WITH_NEEDS]):
        if subprocess.run([*common, *wanted]).returncode != 0:
            raise SystemExit(f"benchmarks.gpu.pack: failed: pip could not fetch {' '.join(wanted)}")
    return sorted(folder.glob("*.whl"))


def unpack(wheels: Sequence[Path], site: Path) -> None:
    """Lays the wheels out as an installation would."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def slim_all(site: Path, wanted: Wanted) -> Iterator[str]:
    """Takes unwanted device code out of every library of fbgemm; yields a line for each."""
    for library in sorted((site / "fbgemm_gpu").glob("*.so")):
        kept, zeroed = slim(library, wanted)
        yield f"{library.name:48s} device code kept {kept / 2**20:7.1f} MiB, left out {zeroed / 2**20:7.1f} MiB"


def slim(library: Path, wanted: Wanted) -> tuple[int, int]:
    """Zeroes the images of one library that are not wanted; bytes kept and zeroed."""
    kept = zeroed = 0
    if not library.stat().st_size:
        return 0, 0
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as blob:
        for entry in list(entries(blob)):
            if _is_wanted(library.name, entry, blob, wanted):
                kept += entry.size
            else:
                blob[entry.start : entry.start + entry.size] = bytes(entry.size)
                zeroed += entry.size
    return kept, zeroed


def _is_wanted(library: str, entry: Entry, blob: mmap.mmap, wanted: Wanted) -> bool:
    if entry.kind != CUBIN or entry.arch != wanted.arch or library in DROPPED:
        return False
    if library in WHOLE:
        return True
    # What holds no embedding kernel is small, and all others may need it.
    large = [name for name in kernel_names(blob, entry) if "_codegen_" in name]
    return not large or any(wanted.keep.search(name) for name in large)


def entries(blob: mmap.mmap) -> Iterator[Entry]:
    """The images of all fat binaries in a file, as NVIDIA's linker lays them out."""
    at = 0
    while (at := blob.find(MAGIC, at)) >= 0:
        if at + HEADER_BYTES > len(blob):
            return
        header, size = struct.unpack_from("<HQ", blob, at + 6)
        end = at + header + size
        if header != HEADER_BYTES or end > len(blob):
            at += len(MAGIC)  # the same four bytes by chance
            continue
        place = at + header
        while place + ENTRY_BYTES <= end:
            kind, _, own, payload, packed = struct.unpack_from("<HHIQI", blob, place)
            (arch,) = struct.unpack_from("<I", blob, place + 28)
            (raw,) = struct.unpack_from("<Q", blob, place + 56)
            if own < ENTRY_BYTES:
                break  # no image has so short a head, and the walk would not end
            yield Entry(place + own, payload, packed, raw, kind, arch)
            place += own + payload
        at = end


def kernel_names(blob: mmap.mmap, entry: Entry) -> set[str]:
    """Mangled names of the kernels of an image."""
    image = blob[entry.start : entry.start + entry.size]
    if image.startswith(ZSTD):
        packed = image[: entry.packed] if entry.packed else image
        image = pa.decompress(packed, decompressed_size=entry.raw, codec="zstd", asbytes=True)
    return {name.decode() for name in re.findall(rb"\.text\.(_Z\w+)", image)}


def add_store(store: Path, site: Path) -> None:
    """Lays the small store beside the libraries, and what training on this machine's CPU makes of it."""
    from benchmarks.gpu.quickstart import GOLDEN, golden_is_of, make_golden

    shutil.copytree(store, site / PACKED_STORE)
    golden = store.parent / GOLDEN
    # It is made once for a store: a pass over it takes minutes.
    if not golden_is_of(store, golden):
        print("training the quickstart on this CPU, for its losses ...", flush=True)
        make_golden(
            store, [f"data.store='{store.absolute()}'", "train.log_every_steps=1", "train.num_epochs=1"], golden
        )
    shutil.copy(golden, site / GOLDEN)


def write_contents(asked: argparse.Namespace, site: Path) -> None:
    """Writes what was packed for what, so that another machine can say in a line why it does not fit."""
    contents = {
        "python": asked.python,
        "arch": asked.arch,
        "fbgemm": asked.fbgemm,
        "torchrec": asked.torchrec,
        "optimizers": asked.optimizers,
        "keep": asked.keep,
        "tied": tied_files(site),
    }
    (site / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def misfit(contents: Mapping[str, Any], python: tuple[int, int], capability: tuple[int, int] | None) -> str | None:
    """Why a packed folder is not for this machine, in a line; None where it is.

    Args:
        contents: its `packed.json`.
        python: version of the interpreter.
        capability: of the GPU; None without one.
    """
    here = ".".join(map(str, python))
    if contents["python"] != here:
        return (
            f"the folder was packed for Python {contents['python']}, and this is {here}; pack it with --python {here}"
        )
    if capability is not None and contents["arch"] != 10 * capability[0] + capability[1]:
        arch = 10 * capability[0] + capability[1]
        return f"packed for sm_{contents['arch']}, and this GPU is sm_{arch}; pack it with --arch {arch}"
    return None


def pack(site: Path, parts: Path, part_bytes: int) -> list[Path]:
    """Writes the tree as one xz stream, cut into parts; zeros become holes, which unpack at once."""
    parts.mkdir()
    tar = subprocess.Popen(["tar", "-C", site, "--sort=name", "--sparse", "-c", "."], stdout=subprocess.PIPE)
    xz = subprocess.Popen(["xz", "-4", "-T0"], stdin=tar.stdout, stdout=subprocess.PIPE)
    assert tar.stdout is not None and xz.stdout is not None
    tar.stdout.close()
    written = _cut(xz.stdout, parts, part_bytes)
    if tar.wait() or xz.wait():
        raise SystemExit("benchmarks.gpu.pack: failed: tar or xz ended with an error; is the disk full?")
    return written


def _cut(stream: IO[bytes], parts: Path, part_bytes: int) -> list[Path]:
    written: list[Path] = []
    while chunk := stream.read(part_bytes):
        path = parts / f"part.{len(written):02}"
        path.write_bytes(chunk)
        written.append(path)
    return written


def tied_files(site: Path) -> dict[str, str]:
    """Compiled files that only one Python can load, and that Python, such as "311"; others work with any.

    A file says so by its own name, or by the tag of the wheel that it came in.
    """
    tags = {}
    for record in site.glob("*.dist-info/WHEEL"):
        found = re.search(r"^Tag: cp(\d+)-cp\d+-", record.read_text(encoding="utf-8"), re.MULTILINE)
        if found is None:
            continue
        for line in record.with_name("RECORD").read_text(encoding="utf-8").splitlines():
            tags[line.split(",")[0]] = found[1]
    tied = {}
    for path in sorted(site.rglob("*.so*")):
        name = str(path.relative_to(site))
        own = TIED.search(path.name)
        python = own[1] if own and own[1] else tags.get(name)
        if python is not None:
            tied[name] = python
    return tied


if __name__ == "__main__":
    sys.exit(main())
