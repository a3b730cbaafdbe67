"""Stores that lie elsewhere, fetched with a progress bar."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from infnet_rec.data.cache import local_store


def fetched(url_or_path: str) -> Path:
    """A store's folder on this machine; see `local_store`."""
    # Nothing is drawn where the store is here already.
    look: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "delay": 0.5}
    with tqdm(file=sys.stderr, disable=None, leave=False, **look) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.set_description_str(f"fetching {url_or_path}")
                bar.reset(total)
                if not sys.stderr.isatty():
                    print(f"fetching {url_or_path}: {total / 2**20:,.1f} MiB", file=sys.stderr, flush=True)
            bar.update(done - bar.n)

        return local_store(url_or_path, progress=progress)
