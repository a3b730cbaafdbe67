"""The small run that several parts train: the quickstart's configuration on a small store, and steps of it."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.records import Settings, Writer
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.distributed.process_group import World, silence_third_party_warnings, use_threads, world_from_env
from infnet_rec.metrics import mean_over_ranks
from infnet_rec.trainer.build import Sharded, train_loader

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart.toml"
# So that the interpreter, which takes milliseconds an example, does what a GPU would.
REHEARSED = (
    "train.global_batch_size=16",
    "train.eval_batch_size=64",
    "data.sequence_length=4",
    "data.profile='safe'",
    "model.width=8",
)
FUSED = "model.attention='fused'"


def store_of(settings: Settings) -> Path:
    """The small store.

    Raises:
        SystemExit: there is none.
    """
    if settings.store is None:
        raise SystemExit(
            "no small store: name one by --store, or make runs/quickstart/store with `make train`, or pack it with "
            "`python -m benchmarks.gpu.pack`"
        )
    return settings.store


def small_config(settings: Settings, *overrides: str) -> RunConfig:
    """The quickstart on the small store, cut down for a rehearsal; INFNet reads with the kernels."""
    own = REHEARSED if settings.is_rehearsal else ()
    return load_config(CONFIG, [f"data.store='{store_of(settings)}'", *own, *overrides])


def prepare(config: RunConfig) -> tuple[RunData, World]:
    """Opens the store for this one process."""
    data, world = open_data(config), world_from_env()
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    return data, world


def on_cpu(world: World) -> World:
    """The same process without its GPU."""
    return replace(world, device=torch.device("cpu"))


def run_steps(config: RunConfig, data: RunData, world: World, sharded: Sharded, num_steps: int) -> np.ndarray:
    """Trains steps 0 to `num_steps` at the configured rates; the losses, float32 [steps, tasks]."""
    batches = train_loader(config, data, world).batches(0, num_steps)
    sharded.model.train()
    losses = []
    for _ in range(num_steps):
        sharded.optimizers.set_lr(sparse=config.train.sparse.lr, dense=config.train.dense.lr)
        losses.append(mean_over_ranks(sharded.pipeline.progress(batches).loss_T).cpu().numpy())
    return np.stack(losses)


def free_memory() -> None:
    """Gives back what a finished run held on the GPU, so that the next one finds it free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def guarded(write: Writer, check: str, run: Callable[[], None]) -> bool:
    """Runs something; what it raises becomes a line, and the part goes on. Whether it ended well."""
    try:
        run()
    except Exception as error:
        write(check, "failed", note=one_line(error))
        return False
    finally:
        free_memory()
    return True


def one_line(error: BaseException) -> str:
    """What was raised, shortly: libraries append pages of C++."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
