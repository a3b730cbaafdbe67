"""A real Slurm of two nodes on this machine: each is a namespace with a name, an address and processes of its own.

The controller runs on the machine itself, slurmd on each node, a bridge between them. Jobs are handed in by an ordinary
user. Debian's packages slurm-wlm, munge and iproute2 are needed, and root.
"""

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "ip", "unshare", "runuser", "mount")
USER = "nobody"
NETWORK, BRIDGE = "10.78.0", "infnet-slurm"
MEMORY_MIB, CORES = 8000, 2
NODES = ("north", "south")
# A site that gives jobs so much memory a core is one where a whole node must ask for all of it.
CONF = """ClusterName=test
SlurmctldHost={host}({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
CredType=cred/munge
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
SlurmdTimeout={slurmd_timeout_s}
ReturnToService=2
InactiveLimit=0
MinJobAge=3600
DefMemPerCPU=100
JobAcctGatherType=jobacct_gather/none
{accounting}
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=1-0 DefaultTime=60 State=UP
PartitionName=grace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 MaxTime=1-0 DefaultTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1-0 DefaultTime=60 State=UP
"""
SLURMD_TIMEOUT_S = 20
# In namespaces of its own: the name, what it knows of other names, and a path that an ordinary user may go.
NODE = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/resolv.conf" /etc/resolv.conf
mount -t tmpfs tmpfs /dev/shm
{reveal}
export SLURM_CONF="$2/slurm.conf"
exec slurmd -D -N "$1"
"""
REVEAL = """
mkdir -p "$2/hidden"
mount --bind "{closed}" "$2/hidden"
mount -t tmpfs -o mode=755 tmpfs "{closed}"
mkdir -p "{prefix}"
mount --bind "$2/hidden/{inside}" "{prefix}"
"""


class CannotStart(Exception):
    """This machine runs no Slurm; the message says why."""


@dataclass(slots=True)
class SlurmCluster:
    """Two nodes that take jobs.

    Attributes:
        folder: everything of the cluster; `folder / "shared"` is where the jobs' user may write.
        accounting: lines of slurm.conf that say where jobs are accounted; none keeps no accounts.
    """

    folder: Path
    accounting: str = ""
    _inits: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def ask(self, *command: str, check: bool = True, **environ: str) -> str:
        """What a command of Slurm says to the ordinary user; its errors too."""
        done = self.run(*command, **environ)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
        return done.stdout.strip()

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The same with its exit code."""
        around = {"PATH": os.environ["PATH"], "HOME": str(self.shared), "SLURM_CONF": str(self.folder / "slurm.conf")}
        words = ["runuser", "-u", USER, "--", "env", "-i", *(f"{k}={v}" for k, v in {**around, **environ}.items())]
        return subprocess.run(
            [*words, *command],
            cwd=self.shared,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def submit(self, script: Path, *options: str, **environ: str) -> int:
        """Hands a script in; the job's number."""
        return int(self.ask("sbatch", "--parsable", *options, str(script), **environ).split(";")[0])

    def facts(self, job: int) -> dict[str, str]:
        """What Slurm says of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.ask("scontrol", "show", "job", "-o", str(job))))

    def state(self, job: int) -> str:
        return self.facts(job)["JobState"]

    def restarts(self, job: int) -> int:
        return int(self.facts(job)["Restarts"])

    def until(self, what: Callable[[], object], within_s: float, why: str) -> float:
        """Waits until something holds; the seconds that it took."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > within_s:
                raise AssertionError(f"{why}: not within {within_s:.0f} s\n{self.ask('squeue', '-al', check=False)}")
            time.sleep(0.2)
        return time.monotonic() - began

    def until_over(self, job: int, within_s: float = 300.0) -> dict[str, str]:
        """Waits for a job's end; what Slurm says of it then."""
        running = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        self.until(lambda: self.state(job) not in running, within_s, f"job {job} does not end")
        return self.facts(job)

    def cancel_all(self) -> None:
        """Ends all jobs, and waits until both nodes are there and free."""
        for node in NODES:
            if node not in self._inits:
                self.power_on(node)
        self.ask("scancel", f"--user={USER}", check=False)
        self.until(lambda: not self.ask("squeue", "-h"), 90, "jobs do not end")
        self.until_idle()

    def until_idle(self) -> None:
        count = lambda: self.ask("sinfo", "-h", "-p", "low", "-N", "-o", "%T").split().count("idle")  # noqa: E731
        self.until(lambda: count() == len(NODES), 90, "nodes are not idle")

    def is_down(self, node: str) -> bool:
        """Whether Slurm counts a node as lost."""
        return "down" in self.ask("sinfo", "-h", "-N", "-n", node, "-o", "%T")

    def lose_power(self, node: str) -> None:
        """All processes of a node end at once, and nothing comes from it or reaches it."""
        _run("ip", "-n", _namespace(node), "link", "set", "net0", "down")
        self._inits.pop(node).kill()

    def power_on(self, node: str) -> None:
        _run("ip", "-n", _namespace(node), "link", "set", "net0", "up")
        self._start(node)

    def start(self) -> None:
        """Starts it all; both nodes are idle then.

        Raises:
            CannotStart: something is missing or not permitted.
        """
        for program in NEEDED:
            if shutil.which(program) is None:
                raise CannotStart(
                    f"there is no {program} here; Debian has it in slurm-wlm, munge, iproute2 or util-linux"
                )
        if os.geteuid() != 0:
            raise CannotStart("root is needed, for namespaces and for slurmd")
        for name in ("state", "spool", "run", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.shared.mkdir(exist_ok=True)
        user = pwd.getpwnam(USER)
        os.chown(self.shared, user.pw_uid, user.pw_gid)
        self._write_conf()
        try:
            _remove_leftovers(self.folder)
            _start_munge()
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            _run("slurmctld", "-c", "-f", str(self.folder / "slurm.conf"))
            for number, node in enumerate(NODES, 1):
                _make_host(node, number)
                self._start(node)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise CannotStart(f"{said.strip()}") from error
        self.until_idle()

    def stop(self) -> None:
        """Ends what was started here, and nothing else."""
        for process in self._inits.values():
            process.kill()
            process.wait()
        _end_controller(self.folder)
        _remove_network()

    def _write_conf(self) -> None:
        lines = [
            f"NodeName={node} NodeAddr={NETWORK}.{number} CPUs={CORES} CoresPerSocket={CORES} RealMemory={MEMORY_MIB}"
            for number, node in enumerate(NODES, 1)
        ]
        conf = CONF.format(
            host=socket.gethostname(),
            network=NETWORK,
            folder=self.folder,
            slurmd_timeout_s=SLURMD_TIMEOUT_S,
            accounting=self.accounting,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        known = [f"{NETWORK}.{number} {node}" for number, node in enumerate(NODES, 1)]
        known += ["127.0.0.1 localhost", f"{NETWORK}.254 {socket.gethostname()}"]
        (self.folder / "hosts").write_text("\n".join(known) + "\n")
        # A name that the file of hosts does not have is refused at once.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def _start(self, node: str) -> None:
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        script = NODE.replace("{reveal}", _reveal())
        # The first process of its pid namespace: when that is killed, all of the node's are.
        inside = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / "log" / f"{node}.out").open("ab") as log:
            self._inits[node] = subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    _namespace(node),
                    *inside,
                    "bash",
                    "-c",
                    script,
                    "bash",
                    node,
                    str(self.folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@contextmanager
def slurm_cluster(folder: Path, accounting: str = "") -> Iterator[SlurmCluster]:
    """A cluster for as long as the block runs.

    Args:
        folder: new or empty.
        accounting: see `SlurmCluster`.

    Raises:
        CannotStart: see `SlurmCluster.start`.
    """
    cluster = SlurmCluster(folder, accounting)
    # Names and addresses are fixed, so one at a time is on a machine; the next waits for it.
    with (folder.parent / ".infnet-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _end_controller(folder: Path) -> None:
    with suppress(OSError, ValueError):
        controller = int((folder / "run" / "slurmctld.pid").read_text())
        if str(folder) not in Path(f"/proc/{controller}/cmdline").read_text():
            return
        os.kill(controller, signal.SIGTERM)
        for _ in range(100):
            os.kill(controller, 0)
            time.sleep(0.1)


def _remove_network() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "delete", _namespace(node)], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


def _remove_leftovers(folder: Path) -> None:
    """A cluster whose maker was killed."""
    for other in folder.parent.glob("infnet-slurm-*"):
        if other != folder:
            _end_controller(other)
    for node in NODES:
        found = subprocess.run(["ip", "netns", "pids", _namespace(node)], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    _remove_network()


def _namespace(node: str) -> str:
    return f"infnet-slurm-{node}"


def _make_host(node: str, number: int) -> None:
    name = _namespace(node)
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", f"infnet-{number}", "type", "veth", "peer", "name", "net0", "netns", name)
    _run("ip", "link", "set", f"infnet-{number}", "master", BRIDGE, "up")
    _run("ip", "-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", "net0")
    for interface in ("net0", "lo"):
        _run("ip", "-n", name, "link", "set", interface, "up")


def _start_munge() -> None:
    """The daemon that both ends trust; one that runs already will do."""
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    user = pwd.getpwnam("munge")
    key, runs = Path("/etc/munge/munge.key"), Path("/run/munge")
    if not key.is_file() or not key.stat().st_size:
        key.write_bytes(os.urandom(1024))
        os.chown(key, user.pw_uid, user.pw_gid)
        key.chmod(0o400)
    runs.mkdir(exist_ok=True)
    os.chown(runs, user.pw_uid, user.pw_gid)
    runs.chmod(0o755)
    _run("runuser", "-u", "munge", "--", shutil.which("munged") or "munged")


def _reveal() -> str:
    """Makes the interpreter's folder reachable for everybody on a node, where it is in somebody's closed home."""
    prefix = Path(sys.base_prefix)
    closed = [folder for folder in reversed(prefix.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return ""
    return REVEAL.format(closed=closed[0], prefix=prefix, inside=prefix.relative_to(closed[0]))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
