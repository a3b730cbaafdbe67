"""Where the checkpoints are that a person means by a path. Imports no torch."""

from pathlib import Path

from infnet_rec.config.run import RunConfig
from infnet_rec.faults import Fault
from infnet_rec.strict import check, read_json
from infnet_rec.train.checkpoint.shelf import NAME, Commit, Shelf, best_of


def shelf_of(config: RunConfig, run_dir: Path) -> Shelf:
    """Where a run's checkpoints are."""
    return Shelf(config.checkpoint.folder or run_dir / "checkpoints")


def open_shelf(source: str) -> tuple[Shelf, int | None]:
    """The checkpoints of a run directory or of a folder or URL, and the step of the one that is meant, if it is one.

    Raises:
        Fault: no checkpoint was ever there, whole or torn.
    """
    text = source.rstrip("/")
    config_path = Path(text) / "config.json"
    if config_path.is_file():
        shelf, step = shelf_of(check(RunConfig, read_json(config_path), str(config_path)), Path(text)), None
    else:
        parent, _, last = text.rpartition("/")
        one = NAME.fullmatch(last)
        shelf, step = (Shelf(parent or "."), int(one[1])) if one else (Shelf(text), None)
    if not any(step in (None, found.step) for found in shelf.found()):
        raise Fault(f"{source}: holds no checkpoint; name a run directory, its checkpoints or one of them")
    return shelf, step


def find(source: str) -> tuple[Shelf, Commit]:
    """The checkpoint that a path or URL means: itself, or the best of a folder of them or of a run.

    Raises:
        Fault: there is none that is whole.
    """
    shelf, step = open_shelf(source)
    commits = [c for c in shelf.commits() if step in (None, c.step)]
    if not commits:
        raise Fault(f"{source}: holds no whole checkpoint; see 'infnet-rec checkpoint ls {source}'")
    return shelf, best_of(commits) or commits[-1]
