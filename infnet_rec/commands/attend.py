"""What looks after a run: who hears signals, who watches the other ranks, who looks at the losses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from infnet_rec.commands.assemble import Data, train_order
from infnet_rec.config.run import RunConfig
from infnet_rec.shard.watch import Watch, watching
from infnet_rec.shard.world import World, joined, make_deterministic
from infnet_rec.train.bad_batch import BadBatches
from infnet_rec.train.guard import Guard
from infnet_rec.train.stop import StopSignal


@dataclass(frozen=True, slots=True)
class Attendants:
    """Who hears signals, and who watches the other ranks."""

    stop: StopSignal
    watch: Watch


@contextmanager
def attended(config: RunConfig, world: World) -> Iterator[Attendants]:
    """The process group of all ranks, watched, and the signals heard."""
    if config.train.deterministic:
        make_deterministic()
    patience_s = config.train.collective_timeout_s
    # The watch speaks first, and knows the rank; the group's own timeout is there in case it cannot.
    timeout = timedelta(seconds=patience_s * 1.5 + 30)
    with StopSignal(speaks=world.is_first) as stop, joined(world, timeout), watching(world, patience_s) as watch:
        yield Attendants(stop, watch)


def make_guard(
    config: RunConfig, data: Data, world: World, run_dir: Path, say: Callable[[str], None], stop: StopSignal
) -> Guard:
    """What looks at the run's losses."""
    order, folder = train_order(config, data), run_dir / "checkpoints" if world.is_first else None
    record = BadBatches(data.store, order, world.world_size, folder)
    settings = config.train
    policy, most = settings.on_nonfinite, settings.max_skipped
    return Guard(data.task_names, world.rank, world.world_size, policy, most, record, say, stop)
