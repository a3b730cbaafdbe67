"""What looks after a run: who hears signals, who watches the other ranks, who looks at the losses."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from infnet_rec.checkpoint.saver import CheckpointSaver
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.distributed.process_group import World, make_deterministic, process_group
from infnet_rec.distributed.watchdog import Watchdog, watchdog
from infnet_rec.trainer.build import train_order
from infnet_rec.trainer.nonfinite import CheckedForward, NonFiniteBatches, NonFiniteMonitor
from infnet_rec.trainer.rank_log import RankLog
from infnet_rec.trainer.signals import GracefulStop


@dataclass(frozen=True, slots=True)
class TrainingSession:
    """Who hears signals while the run trains (before and after, nothing is lost), and who watches the other ranks."""

    stop: GracefulStop
    watch: Watchdog

    @contextmanager
    def around(self, saver: CheckpointSaver, at: TrainState, forward: CheckedForward) -> Iterator[None]:
        """While the run trains; what is being written at its end is finished, however it ends."""
        # Batches too, because an evaluation stays at its step.
        where = lambda: f"step {at.step + 1}, {forward.num_calls} batches"  # noqa: E731
        with closing(saver), self.stop, self.watch.following(where):
            yield


@contextmanager
def training_session(config: RunConfig, world: World, rank_log: RankLog) -> Iterator[TrainingSession]:
    """The process group of all ranks, watched; from the moment it stands, the rank's log is open."""
    if config.train.deterministic:
        make_deterministic()
    patience_s = config.train.collective_timeout_s
    # The watch speaks first, and knows the rank; the group's own timeout is there in case it cannot.
    timeout = timedelta(seconds=patience_s * 1.5 + 30)
    with process_group(world, timeout), watchdog(world, patience_s, rank_log.failed) as watch, rank_log:
        rank_log.started(local_rank=world.local_rank, device=str(world.device))
        yield TrainingSession(GracefulStop(speaks=world.is_first), watch)


def make_nonfinite_monitor(
    config: RunConfig, data: RunData, world: World, run_dir: Path, say: Callable[[str], None], stop: GracefulStop
) -> NonFiniteMonitor:
    """What looks at the run's losses."""
    order, folder = train_order(config, data), run_dir / "checkpoints" if world.is_first else None
    record = NonFiniteBatches(data.store, order, world.world_size, folder)
    settings = config.train
    policy, most = settings.on_nonfinite, settings.max_skipped
    return NonFiniteMonitor(data.task_names, world.rank, world.world_size, policy, most, record, say, stop)
