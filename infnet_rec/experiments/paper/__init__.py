"""The numbers of the paper's tables 1 and 3, and which of their cells are doubtful in the copy they were read from.

Start at `numbers_of`; the tables are the CSV files beside it.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files

# The size of the whole dataset, in rows of its log. A part of it, or a generated log, is another dataset.
NUM_ROWS = {"KuaiRand-Pure": 1_436_609, "KuaiRand-27K": 322_278_385, "QB-video": 2_442_299}
# Some rows are history only, and are no examples.
LEAST_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class PaperNumber:
    """A cell of a table of the paper; `doubt` is empty where it was clearly legible."""

    value: float
    doubt: str


def numbers_of(dataset: str) -> dict[tuple[str, str, str], PaperNumber]:
    """The paper's numbers of a dataset, by label, task and metric, as we call them."""
    found = {}
    for name in ("table1.csv", "table3.csv"):
        lines = files(__name__).joinpath(name).read_text(encoding="utf-8").splitlines()
        for row in csv.DictReader(lines):
            if row["dataset"] == dataset:
                flag = row["ocr_flag"]
                key = (row["model"], row["task"].replace("-", "_"), row["metric"].lower())
                found[key] = PaperNumber(float(row["value"]), "" if flag.startswith("clean") else flag)
    return found


def is_of_that_size(dataset: str, num_examples: int) -> bool:
    """Whether a store can be the paper's dataset: recipes are used for parts of it too.

    A generated log may be as large; only its store says that it is one (`generated` in the manifest).
    """
    return num_examples >= LEAST_SHARE * NUM_ROWS[dataset]
