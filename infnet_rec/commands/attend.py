"""What looks after a run: who hears signals, who watches the other ranks, who looks at the losses."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from infnet_rec.commands.assemble import Data, train_order
from infnet_rec.config.run import RunConfig
from infnet_rec.shard.watch import Watch, watching
from infnet_rec.shard.world import World, joined, make_deterministic
from infnet_rec.train.bad_batch import BadBatches
from infnet_rec.train.checkpoint.progress import Progress
from infnet_rec.train.checkpoint.save import Saver
from infnet_rec.train.guard import Guard, GuardedForward
from infnet_rec.train.rank_log import RankLog
from infnet_rec.train.stop import StopSignal


@dataclass(frozen=True, slots=True)
class Attendants:
    """Who hears signals while the run trains (before and after, nothing is lost), and who watches the other ranks."""

    stop: StopSignal
    watch: Watch

    @contextmanager
    def around(self, saver: Saver, at: Progress, forward: GuardedForward) -> Iterator[None]:
        """While the run trains; what is being written at its end is finished, however it ends."""
        # Batches too, because an evaluation stays at its step.
        where = lambda: f"step {at.step + 1}, {forward.num_calls} batches"  # noqa: E731
        with closing(saver), self.stop, self.watch.following(where):
            yield


@contextmanager
def attended(config: RunConfig, world: World, rank_log: RankLog) -> Iterator[Attendants]:
    """The process group of all ranks, watched; from the moment it stands, the rank's log is open."""
    if config.train.deterministic:
        make_deterministic()
    patience_s = config.train.collective_timeout_s
    # The watch speaks first, and knows the rank; the group's own timeout is there in case it cannot.
    timeout = timedelta(seconds=patience_s * 1.5 + 30)
    with joined(world, timeout), watching(world, patience_s, rank_log.failed) as watch, rank_log:
        rank_log.started(local_rank=world.local_rank, device=str(world.device))
        yield Attendants(StopSignal(speaks=world.is_first), watch)


def make_guard(
    config: RunConfig, data: Data, world: World, run_dir: Path, say: Callable[[str], None], stop: StopSignal
) -> Guard:
    """What looks at the run's losses."""
    order, folder = train_order(config, data), run_dir / "checkpoints" if world.is_first else None
    record = BadBatches(data.store, order, world.world_size, folder)
    settings = config.train
    policy, most = settings.on_nonfinite, settings.max_skipped
    return Guard(data.task_names, world.rank, world.world_size, policy, most, record, say, stop)
