"""What a checkpoint costs a run: how long training stands still, and how much slower it is while one is written.

    python benchmarks/checkpoint.py configs/quickstart.toml [--ranks 2] [--rows-factor 200] [--rounds 5] [--quick]

The real model, optimizers and batches of a configuration on so many ranks of this machine, with every table's rows
multiplied so that there is something to write. Rounds take turns: a stretch of steps without a checkpoint, a
synchronous checkpoint, an asynchronous one with steps until it is committed, and the writing alone. Medians are
reported. The disk is that of --work.

Results go to `--out`.md and `--out`.json, with the machine they were measured on.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402, TID251 - ranks are timed from barrier to barrier

from infnet_rec.checkpoint.saver import CheckpointSaver  # noqa: E402
from infnet_rec.checkpoint.store import CheckpointStore  # noqa: E402
from infnet_rec.checkpoint.train_state import TrainState  # noqa: E402
from infnet_rec.config.checkpoint import CheckpointConfig  # noqa: E402
from infnet_rec.config.load import load_config  # noqa: E402
from infnet_rec.config.run import RunConfig  # noqa: E402
from infnet_rec.data.run_data import RunData, open_data  # noqa: E402
from infnet_rec.distributed.process_group import World, process_group, silence_third_party_warnings, world_from_env  # noqa: E402
from infnet_rec.trainer.build import Sharded, shard_model, train_loader  # noqa: E402

MOST_STEPS = 1_000


def main() -> None:
    """Becomes torchrun, or is one of its ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in infnet-rec train")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows-factor", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a stretch without a checkpoint")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_checkpoint_benchmark")
    parser.add_argument("--out", type=Path, default=None, help="of the .md and .json, without suffix")
    parser.add_argument("--quick", action="store_true", help="one rank, one round; by default to runs/quick")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ranks, arguments.rows_factor, arguments.rounds, arguments.steps = 1, 1, 1, 2
    results = HERE.parent / "runs" / "quick" if arguments.quick else HERE / "results"
    arguments.out = arguments.out or results / "checkpoint"
    if "RANK" not in os.environ and arguments.ranks > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.ranks}"]
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.ranks)), **os.environ}
        os.execve(sys.executable, [sys.executable, *command, *sys.argv], environment)
    silence_third_party_warnings()
    config, world = load_config(arguments.config, arguments.set), world_from_env()
    data = with_more_rows(open_data(config), arguments.rows_factor)
    with process_group(world):
        result = measure(config, data, world, arguments)
    if world.is_first:
        shutil.rmtree(arguments.work, ignore_errors=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text("\n".join(lines(result)) + "\n")
        print("\n".join(lines(result)))


def with_more_rows(data: RunData, factor: int) -> RunData:
    """The same data read into larger tables; the ids that are read stay those there are."""
    tables = tuple(replace(table, num_rows=table.num_rows * factor) for table in data.schema.tables)
    return replace(data, schema=replace(data.schema, tables=tables))


def measure(config: RunConfig, data: RunData, world: World, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds, on every rank."""
    sharded = shard_model(config, data, world)
    steps = Steps(config, data, world, sharded)
    run = {"config": config.model_dump(mode="json"), "store": "", "world_size": world.world_size, "plan": {}}
    savers = {
        mode: CheckpointSaver(
            CheckpointStore(arguments.work / mode),
            sharded.model,
            sharded.optimizers,
            CheckpointConfig(keep_last=1, mode=mode),
            run,
            steps.complain,
        )
        for mode in ("sync", "async")
    }
    steps.take(3)
    times: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        found = one_round(number + 1, steps, savers, arguments.steps)
        # The first round makes files, buffers and threads that later ones find.
        for name, value in found.items() if number else ():
            times.setdefault(name, []).append(value)
    for saver in savers.values():
        saver.close()
    ms = {name: median(values) * 1e3 for name, values in times.items()}
    commit = CheckpointStore(arguments.work / "sync").commits()[-1] if world.is_first else None
    return {
        "bytes": commit.num_bytes if commit else 0,
        "ms": ms,
        "stall_async_over_sync": ms["async_stall"] / ms["sync_stall"],
        # Nothing, where every checkpoint was on the disk before a step could be taken.
        "step_while_writing_over_step": ms["step_while_writing"] / ms["step"] if "step_while_writing" in ms else None,
        "spread_ms": {name: [min(values) * 1e3, max(values) * 1e3] for name, values in times.items()},
        "rounds": arguments.rounds,
        "ranks": world.world_size,
        "device": world.device.type,
        "global_batch_size": config.train.global_batch_size,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
    }


class Steps:
    """Training steps, one after the other."""

    def __init__(self, config: RunConfig, data: RunData, world: World, sharded: Sharded) -> None:
        self._loader, self._sharded, self._rates = train_loader(config, data, world), sharded, config.train
        self._done = 0
        sharded.model.train()

    def take(self, count: int) -> None:
        """Takes steps and drains the pipeline."""
        batches = self._loader.batches(self._done, count)
        for _ in range(count):
            self._sharded.optimizers.set_lr(sparse=self._rates.sparse.lr, dense=self._rates.dense.lr)
            self._sharded.pipeline.progress(batches)
        self._done += count

    def complain(self, line: str) -> None:
        """A lost checkpoint would make the numbers those of something else."""
        raise RuntimeError(line)


def one_round(step: int, steps: Steps, savers: dict[str, CheckpointSaver], num_steps: int) -> dict[str, float]:
    """Seconds of each part, the slowest rank's."""
    at = TrainState(step=step)
    found = {"step": timed(lambda: steps.take(num_steps)) / num_steps}
    found["sync_stall"] = timed(lambda: savers["sync"].save(at))
    started_at = time.perf_counter()
    found["async_stall"] = timed(lambda: savers["async"].save(at))
    taken, spent_s = 0, 0.0
    while not committed_by_all(savers["async"]) and taken < MOST_STEPS:
        spent_s += timed(lambda: steps.take(5))
        taken += 5
    found["async_committed"] = time.perf_counter() - started_at
    if taken:
        found["step_while_writing"] = spent_s / taken
    return found


def timed(act: Callable[[], None]) -> float:
    """Seconds until the last rank is done; all ranks start together."""
    dist.barrier()
    started_at = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter() - started_at


def committed_by_all(saver: CheckpointSaver) -> bool:
    """Whether no rank is writing."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor([int(saver.is_idle)], device=device)
    dist.all_reduce(count)
    return int(count.item()) == dist.get_world_size()


def lines(result: dict[str, Any]) -> list[str]:
    """The table."""
    ms, slower = result["ms"], result["step_while_writing_over_step"]
    while_writing = "| - | |" if slower is None else f"| {ms['step_while_writing']:,.1f} | {slower:.2f} times a step |"
    return [
        f"{result['bytes'] / 2**20:,.1f} MiB a checkpoint, {result['ranks']} ranks ({result['device']}), global batch "
        f"{result['global_batch_size']:,}; medians of {result['rounds']} rounds; {result['machine']}",
        "",
        f"    {result['command']}",
        "",
        "| | ms | |",
        "|---|---|---|",
        f"| training stands still, synchronous | {ms['sync_stall']:,.1f} | |",
        f"| training stands still, asynchronous | {ms['async_stall']:,.1f} | "
        f"{result['stall_async_over_sync']:.1%} of the synchronous stall |",
        f"| asynchronous checkpoint committed after | {ms['async_committed']:,.1f} | |",
        f"| a step | {ms['step']:,.1f} | |",
        f"| a step while a checkpoint is written {while_writing}",
    ]


if __name__ == "__main__":
    main()
