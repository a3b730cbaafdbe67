"""The picture of a store: written whole, never over something else, and nothing in it overlaps."""

import copy
import json
import struct
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from data_fixtures import Dataset
from infnet_rec import cli
from infnet_rec.data.inspect import plot as stats_plot
from infnet_rec.data.inspect import stats_text as command
from infnet_rec.data.inspect.stats import store_stats
from infnet_rec.files import PNG
from infnet_rec.plotting import STYLE
from slow_reference import SPLITS

KEYS = ["store", "name", "order", "num_examples", "num_users", "num_items", "splits"]
KEYS += ["examples_per_user", "examples_per_item", "periods", "histories", "tokens_per_example", "repeats"]
KEYS += ["features", "tables", "memory", "disk", "plot"]
KEYS[7:7] = ["log", "joins", "bad_rows", "flat_features", "warnings"]


@pytest.fixture(scope="module")
def report(shop: Dataset) -> dict[str, Any]:
    return store_stats(shop.store, lambda _: None)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infnet-rec", "data", "stats", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (left.value.code or 0, *capsys.readouterr())

    return run


def test_json_is_one_object_and_the_picture_is_written_whole(shop: Dataset, run: Any, tmp_path: Path) -> None:
    plot = tmp_path / "shop.png"
    plot.write_bytes(PNG[0] + b"an older picture")
    code, out, err = run(shop.store.path, "--json", "--plot", plot)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert list(json.loads(out)) == KEYS
    assert png_size(plot) == (1600, 1000) and [path.name for path in tmp_path.iterdir()] == ["shop.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shop.pdf", "end its name with .png"),
        ("none/shop.png", "there is no folder"),
        ("folder.png", "is a folder; name a file"),
        ("notes.png", "exists and is not a PNG file, so it is left alone; name another"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_counting(
    shop: Dataset, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr(command, "store_stats", lambda *_: pytest.fail("counted first"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.png").write_text("my notes")
    code, out, err = run(shop.store.path, "--plot", tmp_path / name)
    assert (code, out) == (2, "") and f"fault: --plot {tmp_path / name}: " in err and message in err
    assert (tmp_path / "notes.png").read_text() == "my notes"


def odd(report: dict[str, Any], kind: str) -> dict[str, Any]:
    report = copy.deepcopy(report)
    periods = report["periods"]
    match kind:
        case "no behaviours":
            report["histories"] = {}
        case "no positives":
            for split in SPLITS:
                periods["splits"][split]["positives"]["buy"] = [0] * len(periods["starts"])
                periods["splits"][split]["positives"]["save"] = [0] * len(periods["starts"])
        case "two years":
            periods["starts"] = [str(np.datetime64("2022-06-01") + k) for k in range(100 * len(periods["starts"]))]
            for facts in periods["splits"].values():
                facts["num_examples"] = [n for n in facts["num_examples"] for _ in range(100)]
                facts["positives"] = {t: [n for n in ns for _ in range(100)] for t, ns in facts["positives"].items()}
        case "an example each":
            for key in ("examples_per_user", "examples_per_item"):
                report[key] |= {"p50": 1, "p90": 1, "p99": 1, "max": 1, "num": 1}
                report[key] |= {"curve_at_least": [[1, 1.0]], "curve_by_rank": [[1, 1]]}
    return report


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["as it is", "no behaviours", "no positives", "two years", "an example each"])
def test_nothing_in_the_picture_overlaps(report: dict[str, Any], kind: str) -> None:
    """Titles, legends and axes of the six panels keep to their own places, whatever the store."""
    with matplotlib.rc_context(STYLE):
        figure = stats_plot.stats_figure(odd(report, kind))
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
        titles = [axes._left_title.get_window_extent(renderer) for axes in figure.axes]
        words = [
            [text.get_window_extent(renderer) for text in texts if text.get_text()]
            for axes in figure.axes
            for texts in (axes.texts, axes.get_xticklabels(), axes.get_yticklabels())
        ]
    assert len(boxes) == 6
    for k, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1600 and 0 <= box.y0 < box.y1 <= 1000
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])
        assert titles[k].width < 480
    for together in words:
        assert not any(word.overlaps(other) for k, word in enumerate(together) for other in together[k + 1 :])
