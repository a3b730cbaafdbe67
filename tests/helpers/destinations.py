"""Every verb is given destinations that cannot be written; run in a mount namespace of its own, prints JSON lines.

usage: python destinations.py FOLDER [mounts]
`mounts` says that file systems may be mounted: one that is read-only, one that is full.
"""

import json
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from infnet_rec import cli

RECIPE = """
name = "tiny"
licence = "made up"
log = { files = ["log.csv"], user = "user_id", item = "item_id", time = "ts", time_unit = "s" }
behaviours = [{ name = "click", where = "click = 1" }]
sequences = { attributes = ["item_id"] }
tasks = [{ name = "click", label = "click" }]
splits = { by = "rows_of_each_user", valid = 0.2, test = 0.2 }
[[features]]
side = "user"
encoding = "index"
columns = ["user_id"]
[[features]]
side = "item"
encoding = "index"
columns = ["item_id"]
"""
RUN = """
data = { store = "store", sequence_length = 5 }
model = { width = 8, num_blocks = 2 }
[train]
global_batch_size = 64
num_epochs = 1
"""
EXPERIMENT = 'base = "run.toml"\nseeds = [0]\n[[variants]]\nname = "a"\n'
# What precedes the destination on the command line. `file`: a new file, and the ending that its name needs; `folder`: a
# new folder; `picture`: a file that only an older one of its kind may stand in the place of.
COMMANDS: dict[str, tuple[str, str]] = {
    "data generate --out": ("data generate --examples 2000 --out", "folder"),
    "data build --out": ("data build recipe.toml --raw . --out", "folder"),
    "data sniff --out": ("data sniff log.csv --out", "file .toml"),
    "data stats --plot": ("data stats store --plot", "file .png"),
    "train --run-dir": ("train run.toml --run-dir", "folder"),
    "experiment --out": ("experiment experiment.toml --out", "folder"),
    "report --out": ("report results --out", "folder"),
    "attention --out": ("attention run.toml --checkpoint run --out", "folder"),
    "plan --out": ("plan run.toml -j 1x2 --hardware h100 --out", "file .json"),
    "plan --plot": ("plan run.toml -j 1x2 --hardware h100 --plot", "file .png"),
    "launch --out": ("launch run.toml -j 1x2 --as sbatch --run-dir x --out", "file .sh"),
    "bench run --out": ("bench run run.toml --steps 10 --out", "file .json"),
    "bench run --trace": ("bench run run.toml --steps 10 --trace", "file .json"),
    "bench tower --sweep": ("bench tower run.toml --rounds 1 --sweep", "file .png"),
}
# They read, or name a folder for another machine.
NOT_WRITTEN = {"launch --run-dir", "submit --run-dir"}
MINE = "written by a person"


def make(folder: Path) -> None:
    """A log, its store, a finished run and a finished experiment."""
    draw = random.Random(5)
    rows = [
        (f"{u},{draw.randrange(30)},{1_700_000_000 + 60 * k},{draw.randrange(2)}") for u in range(20) for k in range(20)
    ]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,ts,click", *rows]) + "\n", encoding="utf-8")
    for name, text in (("recipe", RECIPE), ("run", RUN), ("experiment", EXPERIMENT)):
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    for words in (
        "data build recipe.toml --raw . --out store",
        "train run.toml --run-dir run",
        "experiment experiment.toml --out results",
    ):
        code, said = call(folder, words.split())
        assert code == 0, (words, said)


def call(folder: Path, words: list[str]) -> tuple[int, str]:
    """Exit code and all that was printed."""
    log = folder.parent / "said.txt"
    with log.open("w+", encoding="utf-8") as file:
        sys.argv = ["infnet-rec", *words]
        code = 0
        with redirect_stdout(file), redirect_stderr(file):
            try:
                cli.main()
            except SystemExit as left:
                code = int(left.code or 0)
            except BaseException:
                traceback.print_exc()
                code = -1
    return code, log.read_text(encoding="utf-8", errors="replace")


def places(folder: Path, kind: str, *, mounts: bool) -> Iterator[tuple[str, Path]]:
    """What is wrong with a place, and the place."""
    name = "new" + kind.partition(" ")[2]
    if mounts:
        yield "read-only", folder / "ro" / name
        yield "full", folder / "full" / name
        if kind == "folder":
            yield "full, in a new parent", folder / "full" / "parent" / name
            yield "read-only, in a new parent", folder / "ro" / "parent" / name
    if os.geteuid() != 0:
        yield "not permitted", folder / "closed" / name
    yield "below a file", folder / "notes.txt" / name
    yield "name too long", folder / ("x" * 250 + "/" + "y" * 300 + name)
    if kind == "folder":
        yield "a file in its place", folder / "notes.txt"
        yield "somebody's folder", folder / "somebody"
    else:
        yield "no such parent", folder / "missing" / name
        yield "a folder in its place", folder / ("taken" + name)
        yield "somebody's file", folder / ("mine" + name)


def everything(folder: Path) -> dict[str, str]:
    """Every name, and the text of what a person wrote."""
    kept = {"notes.txt", "plan.md"}
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        if path.name in kept or path.name.startswith("mine")
        else ""
        for path in sorted(folder.rglob("*"))
    }


def main() -> None:
    """Makes what the verbs need, then tries them all."""
    folder, mounts = Path(sys.argv[1]).absolute(), "mounts" in sys.argv
    os.chdir(folder)
    make(folder)
    (folder / "notes.txt").write_text(MINE, encoding="utf-8")
    (folder / "somebody").mkdir()
    for name in ("plan.md", "report.md", "report.csv"):
        (folder / "somebody" / name).write_text(MINE, encoding="utf-8")
    (folder / "closed").mkdir(mode=0o500)
    for ending in (".png", ".json", ".sh", ".toml"):
        (folder / f"takennew{ending}").mkdir()
        (folder / f"minenew{ending}").write_text(MINE, encoding="utf-8")
    if mounts:
        for name, options in (("ro", "size=64k,ro"), ("full", "size=64k")):
            (folder / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / name)], check=True)
        with suppress(OSError), (folder / "full" / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(512))
    before = everything(folder)
    for option, (words, kind) in COMMANDS.items():
        for wrong, place in places(folder, kind, mounts=mounts):
            code, said = call(folder, [*words.split(), str(place)])
            left = {name for name, text in everything(folder).items() if before.get(name) != text}
            gone = set(before) - set(everything(folder))
            print(json.dumps([option, wrong, code, said, sorted(left | gone)]), flush=True)


if __name__ == "__main__":
    main()
