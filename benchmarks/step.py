"""A whole training step of INFNet before and after a change of the package, side by side.

    git worktree add ../before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/step.py --before ../before --raw DIR [--work DIR] [--rounds 3] [--only NAME ...]
    OMP_NUM_THREADS=1 python benchmarks/step.py --quick        this checkout against itself; written to runs/quick

DIR holds the raw files that `configs/datasets/kuairand_pure_late.toml` names. The other store is generated: 200,000
rows of 200 users, whose histories are full. Both are built in the folder of --work by this checkout.

Each round starts both checkouts in turn, a process each, on one thread of one rank: first steps to warm up, then steps
that are timed one by one. A step is what the training loop calls: lookups, tower, loss, backward, both optimizers. The
time is processor time, because a machine is seldom quiet, and the shortest step of all rounds is what counts, with the
median beside it. The peak of memory is that of a step, above weights and inputs, counted operator by operator. Every
measurement is a line of `benchmarks/results/step.jsonl`; `step.md` shows them as a table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
INFNET_REC = [sys.executable, "-m", "infnet_rec.cli"]
DATASETS = ROOT / "configs" / "datasets"
CONFIG = "configs/kuairand_pure_late.toml"
BEFORE, AFTER = "before", "after"

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """What both checkouts do.

    Attributes:
        store: "generated" or "real".
        profile: of the store.
        length: newest events of each behaviour.
        readout: of the tower.
    """

    store: str
    profile: str
    length: int
    readout: str

    @property
    def name(self) -> str:
        """As in --only and in the table."""
        return f"{self.store} {self.profile} {self.length} {self.readout}"


@dataclass(frozen=True, slots=True)
class StepEffort:
    """How much is done.

    Attributes:
        cases: each.
        num_examples: of a batch.
        num_batches: that are read, and come in turn.
        num_steps: timed in a process.
        num_rows: of the generated log.
        num_users: who share these rows.
    """

    cases: tuple[Case, ...]
    num_examples: int
    num_batches: int
    num_steps: int
    num_rows: int
    num_users: int


KINDS = (("generated", "ctx89"), ("real", "ctx89"), ("real", "ctx89_exposures"))
CASES = tuple(
    Case(*kind, length, readout)
    for kind in KINDS
    for length, readout in ((50, "task"), (50, "proxies"), (20, "task"), (100, "task"))
)
FULL = StepEffort(CASES, num_examples=1024, num_batches=4, num_steps=12, num_rows=200_000, num_users=200)
QUICK = StepEffort((Case("generated", "ctx89", 5, "task"),), 32, 2, 2, num_rows=3000, num_users=20)


def main() -> None:
    """Measures what is asked for, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of the package as it was")
    parser.add_argument("--raw", type=Path, help="the raw files of the real store; without them it is left out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="beginnings of names of cases")
    parser.add_argument("--quick", action="store_true", help="one small case of this checkout against itself")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    if arguments.before is None and not arguments.quick:
        parser.error("--before is missing: a checkout of the package as it was")
    if arguments.quick:
        with tempfile.TemporaryDirectory() as work:
            compare(QUICK, ROOT, None, Path(work), num_rounds=1, results=ROOT / "runs" / "quick" / "step.jsonl")
        return
    wanted = tuple(arguments.only or ("",))
    cases = tuple(c for c in FULL.cases if c.name.startswith(wanted) and (arguments.raw or c.store != "real"))
    assert arguments.before is not None
    effort = StepEffort(**{**{f: getattr(FULL, f) for f in StepEffort.__dataclass_fields__}, "cases": cases})
    results = HERE / "results" / "step.jsonl"
    compare(effort, arguments.before, arguments.raw, arguments.work, num_rounds=arguments.rounds, results=results)


def compare(effort: StepEffort, before: Path, raw: Path | None, work: Path, *, num_rounds: int, results: Path) -> None:
    """Both checkouts, round after round.

    Args:
        effort: what to do.
        before: a checkout.
        raw: files of the real store.
        work: where stores are, or are made.
        num_rounds: of both checkouts.
        results: lines of earlier measurements, to which more are added.
    """
    trees = {BEFORE: before.resolve(), AFTER: ROOT}
    commits = {name: commit_of(tree) for name, tree in trees.items()}
    results.parent.mkdir(parents=True, exist_ok=True)
    for case in effort.cases:
        store = made_store(case.store, effort, raw, work)
        for _ in range(num_rounds):
            for name, tree in trees.items():
                task = asdict(case) | {"path": str(store), "num_examples": effort.num_examples}
                task |= {"num_batches": effort.num_batches, "num_steps": effort.num_steps}
                line = {"case": case.name, "form": name, "commit": commits[name], **measured(tree, task)}
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        results.with_suffix(".md").write_text(page(lines), encoding="utf-8")


def measured(tree: Path, task: JSON) -> JSON:
    """One process of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", json.dumps(task)]
    done = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(task: JSON) -> JSON:
    """In a process of its own, with the package of the checkout that it was started in."""
    from infnet_rec.config.load import load_config
    from infnet_rec.data.run_data import open_data
    from infnet_rec.distributed.process_group import (
        process_group,
        silence_third_party_warnings,
        use_threads,
        world_from_env,
    )
    from infnet_rec.planner.op_counter import OpCounter
    from infnet_rec.trainer.build import shard_model, train_loader

    overrides = [
        f"data.store='{task['path']}'",
        f"data.profile='{task['profile']}'",
        f"data.sequence_length={task['length']}",
        f"model.readout='{task['readout']}'",
        f"train.global_batch_size={task['num_examples']}",
        "train.num_threads=1",
    ]
    silence_third_party_warnings()
    config = load_config(Path(CONFIG), overrides)
    world, data = world_from_env(), open_data(config)
    use_threads(1, world)
    batches = list(train_loader(config, data, world).batches(0, task["num_batches"]))
    with process_group(world):
        sharded = shard_model(config, data, world)
        sharded.model.train()
        pending = cycle(batches)
        losses = [sharded.pipeline.progress(pending).loss_T.tolist() for _ in range(3)]
        steps_s = []
        for _ in range(task["num_steps"]):
            started_s = time.process_time()
            sharded.pipeline.progress(pending)
            steps_s.append(time.process_time() - started_s)
        with OpCounter() as counter:
            sharded.pipeline.progress(pending)
    events = sum(int(batch.lengths_FB.sum()) for batch in batches) / len(batches) / task["num_examples"]
    return {
        "shortest_ms": min(steps_s) * 1e3,
        "median_ms": median(steps_s) * 1e3,
        "peak_mib": counter.peak_bytes / 2**20,
        "events_per_example": events,
        "num_examples": task["num_examples"],
        "first_losses": losses,
    }


def made_store(name: str, effort: StepEffort, raw: Path | None, work: Path) -> Path:
    """The store of this name, which is made where it is not there."""
    built = work / name
    if built.exists():
        return built
    work.mkdir(parents=True, exist_ok=True)
    if name == "real":
        assert raw is not None
        recipe = DATASETS / "kuairand_pure_late.toml"
    else:
        raw, recipe = work / "raw", DATASETS / "kuairand_pure.toml"
        sizes = ["--examples", str(effort.num_rows), "--users", str(effort.num_users), "--seed", "1"]
        _run("data", "generate", *sizes, "--out", str(raw))
    _run("data", "build", str(recipe), "--raw", str(raw), "--out", str(built))
    return built


def _run(*arguments: str) -> None:
    subprocess.run([*INFNET_REC, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def commit_of(tree: Path) -> str:
    """What is checked out; with a plus where something was changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(tree), *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "infnet_rec")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


