"""Scripts of bash that a person can read and change: torchrun on each node by hand, and Slurm's sbatch."""

import shlex
from collections.abc import Iterable, Mapping

from infnet_rec.errors import TRY_AGAIN
from infnet_rec.launcher.job import Launch, Meeting, agent, folded, shell_threads

# Time for the ranks to agree on a step and to save before Slurm ends the job.
WARNING_S = 120
# What a shell says of a program that SIGTERM ended before it listened.
TERMINATED = 143
# One node may be a little later than another; a node that never ends would keep the others' reservation.
LAST_NODE_WAIT_S = 60
# One task a node is asked for here and not of the reservation, which would then never have more than the fewest nodes.
SRUN = ("srun", "--ntasks-per-node=1")


def as_torchrun(launch: Launch) -> str:
    """A script to start on every node, with HOST the name of the first where there are several."""
    several = launch.size.max_nodes > 1
    usage = "HOST=FIRST-NODE bash SCRIPT    (on every node)" if several else "bash SCRIPT"
    lines = [
        "#!/bin/bash",
        f"# {launch.name}: {launch.size.words}. Start it with",
        f"#     {usage}",
        f"# from the same folder as now. Exit code {TRY_AGAIN}: stopped by a signal, and saved; start it again.",
        "set -euo pipefail",
        "",
        *_python(launch),
        *_exports(launch.variables, shell_threads("$(nproc)", launch.size.ranks_per_node)),
    ]
    if several:
        lines += [
            "",
            ': "${HOST:?set it to the name of the first node, the same on all nodes}"',
            f'PORT="${{PORT:-{launch.port}}}"',
        ]
    meeting = Meeting('"$HOST:$PORT"', launch.name)
    return _text([*lines, "", *_checks(launch, "$HOST"), "", *folded("exec", agent(launch, '"$PYTHON"', meeting))])


def as_sbatch(launch: Launch) -> str:
    """A script for sbatch: one torchrun a node, back into the queue when it was preempted or its time ran out."""
    several = launch.size.max_nodes > 1
    lines = [*_reservation(launch), "", "set -uo pipefail", "", *_python(launch), *_check_nodes(launch)]
    # SLURM_CPUS_ON_NODE is what the job may use of a node.
    lines += _exports(launch.variables, shell_threads("${SLURM_CPUS_ON_NODE:-1}", launch.size.ranks_per_node))
    if several:
        lines += [
            "",
            "# The nodes meet at the first of them; a port of the job's own, as nodes may be shared.",
            'HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
            'PORT="$(( 20000 + SLURM_JOB_ID % 10000 ))"',
            "export HEAD PORT",
        ]
    if launch.size.is_elastic:
        lines += [
            "# With the first node this script is lost, and Slurm leaves the job to the others.",
            'export INFNET_REC_WHEN_FIRST_NODE_IS_LOST="scontrol requeue $SLURM_JOB_ID"',
        ]
    lines += ["", *_end(), "", *_look_at_nodes(launch)]
    # srun takes one core for a task unless it is told, whatever sbatch was told; and
    # a node that failed must not end the others with a signal: its exit code would hide theirs.
    options = [*SRUN, '--cpus-per-task="${SLURM_CPUS_ON_NODE:-1}"', "--kill-on-bad-exit=0"]
    options += ["--no-kill", "--wait=0"] if launch.size.is_elastic else [f"--wait={LAST_NODE_WAIT_S}"]
    meeting = Meeting('"$HEAD:$PORT"', '"$SLURM_JOB_ID"')
    lines += [
        "",
        *folded(" ".join(options), agent(launch, '"$PYTHON"', meeting)),
        "end $?",
    ]
    return _text(lines)


