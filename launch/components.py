"""torchx components: the same command on one laptop or on many nodes.

    source .venv/bin/activate
    torchx run -s local_cwd launch/components.py:train -j 1x2 --config configs/quickstart.toml

torchx reads a component's signature itself, so `Optional[str]`, `Dict` and `List`; the docstring is its help.
`configs/torchxconfig.example` has what each scheduler wants to know; `infnet-rec launch` does without torchx.
"""

import argparse
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Dict, List, NoReturn, Optional

from torchx import specs

from infnet_rec.cli.bench import bench as bench_verbs
from infnet_rec.config.plugins import carried_plugins, encoded, use_plugins
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.launcher.job import PORT, Launch, Meeting, Size, agent, one_line, parse_size, shell_threads, single

# Nobody publishes it: build one that this project is installed in, and name it as you like with --image.
IMAGE = "infnet-rec"
# Starts after the scheduler took the job back or a node was lost; the run goes on from what was saved.
MAX_RETRIES = 3
PLUGIN = "--plugin="
# Verbs of bench that measure several ranks; the others are started alone.
SEVERAL_RANKS = ("run", "embedding")
# torchx fills in `${...}`, so the shell's own dollars are doubled; a scheduler that names no first node runs it here.
FIRST_NODE = f"$${{{specs.macros.rank0_env}:=localhost}}:{PORT}"


