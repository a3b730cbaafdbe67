"""Slurm's commands for one machine, as scripts in a folder: enough for what `infnet-rec launch --as sbatch` writes."""

import os
import subprocess
import sys
from pathlib import Path

# As srun does: one task a node, the same stdin for all, options before the command, the highest exit code.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys

words = sys.argv[1:]
options = [word for word in words if word.startswith("-")]
if "-s" in words and "FAKE_CHECKS_CODE" in os.environ:
    sys.exit(int(os.environ["FAKE_CHECKS_CODE"]))
command = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
tasks = []
for node in range(int(os.environ["FAKE_NODES"])):
    environment = dict(os.environ, SLURM_NODEID=str(node), SLURM_PROCID=str(node))
    task = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    task.stdin.write(stdin)
    task.stdin.close()
    tasks.append(task)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then
    for _ in $(seq "$FAKE_NODES"); do echo "${FAKE_HEAD:-$(hostname)}"; done
else
    echo "$*" >> "$FAKE_SCONTROL_LOG"
fi
"""
# In the place of the interpreter: says what it was started with, and ends as it is told.
PYTHON = """#!/bin/bash
echo "node $SLURM_NODEID threads $OMP_NUM_THREADS: $*" >> "$FAKE_PYTHON_LOG"
exit "$FAKE_CODE"
"""


class FakeSlurm:
    """A folder of commands, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, script: str, num_nodes: int, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a script as the first node's batch step would."""
        around = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "4321",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": str(num_nodes),
            "SLURM_CPUS_ON_NODE": "12",
            "PYTHON": str(self.folder / "python"),
            "FAKE_NODES": str(num_nodes),
            "FAKE_CODE": str(code),
            "FAKE_SCONTROL_LOG": str(self.folder / "scontrol.log"),
            "FAKE_PYTHON_LOG": str(self.folder / "python.log"),
        }
        outside = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return subprocess.run(
            ["bash", "-c", script],
            env={**outside, **around, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self, command: str) -> list[str]:
        """Lines that a command left, in order."""
        log = self.folder / f"{command}.log"
        return sorted(log.read_text().splitlines()) if log.exists() else []
