"""Where the checkpoints are that a person means by a path. Imports no torch."""

from pathlib import Path

from infnet_rec.checkpoint.store import NAME, CheckpointManifest, CheckpointStore, best_checkpoint
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.toml import read_json, validate_model
from infnet_rec.errors import UserError


def run_checkpoints(config: CheckpointConfig, run_dir: Path) -> CheckpointStore:
    """Where a run's checkpoints are."""
    return CheckpointStore(config.folder or run_dir / "checkpoints")


def open_checkpoints(source: str) -> tuple[CheckpointStore, int | None]:
    """The checkpoints of a run directory or of a folder or URL, and the step of the one that is meant, if it is one.

    Raises:
        UserError: no checkpoint was ever there, whole or torn.
    """
    text = source.rstrip("/")
    config_path = Path(text) / "config.json"
    if config_path.is_file():
        # The rest of it may be a model's that is not known here.
        section = read_json(config_path).get("checkpoint", {})
        own = validate_model(CheckpointConfig, section, f"{config_path}: checkpoint")
        store, step = run_checkpoints(own, Path(text)), None
    else:
        parent, _, last = text.rpartition("/")
        one = NAME.fullmatch(last)
        store, step = (CheckpointStore(parent or "."), int(one[1])) if one else (CheckpointStore(text), None)
    if not any(step in (None, found.step) for found in store.found()):
        raise UserError(f"{source}: holds no checkpoint; name a run directory, its checkpoints or one of them")
    return store, step


def find_checkpoint(source: str) -> tuple[CheckpointStore, CheckpointManifest]:
    """The checkpoint that a path or URL means: itself, or the best of a folder of them or of a run.

    Raises:
        UserError: there is none that is whole.
    """
    store, step = open_checkpoints(source)
    commits = [c for c in store.commits() if step in (None, c.step)]
    if not commits:
        raise UserError(f"{source}: holds no whole checkpoint; see 'infnet-rec checkpoint ls {source}'")
    return store, best_checkpoint(commits) or commits[-1]
