"""torchx components: the same command on one laptop or on many nodes.

    source .venv/bin/activate
    torchx run -s local_cwd launch/components.py:train -j 1x2 --config configs/quickstart.toml --run_dir runs/first

torchx reads a component's signature itself: `Optional[str]`, no postponed annotations, and the docstring is the help.
"""

from typing import Any, Optional

from torchx import specs
from torchx.components import dist


def train(
    *overrides: str,
    config: str,
    run_dir: str,
    j: str = "1x2",
    image: str = "",
    h: Optional[str] = None,
    num_threads: int = 1,
) -> specs.AppDef:
    """Trains a model as a file says, on NODESxRANKS processes.

    Args:
        overrides: KEY=VALUE laid on the configuration, after "--".
        config: a run's TOML file, at the same path on every node.
        run_dir: a new folder that all nodes share.
        j: nodes x ranks a node.
        image: container image, or folder to run in; the scheduler's own default if empty.
        h: a named resource of the scheduler.
        num_threads: CPU threads a rank.
    """
    arguments = ["train", config, f"--run-dir={run_dir}", *(f"--set={override}" for override in overrides)]
    environment = {"OMP_NUM_THREADS": str(num_threads)}
    where: dict[str, Any] = {"image": image} if image else {}
    return dist.ddp(*arguments, m="infnet_rec.cli", name="infnet-rec-train", j=j, h=h, env=environment, **where)
