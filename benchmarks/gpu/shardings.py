"""Part 4: every sharding, kernel and fused optimizer that one GPU can do, against training without sharding.

A kernel that is missing may leave its process without a GPU, so cases run in a worker, and a new worker goes on after
the case that broke it.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.records import RESULTS, Settings, Writer
from benchmarks.gpu.small_runs import free_memory, on_cpu, one_line, prepare, run_steps, small_config
from benchmarks.gpu.unsharded import train_unsharded
from infnet_rec.config.run import RunConfig
from infnet_rec.config.sharding import ShardingConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.diagnostics.gpu import MISSING
from infnet_rec.distributed.parallelize import local_shards
from infnet_rec.distributed.process_group import World, process_group
from infnet_rec.errors import UserError
from infnet_rec.planner.run_plan import check_run
from infnet_rec.trainer.build import Sharded, shard_model

# Of a loss; and of how far the tables moved, as root mean squares: Adagrad makes whole steps of gradients that are
# little more than rounding, so single weights may differ by more.
LOSS_LIMIT, MOVE_LIMIT = 1e-4, 0.01
# Rows in half precision have 11 bits, and are rounded up or down by chance.
HALF_LOSS_LIMIT, HALF_MOVE_LIMIT = 5e-3, 0.05
BROKEN = 10

NEEDS_TWO = (
    (
        "row_wise, table_wise and column_wise over ranks",
        "two nccl ranks cannot share a GPU",
    ),
    ("table_row_wise, table_column_wise, grid_shard", "they need two nodes of ranks"),
    ("communication in fp16 and bf16", "nothing is sent from one GPU"),
    ("replica_groups", "TorchRec's DMPCollection needs two GPUs"),
    ("stop on two ranks, go on with one", "it needs two GPUs"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A way to keep the tables.

    Attributes:
        name: for people.
        rules: keys of `sharding.tables` for all tables, as TOML.
        optimizer: of the tables.
        half: whether the tables are fp16.
        overrides: of the run besides.
    """

    name: str
    rules: str = ""
    optimizer: str = "rowwise_adagrad"
    half: bool = False
    overrides: tuple[str, ...] = ()

    def overrides_of(self) -> list[str]:
        """What is laid on the small run."""
        rules = [f"sharding.tables=[{{match='*', {self.rules}}}]"] if self.rules else []
        return [*rules, f"train.sparse.optimizer='{self.optimizer}'", *self.overrides]


CASES = (
    Case("table_wise, row-wise Adagrad", "sharding='table_wise'"),
    Case("table_wise, Adam", "sharding='table_wise'", "adam", overrides=("train.sparse.lr=1e-3",)),
    Case("row_wise, row-wise Adagrad", "sharding='row_wise'"),
    Case("data_parallel, row-wise Adagrad", overrides=("sharding.data_parallel_max_rows=1000000000",)),
    Case("fp16 tables, row-wise Adagrad", "precision='fp16'", half=True),
    Case("fused_uvm, row-wise Adagrad", "kernel='fused_uvm'"),
    Case("row_wise, Adam", "sharding='row_wise'", "adam", overrides=("train.sparse.lr=1e-3",)),
    Case("fused_uvm_caching, row-wise Adagrad", "kernel='fused_uvm_caching', cache_load_factor=0.5"),
    Case("table_wise, SGD", "sharding='table_wise'", "sgd"),
    Case("table_wise, Adagrad", "sharding='table_wise'", "adagrad"),
    Case("column_wise in two, Adagrad", "sharding='column_wise', min_columns=4", "adagrad"),
    Case("fused_uvm_caching, fp16, row-wise Adagrad", "kernel='fused_uvm_caching', precision='fp16'", half=True),
)


def run(settings: Settings, write: Writer) -> None:
    """Starts workers until all cases are through."""
    first = 0
    store = [str(settings.store)] if settings.store else []
    while first < len(CASES):
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.shardings",
            settings.size,
            str(settings.out),
            str(first),
            *store,
        ]
        status = subprocess.run(command, check=False).returncode
        if status == 0:
            break
        # A worker that was killed wrote nothing of the case that killed it.
        reached = _progress(settings).read_text(encoding="ascii") if _progress(settings).exists() else str(first)
        case = CASES[int(reached)]
        if status != BROKEN:
            write(case.name, "failed", note=f"the process ended with exit code {status}")
        first = int(reached) + 1
    for name, why in NEEDS_TWO:
        write(name, "not run", note=why)


def _progress(settings: Settings) -> Path:
    return settings.out / "shardings.case"