def page(lines: Sequence[JSON]) -> str:
    """The table for people: of each case all rounds of the two commits that were measured last."""
    text = [
        "# A training step before and after",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/step.py --before CHECKOUT --raw DIR`. Processor time of a whole",
        "training step of INFNet on one thread: the shortest of all rounds, the median in brackets. Memory is the peak",
        "of a step above weights and inputs. A case is a store, its profile, the newest events of each behaviour, and",
        "what heads read. The generated store has full histories; the real one is the excerpt of KuaiRand-Pure. Every",
        "measurement is a line of [step.jsonl](step.jsonl).",
        "",
        "| case | examples | events an example | before, ms | after, ms | times | before, MiB | after, MiB | of it "
        "| commits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(line["case"] for line in lines):
        mine = [line for line in lines if line["case"] == case]
        by_form = [[line for line in mine if line["form"] == form] for form in (BEFORE, AFTER)]
        # A round is one of each; a stopped one is left out.
        rounds = list(zip(*by_form, strict=False))
        commits = [line["commit"] for line in rounds[-1]]
        rounds = [pair for pair in rounds if [line["commit"] for line in pair] == commits]
        of_form = dict(zip((BEFORE, AFTER), zip(*rounds, strict=True), strict=True))
        first = of_form[AFTER][0]
        ms = {form: min(line["shortest_ms"] for line in own) for form, own in of_form.items()}
        usual = {form: median(line["median_ms"] for line in own) for form, own in of_form.items()}
        peak = {form: max(line["peak_mib"] for line in own) for form, own in of_form.items()}
        cells = [
            case,
            f"{first['num_examples']:,}",
            f"{first['events_per_example']:.0f}",
            *(f"{ms[form]:.0f} ({usual[form]:.0f})" for form in (BEFORE, AFTER)),
            f"{ms[BEFORE] / ms[AFTER]:.2f}",
            *(f"{peak[form]:.1f}" for form in (BEFORE, AFTER)),
            f"{peak[AFTER] / peak[BEFORE]:.2f}",
            " / ".join(commits),
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
