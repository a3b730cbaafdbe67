"""What is started, said once: the words of a verb, on how many nodes and ranks, with what around them.

Pure: no torch, and nothing is read or run. `scripts.py` and `k8s.py` print it for people, `components.py` hands it to
torchx.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from infnet_rec.errors import UserError


@dataclass(frozen=True, slots=True)
class Size:
    """Nodes and ranks that a command line asks for; where the two numbers of nodes differ, nodes may come and go."""

    min_nodes: int
    max_nodes: int
    ranks_per_node: int

    @property
    def is_elastic(self) -> bool:
        return self.min_nodes != self.max_nodes

    @property
    def nodes(self) -> str:
        """As torchrun's --nnodes takes it."""
        return f"{self.min_nodes}:{self.max_nodes}" if self.is_elastic else str(self.max_nodes)

    @property
    def words(self) -> str:
        """For people."""
        nodes = f"{self.min_nodes} to {self.max_nodes}" if self.is_elastic else str(self.max_nodes)
        return f"{nodes} node{'s' * (self.max_nodes > 1)} x {self.ranks_per_node} rank{'s' * (self.ranks_per_node > 1)}"


def parse_size(text: str) -> Size:
    """Reads NODESxRANKS or MIN:MAXxRANKS, such as "4x8" or "2:4x8".

    Raises:
        UserError: not of that form, a zero, or a least number of nodes that is larger than the largest.
    """
    found = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6})x(\d{1,6})", text.strip(), re.ASCII)
    least, most, ranks = (int(part or found[2]) for part in found.groups()) if found else (0, 0, 0)
    if not least or not ranks:
        raise UserError(
            f"-j {text}: must be NODESxRANKS, both at least 1, such as 4x8 for 4 nodes with 8 ranks each, "
            "or MIN:MAXxRANKS where nodes may come and go"
        )
    if least > most:
        raise UserError(f"-j {text}: the least number of nodes, {least}, is larger than the largest, {most}; swap them")
    return Size(least, most, ranks)


# With gloo, the first try after a rank died may itself fail to connect and use one up.
MAX_RESTARTS = 3
PORT = 29500
# How long a node waits for the first one, which may still be fetching its image.
MEETING_TIMEOUT_S = 600
ENVIRONMENT: Mapping[str, str] = {
    # Ranks that are started again must not find the addresses of those that died (`torchrun.py`).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # A log is a file here, and Python would keep its lines back.
    "PYTHONUNBUFFERED": "1",
    # A collective that fails ends the process, so that torchrun sees it; torch's default, and not to be lost.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "NCCL_DEBUG": "WARN",
}


@dataclass(frozen=True, slots=True)
class Node:
    """What is asked for on every node; 0 leaves it to the scheduler.

    Attributes:
        gpus: one a rank, or none.
        cpus: cores.
        memory_gib: of the host.
    """

    gpus: int = 0
    cpus: int = 0
    memory_gib: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """One start.

    Attributes:
        words: the verb of infnet-rec and its arguments; that of a script is `train` and a configuration.
        size: nodes and ranks.
        name: of the job; letters, digits and dashes.
        environment: laid on `ENVIRONMENT`.
        node: what every node has to have.
        image: container image that this project is installed in; empty where there is no container.
        mounts: into the container, each `type=bind,src=PATH,dst=PATH[,readonly]`, or `type=volume` with a claim's name.
        python: the interpreter.
        port: where the nodes meet.
        user: number of the user that a container runs as; 0 leaves it to the image.
    """

    words: tuple[str, ...]
    size: Size
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    node: Node = Node()
    image: str = ""
    mounts: tuple[str, ...] = ()
    python: str = "python"
    port: int = PORT
    user: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """The whole environment. OMP_NUM_THREADS is missing where nobody gave it; see `SHELL_THREADS`."""
        return {**ENVIRONMENT, **self.environment}


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the nodes of a job find each other, in words of the shell that are not quoted again.

    Attributes:
        endpoint: host and port of the first node.
        job: the same on all nodes, and of no other job.
        is_first: whether this node is the first, as torchrun reads it; it looks at names and addresses if empty.
    """

    endpoint: str
    job: str
    is_first: str = ""


def single(launch: Launch) -> list[str]:
    """Words of the shell that run the verb as one process."""
    return [shlex.quote(word) for word in (launch.python, "-m", "infnet_rec.cli", *launch.words)]


def agent(launch: Launch, python: str, meeting: Meeting) -> list[list[str]]:
    """Words of the shell that start torchrun on one node, in groups that belong on one line.

    It is ours (`torchrun.py`): its exit code tells a preempted run from a broken one.
    """
    size = launch.size
    # One node needs no meeting point: torchrun then takes a free port.
    where = [["--standalone"]]
    if size.max_nodes > 1:
        options = f"read_timeout={MEETING_TIMEOUT_S}" + (f",is_host={meeting.is_first}" if meeting.is_first else "")
        where = [["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.endpoint}", f"--rdzv-id={meeting.job}"]]
        where += [[f"--rdzv-conf={options}"]]
    return [
        [python, "-m", "infnet_rec.launcher.torchrun"],
        [f"--nnodes={size.nodes}", f"--nproc-per-node={size.ranks_per_node}", f"--max-restarts={MAX_RESTARTS}"],
        *where,
        ["-m", "infnet_rec.cli", *(shlex.quote(word) for word in launch.words)],
    ]


def one_line(groups: Iterable[Iterable[str]]) -> str:
    """The command in one line."""
    return " ".join(word for group in groups for word in group)


def folded(start: str, groups: Iterable[Iterable[str]]) -> list[str]:
    """The command in lines that a shell reads as one."""
    first, *rest = (" ".join(group) for group in groups)
    lines = [f"{start} {first}", *(f"    {line}" for line in rest)]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def shell_threads(cores: str, num_ranks: int) -> str:
    """A shell's `${...}` for OMP_NUM_THREADS: a rank's share of the cores, unless the environment says more.

    torchrun would set it to 1; more threads than cores slow a rank down many times.

    Args:
        cores: an expression that the shell understands between double parentheses.
        num_ranks: of the node.
    """
    return f"${{OMP_NUM_THREADS:-$(( {cores} > {num_ranks} ? {cores} / {num_ranks} : 1 ))}}"
