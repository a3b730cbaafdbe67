"""TOML and `--set` to a checked `RunConfig`."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet_rec.config.plugins import load_plugins
from infnet_rec.config.run import RunConfig, run_config
from infnet_rec.config.toml import read_toml, validate_model
from infnet_rec.errors import UserError

BARE_WORD = re.compile(r"[A-Za-z_./~][\w./~:-]*")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's file, lays the overrides on it and checks the whole once.

    Args:
        path: a complete TOML file.
        overrides: "section.key=value" each, the value in TOML; a bare word is taken as a string.

    Raises:
        UserError: every fault at once.
    """
    return make_config(read_toml(path), overrides, str(path))


def make_config(data: dict[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    """Lays the overrides on what a file says and checks the whole once.

    Args:
        data: sections and their keys; changed.
        overrides: see `load_config`.
        source: where the data is from, for messages.

    Raises:
        UserError: every fault at once.
    """
    for override in overrides:
        lay(data, override)
    return validate_run(data, f"{source}{' with --set ' + ' '.join(overrides) if overrides else ''}")


def validate_run(data: dict[str, Any], source: str) -> RunConfig:
    """Checks a whole configuration, as a file, a run directory or a checkpoint holds it.

    Args:
        data: sections and their keys.
        source: where the data is from, for messages.

    Raises:
        UserError: every fault at once; a plugin that cannot be read.
    """
    load_plugins()
    return validate_model(run_config(), data, source)


def lay(data: dict[str, Any], override: str) -> None:
    """Sets one key of what a file says; `data` is changed.

    Raises:
        UserError: it is no override.
    """
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"--set {override!r}: must look like section.key=value, such as train.dense.lr=3e-4")
    section = data
    for name in names[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"--set {override!r}: {name!r} is a value, not a section")
    section[names[-1]] = _value(override, text.strip())


def _value(override: str, text: str) -> Any:
    if BARE_WORD.fullmatch(text) and text not in ("true", "false", "inf", "nan"):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"--set {override!r}: {text!r} is not a TOML value ({error}); quote strings: '\"text\"'"
        ) from error


def flatten_config(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by their dotted names."""
    settings: dict[str, Any] = {}
    for name, value in section.items():
        settings |= flatten_config(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return settings
