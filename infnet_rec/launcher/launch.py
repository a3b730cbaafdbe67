"""`infnet-rec launch`: a run as a script or a manifest that a person reads and hands in. No torch here."""

import math
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from infnet_rec.config.load import load_config
from infnet_rec.config.plugins import carried_plugins
from infnet_rec.config.run import RunConfig
from infnet_rec.data.sampler import check_divides
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.files import not_written, try_file
from infnet_rec.launcher.job import PORT, Launch, Node, Size, parse_size
from infnet_rec.launcher.k8s import as_k8s
from infnet_rec.launcher.scripts import as_sbatch, as_torchrun

FORMS: Mapping[str, Callable[[Launch], str]] = {"torchrun": as_torchrun, "sbatch": as_sbatch, "k8s": as_k8s}
# Both read what they are given, so no file is needed.
HAND_IN: Mapping[str, tuple[str, ...]] = {"sbatch": ("sbatch",), "k8s": ("kubectl", "apply", "-f", "-")}
NUMBERS = ("gpus", "cpus", "memory_gib", "port", "user")
SETTINGS = (*NUMBERS, "image", "mount", "name")
VARIABLE = re.compile(r"env\.([A-Za-z_]\w*)", re.ASCII)
# What Kubernetes takes for the name of a Service, with room for the number of a pod.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")


def write_launch(
    config_path: Path, overrides: Sequence[str], size: str, form: str, run_dir: Path, settings: Sequence[str]
) -> dict[str, Any]:
    """Renders a training run.

    Args:
        config_path: a run's TOML file, at the same path on every node.
        overrides: laid on it, see `load_config`.
        size: NODESxRANKS or MIN:MAXxRANKS.
        form: one of `FORMS`.
        run_dir: a folder that all nodes share.
        settings: KEY=VALUE of what is around the run; see `SETTINGS`.

    Returns:
        The form, the name of the job, and its text.

    Raises:
        UserError: anything that is wrong with these.
    """
    if form not in FORMS:
        raise UserError(f"--as {form}: must be one of {', '.join(FORMS)}{did_you_mean(form, FORMS)}")
    asked = parse_size(size)
    config = load_config(config_path, overrides)
    _check_batch(config.train.global_batch_size, asked)
    if asked.is_elastic:
        _check_any_number(config, asked)
    plugins, variables = carried_plugins()
    words = ("train", str(config_path), f"--run-dir={run_dir}", *(f"--set={o}" for o in overrides), *plugins)
    job = _job(words, asked, form, read_settings(settings))
    job = replace(job, environment=variables | dict(job.environment))
    return {"form": form, "name": job.name, "text": FORMS[form](job)}


def read_settings(settings: Sequence[str]) -> dict[str, list[str]]:
    """Values by key, in the order they were given.

    Raises:
        UserError: no KEY=VALUE, an unknown key, or a key twice that has one value.
    """
    found: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise UserError(f"--with {setting}: must be KEY=VALUE, such as --with gpus=8")
        if key not in SETTINGS and not VARIABLE.fullmatch(key):
            known = f"{', '.join(SETTINGS)} and env.NAME"
            raise UserError(f"--with {setting}: there is no {key!r}{did_you_mean(key, SETTINGS)}; there are {known}")
        if key in found and key != "mount":
            raise UserError(f"--with {setting}: {key} was given before, as {found[key][0]!r}; give it once")
        found.setdefault(key, []).append(value)
    return found


def check_new(path: Path) -> None:
    """Refuses a file that could not be written.

    Raises:
        UserError: something stands there, or its folder cannot be written.
        Failure: the disk is full.
    """
    try_file("--out", path)


