"""`infnet-rec data generate`: raw files with a progress bar, and what is said of them."""

import time
from pathlib import Path
from typing import Any

from infnet_rec.console import amount_bar
from infnet_rec.synthetic.run import generate


def generate_raw(
    dataset: str, out: Path, sizes: dict[str, int | None], *, num_examples: int, seed: int, num_workers: int
) -> dict[str, Any]:
    """Writes raw files with a progress bar on stderr.

    Args:
        dataset: whose format.
        out: a new folder.
        sizes: `num_users` and `num_items`, None for the real proportions.
        num_examples: rows of the standard logs.
        seed: the same seed gives the same bytes.
        num_workers: processes.
    """
    started_at = time.perf_counter()
    with amount_bar(num_examples, " rows") as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        report = generate(
            dataset,  # pyright: ignore[reportArgumentType] - an unknown name is a fault that `generate` words
            out,
            num_examples=num_examples,
            seed=seed,
            num_workers=num_workers,
            progress=progress,
            **sizes,
        )
    return {
        "dataset": report.dataset,
        "folder": str(report.folder),
        "files": list(report.files),
        "seed": report.seed,
        "num_examples": report.num_examples,
        "num_users": report.num_users,
        "num_items": report.num_items,
        "wall_s": time.perf_counter() - started_at,
    }


def generated_lines(result: dict[str, Any]) -> list[str]:
    """What was written, for people."""
    return [
        f"{result['folder']}: {result['num_examples']:,} impressions of {result['num_users']:,} users on "
        f"{result['num_items']:,} videos in the format of {result['dataset']}, seed {result['seed']}, "
        f"in {result['wall_s']:.1f} s"
    ]
