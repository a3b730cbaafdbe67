"""Generated KuaiRand-27K and -1K: files and headers, rates and quirks, and memory that no number of videos changes."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from infnet_rec.errors import UserError
from infnet_rec.synthetic import plan
from infnet_rec.synthetic.draws import Ints
from infnet_rec.synthetic.facts import bucket_of, large_facts, table
from infnet_rec.synthetic.kuairand.labels import TASTE_SD, label, leanings
from infnet_rec.synthetic.kuairand.tastes import LASTING_SHARE, LEVEL_LASTING_SD
from infnet_rec.synthetic.large import generate as large
from infnet_rec.synthetic.large import world as large_world
from infnet_rec.synthetic.large.catalogue import videos_of
from infnet_rec.synthetic.run import generate
from test_generate import HEADERS, LOG_HEADER, beijing, contents

EARLY, LATE, RANDOM, USERS, BASIC, STATISTIC = HEADERS
TABS = {0: 0.116, 1: 0.4436, 2: 0.4242, 4: 0.5445}


def parts(name: str, suffix: str, num_parts: int) -> list[str]:
    stem = name.removesuffix("pure.csv") + suffix
    return [f"{stem}.csv"] if num_parts == 1 else [f"{stem}_part{i}.csv" for i in range(1, num_parts + 1)]


def logs(suffix: str, num_parts: int) -> list[str]:
    return [name for window in (EARLY, LATE) for name in parts(window, suffix, num_parts)]


def read(folder: Path, names: list[str]) -> pd.DataFrame:
    return pd.concat([pd.read_csv(folder / name, dtype={"tag": str}) for name in names], ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated") / "27k"
    report = generate("kuairand-27k", out, num_examples=250_000, num_users=500, num_items=50_000, seed=3)
    assert (report.num_examples, report.num_users, report.num_items, report.num_random) == (250_000, 500, 50_000, 920)
    assert set(report.files) == set(contents(out))
    return out


@pytest.fixture(scope="module")
def log(folder: Path) -> pd.DataFrame:
    return read(folder, logs("27k", 2))


@pytest.fixture(scope="module")
def videos(folder: Path) -> pd.DataFrame:
    return read(folder, parts(BASIC, "27k", 1))


@pytest.mark.parametrize(("suffix", "num_logs", "num_statistics"), [("27k", 2, 3), ("1k", 1, 1)])
def test_names_headers_and_bytes_are_those_of_the_public_files(
    tmp_path: Path, suffix: str, num_logs: int, num_statistics: int
) -> None:
    headers: dict[str, bytes] = dict.fromkeys(logs(suffix, num_logs), LOG_HEADER)
    for name, num_parts in ((RANDOM, 1), (USERS, 1), (BASIC, 1), (STATISTIC, num_statistics)):
        headers |= dict.fromkeys(parts(name, suffix, num_parts), HEADERS[name])
    dataset: Any = f"kuairand-{suffix}"
    generate(dataset, tmp_path / "out", num_examples=5_000)
    found = contents(tmp_path / "out")
    assert set(found) == {*headers, "generated.json", "README.md"}
    for name, header in headers.items():
        text = found[name]
        assert text.split(b"\n", 1)[0] == header, name
        # What pandas reads and writes again is the same, so it prints numbers, nulls and quotes in the same way.
        frame = pd.read_csv(tmp_path / "out" / name, dtype={"tag": str})
        assert len(frame) and frame.to_csv(index=False).encode() == text, name
    assert sum(found[name].count(b"\n") - 1 for name in logs(suffix, num_logs)) == 5_000


def test_parts_are_row_random_halves_in_order(folder: Path, log: pd.DataFrame) -> None:
    for window, low, high in ((EARLY, 20220408, 20220421), (LATE, 20220422, 20220508)):
        one, two = (pd.read_csv(folder / name) for name in parts(window, "27k", 2))
        for part in (one, two):
            assert part.dtypes.eq("int64").all() and part["date"].between(low, high).all()
            assert part["date"].nunique() == (14 if window == EARLY else 17) and (part["is_rand"] == 0).all()
            pd.testing.assert_frame_equal(part, part.sort_values(["user_id", "time_ms"], kind="stable"))
        assert len(one) / (len(one) + len(two)) == pytest.approx(0.5, abs=0.01)
        both, either = (set(one["user_id"]) & set(two["user_id"])), (set(one["user_id"]) | set(two["user_id"]))
        assert 0.97 < len(both) / len(either) < 1.0
        # A page is cut through by the halves, so rows are shared out, not pages.
        shared = one[["user_id", "time_ms"]].drop_duplicates().merge(two[["user_id", "time_ms"]].drop_duplicates())
        assert len(shared) > 0.9 * len(one[["user_id", "time_ms"]].drop_duplicates())
    first = set(log.loc[log["date"] < 20220422, "user_id"])
    assert set(log["user_id"]) - first and len(set(range(500)) - set(log["user_id"])) == 1


def test_statistics_are_three_parts_of_the_videos(folder: Path, log: pd.DataFrame, videos: pd.DataFrame) -> None:
    frames = [pd.read_csv(folder / name) for name in parts(STATISTIC, "27k", 3)]
    for frame in frames:
        assert frame["video_id"].is_monotonic_increasing and len(frame) == pytest.approx(50_000 / 3, rel=0.03)
        assert not frame.isna().any().any() and frame["counts"].between(1, 189).all()
    whole = pd.concat(frames).sort_values("video_id").reset_index(drop=True)
    assert (whole["video_id"] == np.arange(50_000)).all() and (videos["video_id"] == np.arange(50_000)).all()
    summary = large_facts().videos["statistics"]
    for name in ("counts", "show_cnt", "play_cnt", "like_cnt", "play_duration"):
        _, half, most, _ = summary[name]
        assert whole[name].median() == pytest.approx(half, rel=0.06), name
        assert whole[name].quantile(0.9) == pytest.approx(most, rel=0.08), name
    shown = log.groupby("video_id").size().reindex(whole["video_id"]).fillna(0)
    assert np.corrcoef(np.log1p(shown), np.log1p(whole["show_cnt"]))[0, 1] > 0.5
    assert (whole["play_user_num"] <= whole["play_cnt"]).all()


def test_rates_are_those_of_the_real_log(log: pd.DataFrame) -> None:
    for tab, click in TABS.items():
        rows = log[log["tab"] == tab]
        assert rows["is_click"].mean() == pytest.approx(click, abs=0.01 if len(rows) > 40_000 else 0.05), tab
    share = log["tab"].value_counts(normalize=True)
    assert share[1] == pytest.approx(0.670, abs=0.03) and share[0] == pytest.approx(0.198, abs=0.03)
    assert log["is_click"].mean() == pytest.approx(0.3787, rel=0.05)
    assert log["long_view"].mean() == pytest.approx(0.2621, rel=0.05)
    assert log["is_like"].mean() == pytest.approx(0.0156, rel=0.12)
    assert log["is_follow"].mean() == pytest.approx(0.001, rel=0.4)
    users = log.groupby("user_id").agg(size=("is_click", "size"))
    real = large_facts().users["rows"]
    rows = np.array(real["values"]) * (users["size"].mean() / 11_811.6)
    assert max(abs((users["size"] <= x).mean() - q) for x, q in zip(rows, real["levels"], strict=True)) < 0.05


def test_users_of_the_real_size_differ_as_the_real_ones() -> None:
    """Some rows all over the log of each of some users, of a log of 322 million rows."""
    world = large_world.make_world(large.make_plan(plan.LARGE, plan.LARGE.num_examples, None, None, 1))
    users = np.arange(0, world.plan.num_users, 50)
    user, number = np.divmod(np.arange(200 * len(users)), 200)
    counts = world.plan.standard_counts[users]
    asked = large_world.nothing_asked(len(user))
    shown, video = large_world.standard_rows(world, users, user, number * counts[user] // 200, asked)
    columns = label(shown, leanings(shown, 1), world.intercepts["standard"])
    click = columns["is_click"].reshape(-1, 200).mean(axis=1)
    noise = np.mean(click * (1.0 - click) / 200)
    assert click.mean() == pytest.approx(0.470, abs=0.02)
    assert np.sqrt(click.var() - noise) == pytest.approx(0.185, abs=0.02)
    assert np.corrcoef(np.log(counts), click)[0, 1] == pytest.approx(-0.499, abs=0.07)
    assert np.average(click, weights=counts) == pytest.approx(0.3787, rel=0.08)
    tabs = [(shown.rows.tab.reshape(-1, 200) == tab).any(axis=1).mean() for tab in (1, 2, 14)]
    assert tabs == pytest.approx([0.993, 0.166, 0.002], abs=0.03)
    assert counts.min() >= 90 and np.median(counts) == pytest.approx(8_594, rel=0.1)
    # Hardly any of these videos has come up twice, although the most popular of all has 15,380 rows.
    assert len(np.unique(video)) > 0.6 * len(video)


def test_videos_are_as_popular_as_the_real_ones(log: pd.DataFrame) -> None:
    shown = log.groupby("video_id").size().sort_values(ascending=False)
    assert len(shown) > 0.98 * 50_000 and shown.median() <= 2
    assert (shown == 1).mean() == pytest.approx(0.54, abs=0.1) and shown.iloc[:500].sum() / len(log) > 0.15
    assert log.duplicated(["user_id", "video_id"]).mean() < 0.1
    real: Any = plan.LARGE
    assert videos_of(real, real.num_examples, real.num_users) == real.num_videos
    assert videos_of(plan.ONE_K, plan.ONE_K.num_examples, 1_000) == plan.ONE_K.num_videos
    for num_examples in (1_000_000, 20_000_000):
        num_users = round(27_285 * num_examples / real.num_examples)
        world = large_world.make_world(large.make_plan(real, num_examples, None, None, 0))
        assert world.plan.num_users == num_users and 4 < num_examples / world.plan.num_items < 10.1
        low, high = world.catalogue.curve.slots_of(np.arange(world.plan.num_items - 50))
        assert ((high - low) == 1).mean() == pytest.approx(0.54, abs=0.01)


def test_the_log_is_as_odd_as_the_real_one(folder: Path, log: pd.DataFrame, videos: pd.DataFrame) -> None:
    for name in logs("27k", 2):
        part = pd.read_csv(folder / name)
        assert 0.18 < len(part.drop_duplicates(["user_id", "time_ms"])) / len(part) < 0.225
        assert 0.005 < part.duplicated(["user_id", "video_id", "time_ms"]).mean() < 0.01
        gaps = part["time_ms"].diff()[part["user_id"].diff() == 0]
        assert (gaps < 1_000).mean() == pytest.approx(0.828, abs=0.03)
    joined = log.merge(videos, on="video_id").merge(pd.read_csv(folder / parts(USERS, "27k", 1)[0]), on="user_id")
    assert len(joined) == len(log)
    assert (joined["duration_ms"] == joined["video_duration"].fillna(0)).all()
    dated = joined["upload_dt"].notna()
    assert (beijing(joined) >= pd.to_datetime(joined["upload_dt"]))[dated].all()
    uploaded = pd.to_datetime(videos["upload_dt"].dropna())
    assert 0.05 < (uploaded < "2022-04-08").mean() < 0.6 and uploaded.max() <= pd.Timestamp("2022-05-08")
    assert videos["video_duration"].isna().mean() == pytest.approx(0.211, abs=0.01)
    assert videos["video_duration"].median() == pytest.approx(26_966, rel=0.05)
    lengths = videos["tag"].str.count(",").add(1).fillna(0).value_counts(normalize=True)
    assert lengths[[0, 1, 2, 3]].to_numpy() == pytest.approx([0.031, 0.7302, 0.2326, 0.0061], abs=0.01)
    assert 3.2 < len(videos) / videos["author_id"].nunique() < 4.1
    assert 0.4 < videos["music_id"].nunique() / len(videos) < 0.5
    assert (videos["video_type"] == "NORMAL").mean() == pytest.approx(0.9992, abs=0.0006)
    per_day = log.groupby("date").size()
    assert per_day.max() / per_day.min() < 3.0
    hours = beijing(log).dt.hour.value_counts()
    assert hours.idxmin() in (3, 4, 5) and hours.idxmax() in (20, 21, 22)


def test_every_quirk_is_there_at_a_thousand_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate("kuairand-27k", out, num_examples=1_000)
    log, random = read(out, logs("27k", 2)), read(out, parts(RANDOM, "27k", 1))
    users, videos = read(out, parts(USERS, "27k", 1)), read(out, parts(BASIC, "27k", 1))
    assert len(log) == 1_000 and log["date"].nunique() == 31
    assert set(log["tab"]) == set(range(15)) and set(random["tab"]) == {1, 2, 11, 14}
    for name in ("click", "like", "follow", "comment", "forward", "hate", "profile_enter"):
        assert set(log[f"is_{name}"]) == {0, 1}, name
    assert (log[["profile_stay_time", "comment_stay_time"]] > 0).any().all()
    assert {-5, -8} <= set(log["play_time_ms"])
    assert log.duplicated().any() and log.duplicated(["user_id", "time_ms"]).mean() > 0.5
    assert (log.drop_duplicates().groupby(["user_id", "video_id"])["is_click"].nunique() > 1).any()
    shown = beijing(log).dt.strftime("%Y%m%d").astype(int)
    assert (log["date"] > shown).any() and (log.loc[shown == 20220407, "date"] == 20220408).any()
    assert (log["duration_ms"] == 0).any() and (log["play_time_ms"] > 3 * log["duration_ms"]).any()
    assert ((log["is_click"] == 0) & (log["long_view"] == 1)).any()
    assert set(users["user_id"]) - set(log["user_id"]) and set(random["video_id"]) - set(log["video_id"])
    early, late = (read(out, parts(window, "27k", 2)) for window in (EARLY, LATE))
    assert set(late["user_id"]) - set(early["user_id"])
    one, two = (read(out, [parts(window, "27k", 2)[i] for window in (EARLY, LATE)]) for i in (0, 1))
    assert set(one["user_id"]) - set(two["user_id"])
    assert set(users["is_live_streamer"]) == {-124, 1} and users["onehot_feat4"].isna().any()
    assert videos["upload_type"].nunique() == 21 and set(videos["video_type"]) == {"NORMAL", "AD", "UNKNOWN"}
    assert set(videos["tag"].str.count(",").fillna(-1)) == {-1, 0, 1, 2, 3, 4}
    assert set(videos["visible_status"].dropna()) == set(range(9))
    nullable = ["upload_dt", "visible_status", "video_duration", "server_width", "server_height", "music_type", "tag"]
    assert videos[nullable].isna().any().all() and not videos.drop(columns=nullable).isna().any().any()
    assert videos["music_id"].max() == 9_479_247_334 and (videos["music_id"] == 0).any()
    assert videos["server_width"].agg(["min", "max"]).tolist() == [1.0, 12_096.0]


def test_the_bytes_depend_on_neither_workers_nor_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for name, workers, seed in (("one", 1, 11), ("two", 2, 11), ("seed", 1, 12)):
        generate(
            "kuairand-1k", tmp_path / name, num_examples=20_000, seed=seed, num_workers=workers, progress=seen.append
        )
    assert seen.count(20_000) == 3
    monkeypatch.setattr(plan, "ROWS_A_CHUNK", 1_500)
    monkeypatch.setattr(plan, "VIDEOS_A_CHUNK", 700)
    generate("kuairand-1k", tmp_path / "chunks", num_examples=20_000, seed=11)
    one, two, chunks, seed = (contents(tmp_path / name) for name in ("one", "two", "chunks", "seed"))
    assert [name for name in one if not one[name] == two[name] == chunks[name]] == []
    assert set(one) == set(seed)
    assert [name for name in one if name.endswith(".csv") and one[name] == seed[name]] == []


def test_a_name_that_is_nearly_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'kuairand-27k'"):
        generate("kuairand-27", tmp_path / "out", num_examples=1_000)  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_unusual_sizes_are_exact(tmp_path: Path) -> None:
    for rows, users, items in [(100, None, None), (101, 2, 60), (777, 700, 50), (5_000, 3, 90_000)]:
        out = tmp_path / str(rows)
        generate("kuairand-27k", out, num_examples=rows, num_users=users, num_items=items)
        log, videos = read(out, logs("27k", 2)), read(out, parts(BASIC, "27k", 1))
        assert len(log) == rows and len(log.merge(videos, on="video_id")) == rows
        assert users is None or len(read(out, parts(USERS, "27k", 1))) == users
        assert items is None or len(videos) == items == len(read(out, parts(STATISTIC, "27k", 3)))


def test_memory_does_not_grow_with_rows_or_videos() -> None:
    """One array of the videos would be 256 MB, one of the rows 2.6 GB."""
    real = plan.LARGE
    made = large.make_plan(real, real.num_examples, None, None, 0)
    assert (made.num_users, made.num_items) == (27_285, 32_038_725)
    tracemalloc.start()
    try:
        world = large_world.make_world(made)
        chunks = large.chunks(made)
        for kind in ("users", "videos"):
            large.make_chunk(world, next(chunk for chunk in chunks if chunk[0] == kind))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert max(made.standard_counts) == pytest.approx(150_000, rel=0.6)


def all_rows(world: large_world.LargeWorld) -> tuple[Ints, Ints]:
    counts = world.plan.standard_counts
    user = np.repeat(np.arange(world.plan.num_users), counts)
    return user, np.arange(len(user)) - (np.cumsum(counts) - counts)[user]


def test_who_knows_the_state_at_the_time_knows_best() -> None:
    """A static model at its best knows the video, the tab, and all that lasts of the user; the moods still move."""
    world = large_world.make_world(large.make_plan(plan.LARGE, 120_000, 300, None, 1))
    users, (user, index) = np.arange(300), all_rows(world)
    asked = large_world.nothing_asked(len(user))
    shown, _ = large_world.standard_rows(world, users, user, index, asked)
    leaning, intercepts = leanings(shown, 1), world.intercepts["standard"]
    click = label(shown, leaning, intercepts)["is_click"]
    moods = large_world.moods_of(world, users)
    bucket = bucket_of(shown.duration_ms_N, shown.facts.log["duration_edges_ms"])
    video = shown.video_click_N + table(shown.facts.log["click_by_duration"])[bucket]
    lasting = LEVEL_LASTING_SD * moods.click_U[user]
    taste = np.sqrt(LASTING_SHARE) * np.einsum("nk,nk->n", moods.lasting_UK[user], shown.vector_NK)
    by_tab = intercepts.click_T[shown.rows.tab]
    oracle, best, without_taste = (
        float(roc_auc_score(click, by_tab + score))
        for score in (leaning.click_N, video + lasting + TASTE_SD * taste, video + lasting)
    )
    assert oracle - best >= 0.02 and best - without_taste >= 0.02
