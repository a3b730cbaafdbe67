"""The files: made in a folder beside the wanted one, which takes its name only when all is written."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

from infnet_rec.data.publish import NOTES
from infnet_rec.errors import UserError
from infnet_rec.files import is_full, not_written, parents_of, try_folder


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` on success and is removed on any failure, Ctrl-C included.

    Raises:
        UserError: `out` is a file or a folder that is not empty, or cannot be made.
        Failure: the disk is full.
    """
    remedy = "name a folder that does not exist, or empty this one first"
    try_folder("--out", out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"cannot generate into {out}: it is not a folder; {remedy}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"cannot generate into {out}: it is not empty, and nothing is overwritten; {remedy}")
    partial = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}.partial"
    try:
        with parents_of(partial):
            try:
                partial.mkdir()
                yield partial
                # Refused by the system, like above, if somebody has filled `out` in the meantime.
                partial.rename(out.absolute())
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        # Only of what is written here: who fills the folder also reads files of its own.
        if is_full(error) or str(error.filename or "").startswith(str(partial)):
            raise not_written(f"--out {out}", error) from error
        raise


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    """README.md and generated.json: that no row is real, and what it takes to make the same rows again.

    Args:
        folder: where to write.
        notes: `dataset`, `seed`, sizes beginning with `num_`, `statistics_from`, a licence, and `about` for people.
    """
    (folder / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    sizes = ", ".join(
        f"{value:,} {name.removeprefix('num_').replace('_', ' ')}"
        for name, value in notes.items()
        if name.startswith("num_")
    )
    paragraphs = [
        f"# Generated rows in the format of {notes['dataset']}",
        "None of these rows was observed. They were made by `infnet_rec.synthetic` from a seed, in the public file "
        "format of the dataset and with its published rates, so that the software can be tried, tested and timed "
        "without a download. Do not report a metric on them as a result on the dataset.",
        f"Seed {notes['seed']}; {sizes}. The same numbers give the same bytes; `generated.json` holds them.",
        *([notes["about"]] if "about" in notes else []),
        f"Statistics: {notes['statistics_from']}",
        *(f"Licence: {notes[name]}" for name in ("statistics_licence", "licence") if name in notes),
    ]
    text = "\n\n".join(fill(paragraph, 120) for paragraph in paragraphs)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
