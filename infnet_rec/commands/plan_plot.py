"""The picture of a plan."""

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    raise NotImplementedError