def train(
    *overrides: str,
    config: str,
    run_dir: Optional[str] = None,
    j: str = "1x2",
    h: Optional[str] = None,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Trains a model as a file says; the same run_dir again goes on where it was saved last.

    Args:
        overrides: KEY=VALUE laid on the configuration, after "--"; --plugin=FILE there carries a model of your own.
        config: a run's TOML file, at the same path on every node.
        run_dir: a folder that all nodes share; by default one in runs, named after the configuration and the time.
        j: NODESxRANKS, or MIN:MAXxRANKS where nodes may come and go.
        h: a named resource of the scheduler: what a node has.
        image: container image that this project is installed in, where the scheduler starts containers.
        env: environment variables, NAME=VALUE,NAME=VALUE.
        mounts: into the container, type=bind,src=PATH,dst=PATH.
    """
    # Named here and now: ranks that are started again must find what they left.
    run_dir = run_dir or f"runs/{Path(config).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    told, env = _carried(overrides, env)
    words = ("train", config, f"--run-dir={run_dir}", *told)
    return _app(Launch(words, _size(j), "infnet-rec-train", env, image=image, mounts=tuple(mounts or ())), h)


def evaluate(
    *options: str,
    run_dir: str,
    split: str = "test",
    j: str = "1x2",
    h: Optional[str] = None,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Scores a split with the best weights of a run, on any number of ranks.

    Args:
        options: after "--"; --plugin=FILE carries the model of your own that the run was made with.
        run_dir: what train left, in a folder that all nodes share.
        split: train, valid or test.
        j: NODESxRANKS.
        h: a named resource of the scheduler: what a node has.
        image: container image that this project is installed in, where the scheduler starts containers.
        env: environment variables, NAME=VALUE,NAME=VALUE.
        mounts: into the container, type=bind,src=PATH,dst=PATH.
    """
    told, env = _carried(options, env)
    words = ("eval", run_dir, f"--split={split}", *told)
    return _app(Launch(words, _size(j), "infnet-rec-eval", env, image=image, mounts=tuple(mounts or ())), h)


def bench(
    *overrides: str,
    config: str,
    what: str = "run",
    j: Optional[str] = None,
    h: Optional[str] = None,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Measures what the machines make of a run.

    Args:
        overrides: KEY=VALUE laid on the configuration, after "--"; --plugin=FILE there carries a model of your own.
        config: a run's TOML file, at the same path on every node.
        what: a verb of infnet-rec bench that takes a configuration; run trains for a while and says where a step goes.
        j: NODESxRANKS; by default 1x2 for run, and 1x1 for what measures one rank.
        h: a named resource of the scheduler: what a node has.
        image: container image that this project is installed in, where the scheduler starts containers.
        env: environment variables, NAME=VALUE,NAME=VALUE.
        mounts: into the container, type=bind,src=PATH,dst=PATH.
    """
    verbs = bench_verbs.registered_commands
    takes = [verb for verb in verbs if "config" in getattr(verb.callback, "__annotations__", {})]
    known = [verb.name or getattr(verb.callback, "__name__", "") for verb in takes]
    if what not in known:
        _leave(UserError(f"--what {what}: must be one of {', '.join(known)}{did_you_mean(what, known)}"))
    told, env = _carried(overrides, env)
    words = ("bench", what, config, *told)
    j = j or ("1x2" if what in SEVERAL_RANKS else "1x1")
    return _app(Launch(words, _size(j), "infnet-rec-bench", env, image=image, mounts=tuple(mounts or ())), h)


def plan(
    *overrides: str,
    config: str,
    j: str,
    hardware: Optional[str] = None,
    h: Optional[str] = None,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Says whether a run fits on hardware that nobody has rented yet, and how long a step is; one process.

    Args:
        overrides: KEY=VALUE laid on the configuration, after "--"; --plugin=FILE there carries a model of your own.
        config: a run's TOML file.
        j: NODESxRANKS that are planned for, not started.
        hardware: a name of the catalogue or a TOML file; what the configuration says if missing.
        h: a named resource of the scheduler, for this one process.
        image: container image that this project is installed in, where the scheduler starts containers.
        env: environment variables, NAME=VALUE,NAME=VALUE.
        mounts: into the container, type=bind,src=PATH,dst=PATH.
    """
    _size(j)
    told, env = _carried(overrides, env)
    words = ("plan", config, "-j", j, *([f"--hardware={hardware}"] if hardware else []), *told)
    return _alone(Launch(words, Size(1, 1, 1), "infnet-rec-plan", env, image=image, mounts=tuple(mounts or ())), h)


def experiment(
    *options: str,
    experiment: str,
    out: str,
    j: str = "2",
    h: Optional[str] = None,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Trains a grid of variants and seeds in parts at the same time; started again, it makes what is missing.

    Each part is a process of its own that makes every N-th variant, and may have a host of its own. The end of one is
    no reason to end the others: on Slurm, "infnet-rec experiment" with --part in an array job does the same.

    Args:
        options: further options of "infnet-rec experiment", such as --ranks=4, --jobs=2 or --set=KEY=VALUE, after "--";
            the text of a --plugin=FILE travels with the job.
        experiment: an experiment's TOML file, at the same path on every node.
        out: its folder, which all nodes share.
        j: parts.
        h: a named resource of the scheduler: what a part has.
        image: container image that this project is installed in, where the scheduler starts containers.
        env: environment variables, NAME=VALUE,NAME=VALUE.
        mounts: into the container, type=bind,src=PATH,dst=PATH.
    """
    if not re.fullmatch(r"[1-9]\d{0,3}", j, re.ASCII):
        _leave(UserError(f"-j {j}: must be a number of parts from 1 to 9999, such as 4"))
    told, env = _carried(options, env, verbatim=True)
    words = ("experiment", experiment, f"--out={out}", *told)
    # One part is enough to begin with.
    parts = Launch(words, Size(1, int(j), 1), "infnet-rec-experiment", env, image=image, mounts=tuple(mounts or ()))
    # torchx fills in the replica's number, from 0, as a variable of the shell where it is known there only.
    part = f"--part=$$(( {specs.macros.replica_id} + 1 ))/{j}"
    app = _described(parts, f"exec {_kept(' '.join(single(parts)))} {part}", h)
    app.roles[0].retry_policy = specs.RetryPolicy.REPLICA
    return app


def data_build(
    *options: str,
    recipe: str,
    raw: str,
    out: str,
    h: Optional[str] = None,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Turns raw files into a store; one process, as many threads as its options say.

    Args:
        options: further options of "infnet-rec data build", such as --memory-gib=64, after "--".
        recipe: what the raw files mean, a TOML file.
        raw: folder of the raw files.
        out: the store to make.
        h: a named resource of the scheduler.
        image: container image that this project is installed in, where the scheduler starts containers.
        env: environment variables, NAME=VALUE,NAME=VALUE.
        mounts: into the container, type=bind,src=PATH,dst=PATH.
    """
    words = ("data", "build", recipe, f"--raw={raw}", f"--out={out}", *options)
    return _alone(
        Launch(words, Size(1, 1, 1), "infnet-rec-data", env or {}, image=image, mounts=tuple(mounts or ())), h
    )


def _app(launch: Launch, h: Optional[str]) -> specs.AppDef:
    meeting = Meeting(FIRST_NODE, specs.macros.app_id)
    threads = _kept(shell_threads("$(nproc)", launch.size.ranks_per_node))
    told = replace(launch, words=tuple(_kept(word) for word in launch.words))
    command = f'export OMP_NUM_THREADS="{threads}"; exec ' + one_line(agent(told, launch.python, meeting))
    return _described(launch, command, h)


def _alone(launch: Launch, h: Optional[str]) -> specs.AppDef:
    return _described(launch, "exec " + _kept(" ".join(single(launch))), h)


def _described(launch: Launch, command: str, h: Optional[str]) -> specs.AppDef:
    _check_scheduler(sys.argv[1:])
    try:
        resource = specs.resource(h=h) if h else specs.NULL_RESOURCE
        mounts = specs.parse_mounts(list(launch.mounts)) if launch.mounts else []
    except (KeyError, ValueError) as error:
        _leave(UserError(f"-h {h}, --mounts {','.join(launch.mounts)}: {error.args[0]}"))
    role = specs.Role(
        name=launch.words[0],
        image=launch.image,
        min_replicas=launch.size.min_nodes,
        num_replicas=launch.size.max_nodes,
        entrypoint="bash",
        args=["-c", command],
        env={name: _kept(value) for name, value in launch.variables.items()},
        port_map={"c10d": PORT},
        max_retries=MAX_RETRIES,
        resource=resource,
        mounts=mounts,
    )
    return specs.AppDef(name=launch.name, roles=[role])


def _check_scheduler(torchx: List[str]) -> None:
    """Says in one line what torchx says in a traceback: Slurm's own program is not here to be asked."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-s", "--scheduler")
    parser.add_argument("--dryrun", action="store_true")
    # What follows the component's name is for the component.
    asked, _ = parser.parse_known_args(torchx[: next((i for i, word in enumerate(torchx) if ".py:" in word), None)])
    if asked.scheduler != "slurm" or asked.dryrun:
        return
    if shutil.which("sbatch") is None:
        _leave(
            UserError(f"-s slurm: there is no sbatch on {socket.gethostname()}; run this on a machine of the cluster")
        )
    # torchx asks it for every job, and would hand the job in first.
    instead = "'infnet-rec submit --as sbatch' does without"
    if shutil.which("sacct") is None:
        _leave(
            UserError(
                f"-s slurm: there is no sacct on {socket.gethostname()}, which torchx asks for its jobs; {instead}"
            )
        )
    said = subprocess.run(
        ["sacct", "-n", "-X", "-S", "now"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if said.returncode:
        reason = (said.stderr.strip().splitlines() or [f"it ended with code {said.returncode}"])[-1]
        _leave(UserError(f"-s slurm: sacct, which torchx asks for its jobs, does not answer: {reason}; {instead}"))


def _kept(text: str) -> str:
    """Text that torchx, which fills in what follows a dollar, leaves as it is."""
    return text.replace("$", "$$")


def _carried(
    given: tuple[str, ...], env: Optional[Dict[str, str]], *, verbatim: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Words for the verb of what stands after "--", and the environment that has the texts of plugins.

    Args:
        given: KEY=VALUE for --set, or options that are passed on; and --plugin=FILE.
        env: what else is to stand in the environment.
        verbatim: whether these are options.
    """
    use_plugins([word.removeprefix(PLUGIN) for word in given if word.startswith(PLUGIN)])
    try:
        words, texts = carried_plugins()
    except UserError as fault:
        _leave(fault)
    others = [word for word in given if not word.startswith(PLUGIN)]
    told = others if verbatim else [f"--set={override}" for override in others]
    # Schedulers read what stands in a variable each in its own way.
    return [*told, *words], {name: encoded(text) for name, text in texts.items()} | (env or {})


def _size(j: str) -> Size:
    try:
        return parse_size(j)
    except UserError as fault:
        _leave(fault)


def _leave(fault: UserError) -> NoReturn:
    """As the command line does: torchx would show a traceback."""
    print(f"infnet-rec: fault: {fault}", file=sys.stderr)
    raise SystemExit(2) from fault