def _check_nodes(launch: Launch) -> list[str]:
    """Refuses what sbatch's command line made of the nodes, where the run is not for so many."""
    size = launch.size
    least, most = size.min_nodes, size.max_nodes
    wanted = f"{least} to {most} nodes" if size.is_elastic else f"{most} node{'s' * (most > 1)}"
    text = f"--nodes=$NODES: this script is for {wanted}; hand it in without --nodes, or write one with -j "
    text += f"${{NODES}}x{size.ranks_per_node}"
    return [
        "",
        'NODES="${SLURM_JOB_NUM_NODES:-$SLURM_NNODES}"',
        f'if [ "$NODES" -lt {least} ] || [ "$NODES" -gt {most} ]; then',
        f'    echo "infnet-rec: fault: {text}" >&2',
        "    exit 2",
        "fi",
    ]


def _end() -> list[str]:
    return [
        f"# {TRY_AGAIN}: stopped by a signal, and saved. The same script goes on from there.",
        "end() {",
        f'    if [ "$1" -eq {TRY_AGAIN} ] || [ "$1" -eq {TERMINATED} ]; then',
        '        scontrol requeue "$SLURM_JOB_ID"',
        f"        exit {TRY_AGAIN}",
        "    fi",
        '    exit "$1"',
        "}",
    ]


def _reservation(launch: Launch) -> list[str]:
    size, node = launch.size, launch.node
    wanted = [
        f"--job-name={launch.name}",
        f"--nodes={size.min_nodes}-{size.max_nodes}" if size.is_elastic else f"--nodes={size.max_nodes}",
    ]
    wanted += [f"--gpus-per-node={node.gpus}"] if node.gpus else []
    wanted += [f"--cpus-per-task={node.cpus}"] if node.cpus else ["--exclusive"]
    # Whole nodes are without their memory where a site gives so much a core.
    memory = [f"--mem={node.memory_gib}G"] if node.memory_gib else []
    wanted += memory or ([] if node.cpus else ["--mem=0"])
    wanted += ["--requeue", f"--signal=TERM@{WARNING_S}", f"--output={launch.name}-%j.log", "--open-mode=append"]
    # The job outlives a node; the ranks that are left start again from what was saved last.
    wanted += ["--no-kill"] if size.is_elastic else []
    return [
        "#!/bin/bash",
        f"# {launch.name}: {size.words}. Hand it in with",
        "#     sbatch --time=12:00:00 --partition=PARTITION SCRIPT",
        "# What stands on sbatch's command line goes before what stands here.",
        *(f"#SBATCH {option}" for option in wanted),
    ]


def _look_at_nodes(launch: Launch) -> list[str]:
    checks = _checks(launch, "$HEAD")
    if launch.size.max_nodes > 1:
        checks += [
            'if [ "$SLURM_NODEID" = 0 ] && (exec 3<>"/dev/tcp/$HEAD/$PORT") 2>/dev/null; then',
            '    fault "port $PORT of $HEAD: is in use; hand the job in again"',
            "fi",
        ]
    # A node that is at fault says 2; a signal may come while they look.
    # The step that trains does not wait until this one is wholly gone: a signal meanwhile would reach nobody.
    start = f"SLURM_OVERLAP=1 {' '.join(SRUN)} --kill-on-bad-exit=0 bash -s <<'EOF' || end $?"
    return ["# Each node says at once what would cost minutes later.", start, *checks, "EOF"]


def _checks(launch: Launch, host: str) -> list[str]:
    config = launch.words[1]
    lines = [
        'fault() { echo "infnet-rec: fault: $*" >&2; exit 2; }',
        f"[ -r {shlex.quote(config)} ] || fault {shlex.quote(config)}"
        '": is not on $HOSTNAME; put it in a folder that all nodes share"',
    ]
    if launch.size.max_nodes > 1:
        fault = f"{host}: does not resolve on $HOSTNAME; all nodes have to know the first one by this name"
        lines += [f'getent hosts "{host}" >/dev/null || fault "{fault}"']
    return lines


def _python(launch: Launch) -> list[str]:
    return [f'PYTHON="${{PYTHON:-{launch.python}}}"']


def _exports(variables: Mapping[str, str], threads: str) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return lines if "OMP_NUM_THREADS" in variables else [*lines, f'export OMP_NUM_THREADS="{threads}"']


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