def check_cases(settings: Settings, write: Writer, first: int) -> int:
    """Runs cases from a number on; the exit code."""
    expected: dict[str, Reference] = {}
    for number, case in enumerate(CASES[first:], first):
        _progress(settings).write_text(str(number), encoding="ascii")
        try:
            _check(case, settings, write, expected)
        except UserError as fault:
            write(case.name, "not run", note=str(fault).splitlines()[0])
        except Exception as error:
            if MISSING.search(str(error)):
                write(case.name, "not run", note=f"a kernel of it is not in the packed folder: {one_line(error)[:120]}")
            else:
                write(case.name, "failed", note=one_line(error))
            if torch.cuda.is_available():
                # Whatever is left of this process's GPU, the next case shall not meet it.
                return BROKEN
        finally:
            free_memory()
    return 0


@dataclass(frozen=True, slots=True)
class Reference:
    """What training without sharding gives: losses [steps, tasks], and tables by name."""

    losses: Tensor
    tables: dict[str, Tensor]


def _check(case: Case, settings: Settings, write: Writer, expected: dict[str, Reference]) -> None:
    num_steps = settings.pick(2, 6, 12)
    # One order of additions, so that what is compared is the sharding.
    config = small_config(settings, *case.overrides_of(), *_eager_after_first(case))
    data, world = prepare(config)
    check_run(config, data, world)
    with process_group(world):
        sharded = shard_model(config, data, world)
        initial = weights_of(sharded)
        losses = torch.from_numpy(run_steps(config, data, world, sharded, num_steps))
        tables = {name: value for name, value in weights_of(sharded).items() if name in _table_names(sharded)}
    key = f"{case.optimizer} {case.half}"
    if key not in expected:
        expected[key] = _reference(config, data, world, initial, num_steps)
    reference = expected[key]
    kinds = sorted({f"{table.sharding}/{table.kernel}" for table in sharded.plan.tables})
    loss_limit, move_limit = (HALF_LOSS_LIMIT, HALF_MOVE_LIMIT) if case.half else (LOSS_LIMIT, MOVE_LIMIT)
    moved = [reference.tables[name] - initial[name] for name in tables]
    wrong = [tables[name] - reference.tables[name] for name in tables]
    write.compared(f"{case.name}: tables", _norm(wrong) / max(_norm(moved), 1e-12), move_limit, steps=num_steps)
    loss_error = float((losses - reference.losses).abs().max())
    write.compared(case.name, loss_error, loss_limit, headline=True, plan=kinds, steps=num_steps)


def _norm(values: list[Tensor]) -> float:
    return float(torch.stack([value.double().norm() for value in values]).norm())


def _eager_after_first(case: Case) -> tuple[str, ...]:
    """Under the interpreter, the kernels are in one case only."""
    from benchmarks.gpu.small_runs import FUSED

    if torch.cuda.is_available():
        return ()
    return (FUSED,) if case is CASES[0] else ("model.attention='eager'",)


def _reference(config: RunConfig, data: RunData, world: World, initial: dict[str, Tensor], num_steps: int) -> Reference:
    """The same run without sharding; tables in fp32 whatever the run stores, from what it started with."""
    eager = config.model.model_copy(update={"attention": "eager"})
    plain = config.model_copy(update={"model": eager, "sharding": ShardingConfig()})
    losses, tables = train_unsharded(plain, data, on_cpu(world), initial, num_steps)
    return Reference(torch.from_numpy(losses), tables)


def weights_of(sharded: Sharded) -> dict[str, Tensor]:
    """All weights of one rank's model on the CPU, in fp32, by the unsharded model's names."""
    found = {}
    for name, value in sharded.model.state_dict().items():
        if type(value) is Tensor:
            found[name.removeprefix("module.")] = value.detach().float().cpu().clone()
    for shard in local_shards(sharded.model):
        whole = found.setdefault(shard.name, torch.empty(shard.num_rows, shard.num_columns))
        rows, columns = shard.values.shape
        whole[shard.row : shard.row + rows, shard.column : shard.column + columns] = shard.values.detach().float().cpu()
    return found


def _table_names(sharded: Sharded) -> set[str]:
    return {shard.name for shard in local_shards(sharded.model)}


if __name__ == "__main__":
    size, out, start, *store = sys.argv[1:]
    given = Settings(Path(out), size, Path(store[0]) if store else None)  # pyright: ignore[reportArgumentType]
    sys.exit(check_cases(given, Writer(given.out / RESULTS, "shardings"), int(start)))
