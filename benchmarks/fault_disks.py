"""Faults of disks: checkpoints that are damaged or do not fit, a store that is cut."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.fault_kinds import Bench, NotHere, Outcome
from benchmarks.fault_runs import SAVE_EVERY


def broken(damage: Callable[[Path, random.Random], None]) -> Callable[[Bench], Outcome]:
    """The newest checkpoint is damaged: it is named, and an older one is used."""

    def fault(bench: Bench) -> Outcome:
        run = bench.run()
        bench.hurt(run, [0, 1], first=2 * SAVE_EVERY + 2)
        newest = run.commits()[-1]
        part = bench.dice.choice([name for name in newest.parts if name.endswith(".distcp")])
        damage(run.run_dir / "checkpoints" / f"step-{newest.step:08}" / part, bench.dice)
        second = run.complete()
        lines = [x for x in second.said.splitlines() if f"step-{newest.step:08}" in x and "skipped" in x]
        named = any(part in line for line in lines)
        older = f"goes on from step {newest.step - SAVE_EVERY}," in second.said
        return bench.judge(run).noted("not named, or no older one used", unless=named and older)

    return fault


def truncate(path: Path, dice: random.Random) -> None:
    """Cuts a file off at a random byte."""
    os.truncate(path, dice.randrange(path.stat().st_size))


def flip_bit(path: Path, dice: random.Random) -> None:
    """Changes one random bit."""
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def disk_full(bench: Bench) -> Outcome:
    """A disk with room for two checkpoints and a half; when one was lost it is made larger, the run still going on."""
    disk = bench.folder.parent / f"{bench.folder.name}-disk"
    disk.mkdir()
    size = int(2.5 * bench.reference.commits()[-1].num_bytes)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHere("no file system may be mounted here") from error
    try:
        run = bench.run(f"checkpoint.folder='{disk}'", checkpoints=disk)
        only = run.start()
        lost = only.until(lambda: "is lost, training goes on" in only.said)
        older = len(run.commits())
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        only.finish()
        return bench.judge(run).noted("no checkpoint was lost, or an older one was", unless=lost and older >= 2)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def store_truncated(bench: Bench) -> Outcome:
    """A file of the store is cut while it is read; the run refuses to go on, until the file is mended."""
    store = bench.folder.parent / f"{bench.folder.name}-store"
    shutil.copytree(bench.reference.store, store)
    run, file = bench.run(store=store), store / "examples" / "train.arrow"
    first = run.start()
    bench.reach(first, bench.any_step(SAVE_EVERY) // 2)
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 4)
    first.finish()
    second = run.complete()
    file.write_bytes(whole)
    run.complete()
    refused = second.code == 2 and "train.arrow" in second.said
    outcome = bench.judge(run).noted("went on with half a store", unless=refused and any(first.exits.values()))
    return replace(outcome, note=f"{outcome.note} first exits {sorted(first.exits.values())}".strip())
