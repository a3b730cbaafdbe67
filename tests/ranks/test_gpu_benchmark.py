"""The proof on a GPU, rehearsed on a CPU: every part, its limits, its results, and the packed folder."""

import json
import mmap
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import pack
from benchmarks.gpu.full_size import launches_of
from benchmarks.gpu.records import BEGINS, RESULTS, Settings, Writer, closing_table, latest, read_lines

ROOT = Path(__file__).parents[2]
# Not on a machine that has the packed folder only.
ABSENT = ("duckdb", "optuna", "torchx", "torchmetrics")
REHEARSAL_S = 1500


@pytest.fixture(scope="module")
def rehearsal(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """The lines of all parts, and what was printed, where the packages that a GPU machine lacks cannot be imported."""
    folder = tmp_path_factory.mktemp("gpu")
    blocked = folder / "blocked"
    blocked.mkdir()
    names = ", ".join(map(repr, ABSENT))
    (blocked / "sitecustomize.py").write_text(f"import sys\nfor name in ({names}):\n    sys.modules[name] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(blocked), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--rehearse",
        f"--out={folder / 'out'}",
        f"--store={small_store}",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=REHEARSAL_S)
    lines = read_lines(folder / "out" / RESULTS)
    bad = [line for line in lines if line["verdict"] in ("failed", "wrong")]
    assert done.returncode in (0, 3) and not bad, (bad, done.stderr[-2000:])
    return lines, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", gpu.NAMES)
def test_every_part_runs_without_what_a_gpu_machine_lacks(part: str, rehearsal: tuple) -> None:
    lines = [line for line in rehearsal[0] if line["part"] == part]
    whole = lines[-1]
    assert whole["check"] == "whole part" and whole["verdict"] == "measured", whole
    told = {line["verdict"] for line in lines[:-1]}
    assert told & {"right", "reached", "measured"}, lines
    assert re.search(rf"^{part} +(right|reached|measured|missed) ", rehearsal[1], re.MULTILINE), rehearsal[1]


@pytest.mark.slow
def test_the_rehearsal_goes_through_the_kernels_and_every_model(rehearsal: tuple) -> None:
    checks = {line["check"]: line for line in rehearsal[0]}
    assert any(name.startswith("ragged, width 36") for name in checks)
    assert any(name.endswith("fused, times literal") for name in checks)
    models = {name.split(",")[0] for line in rehearsal[0] if line["part"] == "every_model" for name in [line["check"]]}
    assert len(models - {"whole part", BEGINS}) == 13
    assert checks["stopped and gone on to the bit"]["figure"] == 0
    assert checks["asynchronous checkpoints are the synchronous ones"]["figure"] == 0
    assert checks["data check"]["figure"] == 0
    # What needs two GPUs is listed and says why.
    listed = [line for line in rehearsal[0] if line["verdict"] == "not run" and "two" in line.get("note", "")]
    assert len(listed) >= 3


def test_the_blocking_of_imports_blocks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['duckdb'] = None\n")
    done = subprocess.run(
        [sys.executable, "-c", "import infnet_rec.data.ingest.build"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "duckdb" in done.stderr


def run_with(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> list[dict[str, Any]]:
    """A part whose process is another command."""
    monkeypatch.setattr(gpu, "_command", lambda name, settings: command)
    gpu._run_part(gpu.Part("tower", limit_s / 10, limit_s), Settings(tmp_path, "rehearsal"), 1000.0)
    return read_lines(tmp_path / RESULTS)


def writing(tmp_path: Path, then: str) -> list[str]:
    """A process that writes a line and then does something."""
    results = str(tmp_path / RESULTS)
    write = f"""from pathlib import Path
from benchmarks.gpu.records import Writer
w = Writer(Path({results!r}), 'tower')"""
    return [sys.executable, "-c", f"{write}\nw('before', 'right', 1.0, 2.0)\nimport os, sys, time\n{then}"]


@pytest.mark.slow
def test_a_part_that_hangs_is_cut_off_and_what_it_wrote_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = (
        "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    )
    _, before, whole = run_with(writing(tmp_path, child), tmp_path, monkeypatch, 12.0)
    assert (before["check"], before["verdict"]) == ("before", "right")
    assert whole["verdict"] == "failed" and whole["note"] == "cut off after 12 s"


@pytest.mark.parametrize(
    ("then", "note"),
    [
        ("sys.exit('no kernel image is available')", "exit code 1: no kernel image is available"),
        ("os.kill(os.getpid(), 11)", "exit code -11: it said nothing"),
        ("raise ArithmeticError('off by one')", "exit code 1: ArithmeticError: off by one"),
    ],
)
def test_a_part_that_fails_says_why(then: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, whole = run_with(writing(tmp_path, then), tmp_path, monkeypatch, 100.0)
    assert (whole["verdict"], whole["note"]) == ("failed", note)


def test_a_part_without_time_is_listed(tmp_path: Path) -> None:
    gpu._run_part(gpu.PARTS[0], Settings(tmp_path, "smallest"), 1.0)
    (line,) = read_lines(tmp_path / RESULTS)
    assert (line["verdict"], line["note"]) == ("not run", "no time was left")


def test_all_parts_at_their_smallest_fit_the_first_minutes() -> None:
    """The limits are ceilings, of which parts use a fraction; the sum of all is cut by the call's own."""
    assert gpu.BUDGET_S["smallest"] <= 300 and gpu.BUDGET_S["full"] <= 240
    assert all(part.smallest_s <= 90 and part.full_s <= 230 for part in gpu.PARTS)


def test_without_a_gpu_the_command_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"benchmarks\.gpu: fault: .*; --rehearse runs every part on a CPU\n", done.stderr), done.stderr


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    write = Writer(path, "tower")
    write.compared("a", 1e-6, 1e-5)
    write.compared("b", float("nan"), 1e-5)
    write.aimed("c", 3.0, 10.0)
    with path.open("a") as file:
        file.write('{"part": "tower", "ver')
    assert [line["verdict"] for line in read_lines(path)] == ["right", "wrong", "missed"]


def test_the_closing_table_shows_the_worst_first(tmp_path: Path) -> None:
    write = Writer(tmp_path / RESULTS, "tower")
    write.aimed("times literal", 12.0, 10.0, headline=True)
    write("whole part", "measured", wall_s=4.2)
    kernels = Writer(tmp_path / RESULTS, "kernels")
    kernels.compared("width 8", 1e-6, 1e-5, headline=True)
    kernels.compared("width 12", 0.5, 1e-5)
    text = closing_table(read_lines(tmp_path / RESULTS), ("kernels", "tower", "hardware"))
    rows = [re.split(r"  +", row) for row in text.splitlines()[1:]]
    assert rows[0] == ["kernels", "wrong", "2", "width 12", "0.5", "1e-05"]
    assert rows[1] == ["tower", "reached", "1", "times literal", "12", "10", "4"]
    assert rows[2] == ["hardware", "not run", "0"]


def test_an_earlier_call_of_a_part_does_not_count(tmp_path: Path) -> None:
    write = Writer(tmp_path / RESULTS, "tower")
    for figure in (5.0, 1e-9):
        write(BEGINS, "measured")
        write.compared("forms agree", figure, 1e-5)
    (line,) = latest(read_lines(tmp_path / RESULTS), "tower")
    assert line["verdict"] == "right"
    assert re.split(r"  +", closing_table(read_lines(tmp_path / RESULTS), ("tower",)).splitlines()[1])[1] == "right"


def test_launches_are_counted_within_the_steps(tmp_path: Path) -> None:
    def event(name: str, category: str, start: float) -> dict[str, Any]:
        return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": 1.0, "tid": 1, "args": {}}

    steps = [event("infnet_rec step", "user_annotation", at) | {"dur": 100.0} for at in (100.0, 200.0)]
    launches = [event("cudaLaunchKernel", "cuda_runtime", at) for at in (50.0, 110.0, 120.0, 210.0)]
    graphs = [event("cudaGraphLaunch", "cuda_runtime", 220.0)]
    kernels = [event("gemm", "kernel", at) for at in (111.0, 121.0, 211.0, 221.0, 222.0)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": steps + launches + graphs + kernels}))
    found = launches_of(path)
    assert (found["launches"], found["kernels"], found["counted"]) == (2.0, 2.5, "launches")


# A fat binary, as NVIDIA's linker lays it out: a head, then images, each with a head of its own.
def image(kind: int, arch: int, payload: bytes, *, compressed: bool = False) -> bytes:
    raw = len(payload)
    if compressed:
        payload = pa.compress(payload, codec="zstd", asbytes=True)
    packed = len(payload) if compressed else 0
    head = struct.pack("<HHIQI", kind, 0x101, 64, len(payload), packed).ljust(28, b"\0") + struct.pack("<I", arch)
    return head.ljust(56, b"\0") + struct.pack("<Q", raw) + payload


def fat_binary(*images: bytes) -> bytes:
    body = b"".join(images)
    return pack.MAGIC + b"\1\0" + struct.pack("<HQ", 16, len(body)) + body


def code(name: str) -> bytes:
    return b"\x7fELF" + b".text." + name.encode() + b"\0" + b"\xab" * 50


ADAM = "_Z66split_embedding_backward_codegen_adam_unweighted_kernel_cta_per_rowIfEvv"
SGD = "_Z66split_embedding_backward_codegen_sgd_unweighted_kernel_cta_per_rowIfEvv"


@pytest.mark.parametrize("compressed", [False, True])
def test_only_wanted_kernels_stay(compressed: bool, tmp_path: Path) -> None:
    images = {
        "adam": image(2, 90, code(ADAM), compressed=compressed),
        "sgd": image(2, 90, code(SGD), compressed=compressed),
        "older": image(2, 80, code(ADAM), compressed=compressed),
        "ptx": image(1, 90, code(ADAM)),
        "small": image(2, 90, code("_Z9elsewherev"), compressed=compressed),
    }
    blob = b"\x11" * 40 + fat_binary(*images.values()) + pack.MAGIC + b"by chance" + fat_binary(images["sgd"])
    library = tmp_path / "fbgemm_gpu_tbe_training_backward.so"
    library.write_bytes(blob)
    kept, zeroed = pack.slim(library, pack.Wanted.of(90, ["rowwise_adagrad", "adam"], []))
    after = library.read_bytes()
    assert len(after) == len(blob)
    assert images["adam"] in after and images["small"] in after
    for name in ("sgd", "older", "ptx"):
        assert images[name][:64] in after and images[name] not in after
    assert kept == len(images["adam"]) + len(images["small"]) - 128
    assert zeroed == sum(len(images[name]) - 64 for name in ("sgd", "sgd", "older", "ptx"))
    # Asked for by name, it stays; of a library that nothing here calls, nothing does.
    library.write_bytes(blob)
    pack.slim(library, pack.Wanted.of(90, ["adam"], ["codegen_sgd_"]))
    assert images["sgd"] in library.read_bytes()
    dropped = tmp_path / pack.DROPPED[0]
    dropped.write_bytes(blob)
    assert pack.slim(dropped, pack.Wanted.of(90, ["adam"], []))[0] == 0


def test_files_that_only_look_like_fat_binaries_are_read_to_their_end(tmp_path: Path) -> None:
    draw = random.Random(0)
    for trial in range(300):
        blob = bytearray(fat_binary(image(2, 90, code(ADAM)), image(2, 80, code(SGD))))
        for _ in range(draw.randint(1, 12)):
            blob[draw.randrange(len(blob))] = draw.randrange(256)
        path = tmp_path / f"{trial}.so"
        path.write_bytes(bytes(blob[: draw.randint(1, len(blob))]))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            for entry in pack.entries(mapped):
                assert entry.start <= len(mapped)


def test_compiled_files_name_the_python_that_they_are_tied_to(tmp_path: Path) -> None:
    for name in ("fbgemm_gpu/fbgemm.so", "fbgemm_gpu/docs/x.py", "orjson/orjson.cpython-311-x86_64-linux-gnu.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    info = tmp_path / "fbgemm_gpu-1.6.0.dist-info"
    info.mkdir()
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_x86_64\n")
    (info / "RECORD").write_text("fbgemm_gpu/fbgemm.so,sha256=x,1\nfbgemm_gpu/docs/x.py,,\n")
    assert pack.tied_files(tmp_path) == {
        "fbgemm_gpu/fbgemm.so": "311",
        "orjson/orjson.cpython-311-x86_64-linux-gnu.so": "311",
    }


def test_every_compiled_file_tied_to_a_python_has_its_twin_for_the_other() -> None:
    """As packed for 3.11, with which it was tried, and for 3.12, which GPU machines have."""
    packed = json.loads((ROOT / "benchmarks" / "results" / "gpu_pack.json").read_text())
    assert {one["python"] for one in packed} == {"3.11", "3.12"}
    names = {}
    for one in packed:
        version = one["python"].replace(".", "")
        assert one["tied"] and set(one["tied"].values()) == {version}
        assert one["mib"] <= 55
        names[version] = {name.replace(f"cpython-{version}", "cpython") for name in one["tied"]}
    assert names["311"] == names["312"]


def test_a_folder_packed_for_another_machine_is_refused_in_a_line() -> None:
    contents = {"python": "3.12", "arch": 90}
    assert pack.misfit(contents, (3, 12), (9, 0)) is None and pack.misfit(contents, (3, 12), None) is None
    assert "packed for Python 3.12, and this is 3.11" in str(pack.misfit(contents, (3, 11), (9, 0)))
    assert "packed for sm_90, and this GPU is sm_80; pack it with --arch 80" in str(
        pack.misfit(contents, (3, 12), (8, 0))
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "{folder}/mine", "--no-store"], "exists and is not a folder of parts"),
        (["--out", "{folder}/none/gpu", "--no-store"], "there is no folder"),
        (["--out", "{folder}/gpu", "--python", "three", "--no-store"], "is a version such as 3.12"),
        (["--out", "{folder}/gpu", "--keep", "(", "--no-store"], "no regular expression"),
        (["--out", "{folder}/gpu", "--store", "{folder}/none"], "holds no store"),
    ],
)
def test_a_command_line_of_pack_that_is_wrong(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ours")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.pack", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ours"
