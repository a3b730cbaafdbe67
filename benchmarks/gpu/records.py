"""What a part is told, and the lines that it writes: one JSON object each, on disk as soon as it is known."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Size = Literal["rehearsal", "smallest", "full"]
# "right" and "wrong" are of numbers, "reached" and "missed" of a speed that is aimed at; "measured" has nothing to be
# compared with; "not run" says why in its note; "failed" is of a part that raised, died or ran out of time.
Verdict = Literal["right", "wrong", "reached", "missed", "measured", "not run", "failed"]
BAD: tuple[Verdict, ...] = ("failed", "wrong", "missed")
RESULTS = "gpu.jsonl"
BEGINS = "begins"

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What every part is told.

    Attributes:
        out: the folder of `gpu.jsonl`; parts may keep larger things in folders of their own below it.
        size: "rehearsal" runs on a CPU in seconds, "smallest" is for the first minutes on a GPU.
        store: a small store to train on, such as the quickstart's; None where there is none.
    """

    out: Path
    size: Size
    store: Path | None = None

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is a CPU that stands in for a GPU."""
        return self.size == "rehearsal"

    def pick(self, rehearsal: Any, smallest: Any, full: Any) -> Any:
        """The one that belongs to the size."""
        return {"rehearsal": rehearsal, "smallest": smallest, "full": full}[self.size]


class Writer:
    """Appends one part's lines to the results; several processes may append to one file."""

    def __init__(self, path: Path, part: str) -> None:
        """Opens nothing yet.

        Args:
            path: the results, one JSON object a line.
            part: whose lines these are.
        """
        self._path, self._part = path, part

    def __call__(
        self,
        check: str,
        verdict: Verdict,
        figure: float | None = None,
        limit: float | None = None,
        *,
        unit: str = "",
        headline: bool = False,
        **facts: Any,
    ) -> None:
        """Writes a line and flushes it to the disk.

        Args:
            check: what was looked at.
            verdict: what came of it.
            figure: the number that decided, or that was measured.
            limit: what it must not exceed, or, for "reached" and "missed", what it should reach.
            unit: of both.
            headline: whether the closing table shows this line; where several say so, the worst and then the last.
            **facts: anything else worth keeping, as JSON.
        """
        line = {
            "part": self._part,
            "check": check,
            "verdict": verdict,
            "figure": figure,
            "limit": limit,
            "unit": unit,
            "headline": headline,
            "at": round(time.time(), 3),
            **facts,
        }
        # One write of a whole line: lines of several processes do not mix.
        with self._path.open("ab") as file:
            file.write(json.dumps(line, default=str).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def compared(self, check: str, figure: float, limit: float, *, headline: bool = False, **facts: Any) -> None:
        """Writes whether an error stays below its limit; one that is no number does not."""
        self(check, "right" if figure <= limit else "wrong", figure, limit, headline=headline, **facts)

    def aimed(self, check: str, figure: float, limit: float, *, headline: bool = False, **facts: Any) -> None:
        """Writes whether a speed reaches its aim."""
        self(check, "reached" if figure >= limit else "missed", figure, limit, headline=headline, **facts)


def read_lines(path: Path) -> list[JSON]:
    """All whole lines; one that was cut off in the middle is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def latest(lines: Iterable[JSON], part: str) -> list[JSON]:
    """The lines of a part since it last began; those of earlier calls stay in the file."""
    mine = [line for line in lines if line["part"] == part]
    begins = [k for k, line in enumerate(mine) if line["check"] == BEGINS]
    return mine[begins[-1] + 1 :] if begins else mine


def closing_table(lines: Iterable[JSON], parts: Iterable[str]) -> str:
    """One row a part: its worst verdict, the figure that counts and its limit.

    Args:
        lines: of the results.
        parts: in their order; one without lines has not run.
    """
    lines = list(lines)
    rows = [["part", "verdict", "lines", "what counts", "figure", "limit", "s"]]
    for part in parts:
        mine = latest(lines, part)
        if not mine:
            rows.append([part, "not run", "0", "", "", "", ""])
            continue
        best = min(enumerate(mine), key=lambda place: _weight(*place))[1]
        wall = [f"{line['wall_s']:.0f}" for line in mine if "wall_s" in line][-1:]
        counted = [line for line in mine if "wall_s" not in line]
        rows.append(
            [
                part,
                _verdict([line["verdict"] for line in mine]),
                str(len(counted)),
                best["check"] + (f": {best['note']}" if best.get("note") else ""),
                _shown(best["figure"], best["unit"]),
                _shown(best["limit"], best["unit"]),
                *(wall or [""]),
            ]
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _weight(place: int, line: JSON) -> tuple[int, int, int]:
    """Bad lines first, then headlines, then the latest."""
    bad = BAD.index(line["verdict"]) if line["verdict"] in BAD else len(BAD)
    return bad, not line["headline"], -place


def _verdict(verdicts: list[Verdict]) -> str:
    """The worst of a part."""
    order: tuple[Verdict, ...] = (*BAD, "right", "reached", "measured", "not run")
    return min(verdicts, key=order.index)


def _shown(number: float | None, unit: str) -> str:
    return "" if number is None else f"{number:,.4g} {unit}".strip()
