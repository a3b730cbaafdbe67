"""What the command line of `bench run` asks for; no torch here, so that a fault is said at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infnet_rec.bench.length import Length
from infnet_rec.faults import Fault
from infnet_rec.files import try_file
from infnet_rec.shard.hardware import parse_size
from infnet_rec.shard.rank_environment import read_rank_environment


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line asks for.

    Attributes:
        steps: to time; None takes as many as it takes.
        trace: where Chrome traces go, one a rank; None keeps none.
        out: where the result goes besides; None nowhere.
        price_per_hour: of a rank, in any currency; None asks the hardware's file.
    """

    steps: int | None = None
    trace: Path | None = None
    out: Path | None = None
    price_per_hour: float | None = None

    @property
    def length(self) -> Length:
        """How long to measure."""
        return Length() if self.steps is None else Length(least=self.steps, most_s=0.0)

    def check(self, num_ranks: int) -> None:
        """Refuses what could not be written in the end.

        Raises:
            Fault: a file that is there already, or a folder that is not or cannot be written.
            Failure: the disk is full.
        """
        traces = [trace_of(self.trace, rank, num_ranks) for rank in range(num_ranks)] if self.trace else []
        for option, path in [("--out", self.out), *(("--trace", trace) for trace in traces)]:
            if path is not None:
                try_file(option, path)

    def ranks_to_start(self, size: str | None, environment: Mapping[str, str]) -> int:
        """How many processes are to be started here: 1 without -j, and where torchrun has started them.

        Args:
            size: what -j says.
            environment: of this process.

        Raises:
            Fault: of no such form, of several nodes, or another number than torchrun started.
        """
        if size is None:
            return 1
        asked, env = parse_size(size), read_rank_environment(environment)
        started = None if env is None else env.world_size
        if asked.is_elastic:
            raise Fault(f"-j {size}: is measured on one number of nodes; name it, such as {asked.max_nodes}x1")
        num_ranks = asked.max_nodes * asked.ranks_per_node
        if started is not None and started != num_ranks:
            raise Fault(f"-j {size}: torchrun started {started} ranks; leave -j out under torchrun")
        if started is None and asked.max_nodes > 1:
            raise Fault(
                f"-j {size}: starts ranks on this node only; say -j 1x{asked.ranks_per_node}, or start it on every "
                "node with torchrun, or by torchx run launch/components.py:bench"
            )
        return 1 if started is not None else num_ranks

    def words(self) -> list[str]:
        """The options that ask for the same again."""
        given = {
            "--steps": self.steps,
            "--trace": self.trace,
            "--out": self.out,
            "--price-per-hour": self.price_per_hour,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None]


def trace_of(path: Path, rank: int, num_ranks: int) -> Path:
    """A rank's file: trace.json alone, trace.rank0.json of several."""
    return path if num_ranks == 1 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
