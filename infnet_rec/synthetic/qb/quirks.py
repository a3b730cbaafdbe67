r"""Rows of QB-Video that a loader must survive, put into every file however small: in the real one they are rare.

A resumed block, a user of one row and the category `\N` are seen to by the layout and the items.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from infnet_rec.synthetic.draws import Ints
from infnet_rec.synthetic.qb.items import Items
from infnet_rec.synthetic.qb.layout import QbLayout

SETTINGS = ("item", "click", "like", "follow", "share", "watching_times")
WANTED: tuple[dict[str, int], ...] = (
    {"click": 0, "like": 1},
    {"click": 1, "follow": 1},
    {"click": 1, "share": 1},
    {"click": 1, "watching_times": 0},
    {"click": 0, "follow": 1},
    {"click": 0, "share": 1},
    {"click": 1, "like": 1},
)


@dataclass(frozen=True, slots=True)
class QbQuirks:
    """Rows of the file, ascending, and their settings; -1 leaves what is drawn, as does the last place."""

    row: Ints
    settings: dict[str, Ints]

    @classmethod
    def of(cls, layout: QbLayout, items: Items, num_examples: int) -> Self:
        """Evenly spread over the file; the longest block has the same item twice, with a click and without."""

        def is_free(row: int) -> bool:
            return row not in found and not items.debuts(np.array([row]), num_examples)[0][0]

        found: dict[int, dict[str, int]] = {}
        for turn, quirk in enumerate(WANTED):
            row = (2 * turn + 1) * num_examples // (2 * len(WANTED))
            while row < num_examples and not is_free(row):
                row += 1
            found[row] = quirk
        ends = np.append(layout.first_row_B, num_examples)
        longest = int(np.argmax(np.diff(ends)))
        free = [row for row in range(int(ends[longest]), int(ends[longest + 1]))[:64] if is_free(row)]
        if len(free) >= 2:
            found |= {row: {"item": items.most_popular, "click": i} for i, row in enumerate(free[:2])}
        rows = sorted(found)
        settings = {name: np.array([*(found[row].get(name, -1) for row in rows), -1]) for name in SETTINGS}
        return cls(np.array(rows), settings)

    def asked(self, row_N: Ints) -> dict[str, Ints]:
        """The settings of rows of the file, by name."""
        place = np.minimum(np.searchsorted(self.row, row_N), len(self.row) - 1)
        place = np.where(self.row[place] == row_N, place, -1)
        return {name: values[place] for name, values in self.settings.items()}