def write_script(text: str, path: Path) -> None:
    """Writes a new file, whole or not at all.

    Raises:
        UserError: something stands there, or it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        # Unlike a rename, a link does not replace what appeared in the meantime.
        path.hardlink_to(temporary)
    except FileExistsError as error:
        raise UserError(f"--out {path}: exists and is left alone; name another, or remove it") from error
    except OSError as error:
        raise not_written(f"--out {path}", error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_batch(global_batch_size: int, size: Size) -> None:
    if not size.is_elastic:
        check_divides("train.global_batch_size", global_batch_size, size.max_nodes * size.ranks_per_node)
        return
    worlds = {nodes: nodes * size.ranks_per_node for nodes in range(size.min_nodes, size.max_nodes + 1)}
    uneven = next((nodes for nodes, world in worlds.items() if global_batch_size % world), None)
    if uneven is not None:
        raise UserError(
            f"train.global_batch_size = {global_batch_size}: does not divide by the {worlds[uneven]} ranks of {uneven} "
            f"nodes, and with -j {size.nodes}x{size.ranks_per_node} so many may be left; use a multiple of "
            f"{math.lcm(*worlds.values())}"
        )


def _check_any_number(config: RunConfig, size: Size) -> None:
    """Refuses, before the first node is lost, what could not go on without it."""
    ask = f"ask for -j {size.max_nodes}x{size.ranks_per_node}"
    if config.sharding.plan is not None:
        raise UserError(
            f"sharding.plan = {str(config.sharding.plan)!r}: is for one number of ranks, and with -j "
            f"{size.nodes}x{size.ranks_per_node} fewer may be left; {ask}, or leave the plan out"
        )
    for name in config.model.tables:
        raise UserError(
            f"model.tables.{name}: is managed, so a checkpoint loads only on a number of ranks that divides the one it "
            f"was written by, and with -j {size.nodes}x{size.ranks_per_node} nodes come and go; {ask}"
        )


def check_hand_in(form: str) -> str:
    """The program that a form is handed in to.

    Raises:
        UserError: nothing takes that form, or the program is not here.
    """
    if form not in HAND_IN:
        raise UserError(
            f"--as {form}: is handed in to nobody; must be one of {', '.join(HAND_IN)}{did_you_mean(form, HAND_IN)}"
        )
    program = HAND_IN[form][0]
    if shutil.which(program) is None:
        raise UserError(
            f"--as {form}: there is no {program} on {socket.gethostname()}; run this where it is, or let 'infnet-rec "
            "launch' write the file and hand it in there"
        )
    return program


def hand_in(form: str, text: str) -> str:
    """Gives a script or manifest to its scheduler, and returns what that says.

    Raises:
        UserError: the scheduler refuses it.
    """
    program = check_hand_in(form)
    done = subprocess.run(
        [*HAND_IN[form]], input=text, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        reason = done.stderr.strip() or f"it ended with code {done.returncode}"
        raise UserError(f"--as {form}: {program} refused it: {reason}")
    if (there := re.search(r"^job\.batch/(\S+) (unchanged|configured)", done.stdout, re.MULTILINE)) is not None:
        raise UserError(
            f"--as {form}: a Job {there[1]!r} is there already, and one that has ended is not started again; 'kubectl "
            f"delete job {there[1]}' and hand it in again: the run goes on from its last checkpoint"
        )
    return done.stdout.strip()


def _job(words: tuple[str, ...], size: Size, form: str, settings: Mapping[str, list[str]]) -> Launch:
    numbers = {key: _number(key, settings[key][0]) for key in NUMBERS if key in settings}
    environment = {found[1]: values[0] for key, values in settings.items() if (found := VARIABLE.fullmatch(key))}
    name = settings.get("name", ["infnet-rec-train"])[0]
    if not NAME.fullmatch(name):
        raise UserError(f"--with name={name}: must be small letters, digits and dashes, a letter first; 52 at most")
    in_container = form == "k8s"
    for key in ("image", "mount", "user"):
        if key in settings and not in_container:
            raise UserError(f"--with {key}={settings[key][0]}: --as {form} starts no container; leave it out")
    gpus = numbers.get("gpus", size.ranks_per_node)
    if gpus and gpus < size.ranks_per_node:
        raise UserError(
            f"--with gpus={gpus}: {size.ranks_per_node} ranks need a GPU each; ask for more, or for 0 to use CPUs"
        )
    return Launch(
        words=words,
        size=size,
        name=name,
        environment=environment,
        node=Node(gpus=gpus, cpus=numbers.get("cpus", 0), memory_gib=numbers.get("memory_gib", 0)),
        image=settings.get("image", [""])[0],
        mounts=tuple(settings.get("mount", ())),
        # A container has an interpreter of its own.
        python="python" if in_container else sys.executable,
        port=numbers.get("port", PORT),
        user=numbers.get("user", 0),
    )


def _number(key: str, text: str) -> int:
    least, most = {"gpus": (0, 1024), "port": (1, 65535), "user": (1, 2**31 - 1)}.get(key, (1, 10**6))
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not least <= int(text) <= most:
        raise UserError(f"--with {key}={text}: must be a whole number from {least} to {most}")
    return int(text)
