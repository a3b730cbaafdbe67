"""Made-up rows in the layouts of public data sets: what stands in the files is ours, how it is written is theirs."""

import random
from collections.abc import Sequence
from pathlib import Path

NUM_USERS, NUM_ITEMS = 24, 30
GENRES = ("Action", "Comedy", "Drama", "Sci-Fi", "Children's")
JOBS = ("student", "writer", "other", "none")


def write(path: Path, rows: Sequence[Sequence[object]], delimiter: str, *, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows), encoding=encoding)


def _ratings(draw: random.Random) -> list[tuple[int, int, int, int]]:
    """User, item, stars, seconds since 1970; what is liked depends on both."""
    rows = []
    for user in range(1, NUM_USERS + 1):
        for item in draw.sample(range(1, NUM_ITEMS + 1), 22):
            stars = min(5, max(1, 1 + (user + item) % 5 + draw.randrange(-1, 2)))
            rows.append((user, item, stars, 880_000_000 + draw.randrange(150 * 86_400)))
    draw.shuffle(rows)
    return rows


def movielens_100k(folder: Path) -> None:
    """Tabs, bars, no header, Latin-1."""
    draw = random.Random(1)
    users = [(u, draw.randrange(15, 70), draw.choice("MF"), draw.choice(JOBS), f"{u * 977:05d}") for u in range(1, 25)]
    items = [
        (
            i,
            f'Film "é" {i} (1995)',
            f"01-Jan-199{i % 7}",
            "",
            f"http://films/{i}",
            *(draw.randrange(2) for _ in range(19)),
        )
        for i in range(1, NUM_ITEMS + 1)
    ]
    write(folder / "u.data", _ratings(draw), "\t")
    write(folder / "u.user", users, "|")
    write(folder / "u.item", items, "|", encoding="latin-1")


def movielens_1m(folder: Path) -> None:
    """Two colons, no header, genres between bars."""
    draw = random.Random(2)
    users = [
        (u, draw.choice("MF"), draw.choice((1, 18, 25, 35)), draw.randrange(20), f"{u * 977:05d}") for u in range(1, 25)
    ]
    items = [
        (i, f"Film: é {i}, The (1995)", "|".join(draw.sample(GENRES, draw.randrange(1, 4))))
        for i in range(1, NUM_ITEMS + 1)
    ]
    write(folder / "ratings.dat", _ratings(draw), "::")
    write(folder / "users.dat", users, "::")
    write(folder / "movies.dat", items, "::", encoding="latin-1")


def recbole(folder: Path) -> None:
    """Tabs, and names with types; several values between blanks."""
    draw = random.Random(3)
    ratings = [(u, i, f"{stars}.0", f"{t}.0") for u, i, stars, t in _ratings(draw)]
    users = [(u, draw.randrange(15, 70), draw.choice("MF"), draw.choice(JOBS), u * 977) for u in range(1, 25)]
    items = [
        (i, f"Film {i}", 1990 + i % 7, " ".join(draw.sample(GENRES, draw.randrange(1, 4))))
        for i in range(1, NUM_ITEMS + 1)
    ]
    names = "user_id:token item_id:token rating:float timestamp:float"
    write(folder / "ml-100k.inter", [names.split(), *ratings], "\t")
    names = "user_id:token age:token gender:token occupation:token zip_code:token"
    write(folder / "ml-100k.user", [names.split(), *users], "\t")
    names = "item_id:token movie_title:token_seq release_year:token class:token_seq"
    write(folder / "ml-100k.item", [names.split(), *items], "\t")


def criteo(folder: Path) -> None:
    """Tabs, no header, empty cells, no time."""
    draw = random.Random(4)
    rows = []
    for _ in range(900):
        counts = ["" if draw.random() < 0.3 else draw.randrange(-1, 200) for _ in range(13)]
        hashes = [
            f"{draw.randrange(12) * 99991 + k:08x}" if k in (6, 9) or draw.random() < 0.8 else "" for k in range(26)
        ]
        rows.append((draw.randrange(2), *counts, *hashes))
    write(folder / "train.txt", rows, "\t")


def taobao_userbehavior(folder: Path) -> None:
    """Commas, no header, four behaviours in one column."""
    draw = random.Random(5)
    kinds = ("pv",) * 8 + ("cart", "fav", "buy")
    start = 1_511_539_200  # 2017-11-25 in Beijing
    rows = [
        (user, item, item % 6, draw.choice(kinds), start + draw.randrange(9 * 86_400))
        for user in range(100, 124)
        for item in (draw.randrange(1000, 1030) for _ in range(40))
    ]
    write(folder / "UserBehavior.csv", rows, ",")


LAYOUTS = {layout.__name__: layout for layout in (movielens_100k, movielens_1m, recbole, criteo, taobao_userbehavior)}
