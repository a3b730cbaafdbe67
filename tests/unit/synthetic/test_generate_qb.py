"""Generated QB-Video rows: format, published rates and counts, the order of the file, and a history worth reading."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from infnet_rec.synthetic.qb import generate
from infnet_rec.synthetic.qb.generate import QbPlan, make_qb_plan, make_world
from infnet_rec.synthetic.qb.labels import TASTE_SD, leanings
from infnet_rec.synthetic.qb.layout import QbLayout
from infnet_rec.synthetic.qb.state import LASTING_SHARE

HEADER = b"user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age"
LABELS = ["click", "follow", "like", "share"]


def write(plan: QbPlan, folder: Path) -> Path:
    world = make_world(plan)
    (path,) = (folder / name for name in generate.file_headers(plan))
    with path.open("wb") as file:
        file.write(generate.file_headers(plan)[path.name].encode() + b"\n")
        for chunk in generate.chunks(plan):
            lines, num_examples = generate.make_chunk(world, chunk)
            assert lines[path.name].count(b"\n") == num_examples == chunk[1] - chunk[0]
            file.write(lines[path.name])
    return path


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"video_category": str}, keep_default_na=False)


def starts(log: pd.DataFrame) -> np.ndarray:
    """Whether a block of rows of one user starts here."""
    return (log["user_id"] != log["user_id"].shift()).to_numpy()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make_qb_plan(200_000, None, None, 1), tmp_path_factory.mktemp("qb"))


@pytest.fixture(scope="module")
def log(path: Path) -> pd.DataFrame:
    return read(path)


def test_bytes_are_those_of_the_public_file(path: Path, log: pd.DataFrame) -> None:
    text = path.read_bytes()
    assert path.name == "QB-video.csv" and text.split(b"\n", 1)[0] == HEADER
    assert text.endswith(b"\n") and b"\r" not in text and b'"' not in text
    assert log.to_csv(index=False).encode() == text
    assert log.drop(columns="video_category").dtypes.eq("int64").all() and len(log) == 200_000
    assert set(log["video_category"]) == {"0", "1", "\\N"} and log[LABELS].isin([0, 1]).all().all()
    assert set(log["gender"]) == {0, 1, 2} and set(log["age"]) == set(range(8)) and log["watching_times"].min() == 0
    assert log.groupby("user_id")[["gender", "age"]].nunique().eq(1).all().all()
    assert log.groupby("item_id")["video_category"].nunique().eq(1).all()


def test_rates_are_the_published_ones(log: pd.DataFrame) -> None:
    clicked, liked, times = log["click"] == 1, log["like"] == 1, log["watching_times"]
    assert clicked.mean() == pytest.approx(0.6966, abs=0.01)
    assert liked.mean() == pytest.approx(0.00847, rel=0.1)
    # Some 200 rows each.
    assert log["share"].mean() == pytest.approx(0.00104, rel=0.2)
    assert log["follow"].mean() == pytest.approx(0.001018, rel=0.2)
    # 69.83 % of the rows have a positive, so no more than 0.17 % have one that is not a click.
    assert (log[LABELS].max(axis=1) - log["click"]).mean() == pytest.approx(0.0017, rel=0.25)
    assert times[clicked & ~liked].mean() == pytest.approx(2.4, abs=0.05)
    assert times[liked].mean() == pytest.approx(2.5, abs=0.15)
    assert times[~clicked & ~liked].mean() == pytest.approx(0.9, abs=0.03)
    assert (times[clicked] == 0).mean() < 0.01
    assert (log["video_category"] == "\\N").mean() == pytest.approx(0.013, abs=0.002)


def test_rates_are_kept_where_every_second_row_is_an_items_first(tmp_path: Path) -> None:
    log = read(write(make_qb_plan(400_000, None, 200_000, 0), tmp_path))
    assert log["item_id"].nunique() == 200_000
    assert log["click"].mean() == pytest.approx(0.6966, abs=0.006)
    assert log["like"].mean() == pytest.approx(0.00847, rel=0.1)


def test_histories_are_as_long_and_as_odd_as_the_real_ones(log: pd.DataFrame) -> None:
    rows = log.groupby("user_id").size()
    num_users = len(rows)
    assert num_users == round(34_240 * 200_000 / 2_442_299) and 31 <= rows.median() <= 36
    assert (rows >= 128).mean() == pytest.approx(4_474 / 34_240, rel=0.03)
    assert (rows >= 512).mean() == pytest.approx(470 / 34_240, rel=0.1)
    click = log.groupby("user_id")["click"].mean()[rows >= 20]
    histogram = np.histogram(click, bins=5, range=(0.0, 1.0))[0]
    assert click.quantile(0.99) == 1.0 and histogram[4] > 1.1 * histogram[3] and histogram[0] < histogram[2] / 3
    per_item = log.groupby("item_id").size()
    assert per_item[per_item >= 5].median() == pytest.approx(12, abs=2) and per_item.max() / len(log) < 0.006
    position = log.groupby("user_id").cumcount()
    gaps = position[log["like"] == 1].groupby(log["user_id"]).diff().dropna()
    assert (gaps == 1).mean() == pytest.approx(0.35, abs=0.05)
    before = log.groupby("user_id")["video_category"].shift()
    same = (log["video_category"] == before)[before.notna()].mean()
    # Chance alone: the sum of the squared shares, about one half.
    assert same > 0.75 and (log["video_category"].value_counts(normalize=True) ** 2).sum() < 0.55
    assert 0.0 < log.duplicated(["user_id", "item_id"]).mean() < 0.06


def test_the_head_is_not_the_file_and_users_come_again(log: pd.DataFrame) -> None:
    head = log.iloc[: int(len(log) * 500_000 / 2_442_299)]
    num_users = log["user_id"].nunique()
    assert head["user_id"].nunique() / num_users == pytest.approx(3_120 / 34_240, abs=0.015)
    assert head["click"].mean() == pytest.approx(0.44, abs=0.04)
    unclicked = ((log["like"] == 1) & (log["click"] == 0)).astype(float)
    assert unclicked[head.index].mean() == pytest.approx(0.005, abs=0.002) and unclicked.mean() < 0.002
    assert starts(log).sum() - num_users == round(num_users * 16_706 / 34_240)
    first = log.drop_duplicates("user_id")["user_id"].to_numpy()
    assert abs(np.corrcoef(first, np.arange(num_users))[0, 1]) < 0.1


def test_the_real_size_has_the_real_counts() -> None:
    plan = make_qb_plan(2_442_299, None, None, 0)
    assert (plan.name, plan.num_users, plan.num_items) == ("qb-video", 34_240, 130_637)
    assert plan.rows_U.sum() == 2_442_299 and plan.rows_U.min() == 1
    assert plan.rows_U.max() == pytest.approx(8_876, rel=0.01)
    layout = QbLayout.of(plan.seed, plan.rows_U)
    assert len(layout.user_B) == 34_240 + 16_706 and (np.diff(layout.user_B) != 0).all()
    user, index = layout.at(np.arange(plan.num_examples))
    order = np.argsort(user, kind="stable")
    # Down the file, the rows of each user are numbered from 0 on without a gap.
    begins = np.cumsum(plan.rows_U) - plan.rows_U
    assert (index[order] == np.arange(len(order)) - begins[user[order]]).all()
    assert [make_qb_plan(n, None, None, 0).num_users for n in (244_230, 24_422_990)] == [3_424, 342_400]
    small, large = (make_qb_plan(n, None, None, 0).num_items for n in (244_230, 24_422_990))
    assert 130_637 / 10 < small < 130_637 < large < 130_637 * 10


@pytest.mark.parametrize(
    ("num_examples", "num_users", "num_items"),
    [(100, None, None), (101, 101, 60), (777, 700, 5_000), (5_000, 3, 100), (20_000, 300, 9_000), (3_000, 2, 50)],
)
def test_sizes_are_exact(tmp_path: Path, num_examples: int, num_users: int | None, num_items: int | None) -> None:
    plan = make_qb_plan(num_examples, num_users, num_items, 7)
    log = read(write(plan, tmp_path))
    assert len(log) == plan.num_examples == num_examples and num_users in (None, plan.num_users)
    assert set(log["user_id"]) == set(range(1, plan.num_users + 1)) and num_items in (None, plan.num_items)
    assert log["item_id"].between(1, plan.num_items).all()
    if 2 * plan.num_items <= num_examples:
        assert log["item_id"].nunique() == plan.num_items
    notes = generate.notes(plan)
    assert notes["generated"] is True and (notes["num_examples"], notes["seed"]) == (num_examples, 7)
    assert "Tenrec QB-video" in notes["statistics_from"] and "no row of Tenrec" in notes["licence"]


@pytest.mark.parametrize("seed", range(4))
def test_every_quirk_is_there_at_a_thousand_rows(tmp_path: Path, seed: int) -> None:
    log = read(write(make_qb_plan(1_000, None, None, seed), tmp_path))
    clicked = log["click"] == 1
    assert set(log["video_category"]) == {"0", "1", "\\N"}
    assert starts(log).sum() > log["user_id"].nunique() and (log.groupby("user_id").size() == 1).any()
    for name in ("like", "follow", "share"):
        assert set(log.loc[clicked, name]) == {0, 1} == set(log.loc[~clicked, name]), name
    assert (log.loc[clicked, "watching_times"] == 0).any() and (log.loc[~clicked, "watching_times"] > 0).any()
    assert log.duplicated(["user_id", "item_id"]).any()
    assert (log.groupby(["user_id", "item_id"])["click"].nunique() > 1).any()
    assert set(log["gender"]) == {0, 1, 2} and set(log["age"]) == set(range(8))


def elsewhere(plan: bytes, ranges: list[tuple[int, int]]) -> list[bytes]:
    """In another process: the lines of these rows."""
    world = make_world(pickle.loads(plan))
    return [generate.make_chunk(world, chunk)[0][generate.FILE] for chunk in ranges]


def test_the_bytes_depend_on_neither_workers_nor_chunks(tmp_path: Path) -> None:
    plan = make_qb_plan(40_000, None, None, 11)
    text = write(plan, tmp_path).read_bytes().removeprefix(HEADER + b"\n")
    # Other chunks, from the last to the first, in another process.
    edges = [*range(0, 40_000, 1_537), 40_000]
    ranges = list(pairwise(edges))[::-1]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.submit(elsewhere, pickle.dumps(plan), ranges).result()
    assert b"".join(parts[::-1]) == text
    assert b"".join(elsewhere(pickle.dumps(make_qb_plan(40_000, None, None, 12)), ranges)[::-1]) != text


def test_the_hidden_state_tells_more_than_users_and_items_do(log: pd.DataFrame) -> None:
    plan = make_qb_plan(200_000, None, None, 1)
    world = make_world(plan)
    seen, item = generate.shown(plan, world.layout, world.items, np.arange(len(log)))
    turn = (log.groupby("user_id").cumcount() + 0.5) / log.groupby("user_id")["user_id"].transform("size")
    known, asked = log[turn < 0.5], (turn >= 0.5).to_numpy()
    click = log["click"].to_numpy()[asked]
    scores = []
    for name, prior in (("user_id", 4.0), ("item_id", 20.0)):
        counts = known.groupby(name)["click"].agg(["sum", "size"])
        rate = (counts["sum"] + prior * known["click"].mean()) / (counts["size"] + prior)
        rate = log[name].map(rate).fillna(known["click"].mean())
        scores.append(np.log(rate / (1.0 - rate)).to_numpy()[asked])
    users, items = seen.users, world.items
    # More than any static model can learn: the lasting part of the state itself.
    lasting = np.sqrt(LASTING_SHARE) * (users.lasting_KU[:, seen.user_N] * items.vector_KI[:, item]).sum(axis=0)
    lasting = users.level_U[seen.user_N] + items.click_I[item] + TASTE_SD * lasting
    oracle = leanings(seen, items, item).click_N[asked]
    static = max(roc_auc_score(click, scores[0] + weight * scores[1]) for weight in (0.0, 0.5, 1.0, 1.5))
    best_static, best = roc_auc_score(click, lasting[asked]), roc_auc_score(click, oracle)
    assert 0.75 < static < best_static < 0.9
    assert best >= best_static + 0.02 and best >= static + 0.05


def past_positives(log: pd.DataFrame, half_life: float) -> np.ndarray:
    """What the clicked or liked rows before each say: how many, how often watched, of this category, and liked."""
    columns = [log[name].to_numpy() for name in ("click", "like", "watching_times", "video_category")]
    found, kept = np.zeros((len(log), 4)), 0.5 ** (1.0 / half_life)
    for at in log.groupby("user_id").indices.values():
        count = times = ones = likes = 0.0
        for row, click, like, watched, category in zip(at, *(column[at] for column in columns), strict=True):
            same = ones if category == "1" else count - ones
            found[row] = count, (times + 2.4) / (count + 1.0), (same + 0.5) / (count + 1.0), likes
            if click or like:
                count, times = kept * count + 1.0, kept * times + min(watched, 8)
                ones, likes = kept * ones + (category == "1"), kept * likes + like
    return found


def test_a_history_is_worth_reading(log: pd.DataFrame) -> None:
    """Users and items are rated on the first rows of each user, the model learns the next and is asked the last."""
    part = log[log["user_id"] % 3 == 0].reset_index(drop=True)
    rows = part.groupby("user_id")
    turn = ((rows.cumcount() + 0.5) / rows["user_id"].transform("size")).to_numpy()
    known, train, test = part[turn < 0.3], (turn >= 0.3) & (turn < 0.7), turn >= 0.7
    static = [part["gender"], part["age"], part["video_category"] == "1"]
    for name, prior in (("user_id", 3.0), ("item_id", 10.0)):
        counts = known.groupby(name)["click"].agg(["sum", "size"])
        static.append(part[name].map((counts["sum"] + 0.7 * prior) / (counts["size"] + prior)).fillna(0.7))
    features = np.column_stack(static).astype(float)
    with_past = np.hstack([features, past_positives(part, 6.0), past_positives(part, 20.0)])
    aucs: dict[str, list[float]] = {"click": [], "like": []}
    for name, wanted in aucs.items():
        for table in (features, with_past):
            model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=12, min_samples_leaf=60, random_state=0)
            # Threads that wait for each other are slower by far than one, on a machine that has other work.
            with threadpool_limits(1):
                score = model.fit(table[train], part[name][train]).predict_proba(table[test])[:, 1]
            wanted.append(float(roc_auc_score(part[name][test], score)))
    assert aucs["click"][1] - aucs["click"][0] >= 0.015, aucs
    assert aucs["like"][1] - aucs["like"][0] >= 0.05, aucs
