"""What the columns of raw files may mean: which table is the log, its user, item, time and labels, and what joins it.

Every guess carries its reason, for a person who looks it over. Names count most; where a file has none, the order that
public files have (user before item) and the values decide.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import duckdb

from infnet_rec.data.ingest.build import BuildProgress
from infnet_rec.data.sniff.sniffer import (
    MIN_ID_FILLED,
    RECBOLE,
    Reason,
    SniffedColumn,
    SniffedTable,
    fixed_by,
    is_unique,
    matched_share,
    parts_of,
    plain_name,
    words_of,
)
from infnet_rec.data.sniff.times import Time, guess_splits, guess_time, time_unit
from infnet_rec.errors import UserError
from infnet_rec.schema import Side


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


USER_WORDS = _words(
    "user uid userid usr customer client member visitor reader viewer reviewer account buyer person player session "
    "cookie device learner student"
)
ITEM_WORDS = _words(
    "item iid itemid video movie product sku article song track artist book news ad adgroup goods post photo game "
    "recipe place business poi asin isbn creative listing offer app vid mid pid music course clip"
)
RATING_WORDS = _words("rating ratings score stars star rate grade")
EVENT_WORDS = _words("behavior behaviour event action type interaction")
EVENT_VALUES = _words(
    "pv buy cart fav click view purchase like addtocart transaction impression favorite favourite share follow comment "
    "collect play skip order remove install"
)
# Known before the user answers; other columns of a log may only be known afterwards, and would tell the label.
CONTEXT_WORDS = _words(
    "tab hour weekday dow os platform page network city country scene channel position slot browser language locale "
    "devicetype hourmin context"
)
NO_LABEL_WORDS = _words("rand random test valid train split fold")
RATING_SHARE = 0.75  # of the way from the lowest to the highest rating
MAX_RATINGS, MAX_EVENTS = 101, 12
MAX_INDEX = 1_000
LONG_TEXT = 48
FEW_COLUMNS = 5  # a log without names and times has hardly more than user, item and label
SEPARATORS = ("|", ",", ";", " ", "/")


@dataclass(frozen=True, slots=True)
class Label:
    """A task: a column of zeros and ones, or a predicate on one; and the events that count as having happened."""

    name: str
    column: str
    is_flag: bool
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class GuessedJoin:
    """A table of users or items; `of_log` says that it is the log itself, read for what a column says of its key."""

    table: SniffedTable
    side: Side
    key: str
    reason: str
    of_log: bool = False


@dataclass(frozen=True, slots=True)
class GuessedFeature:
    """A column that becomes a feature, and how."""

    column: str
    side: Side
    encoding: str
    options: tuple[tuple[str, str], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Guess:
    """A whole first recipe; `unused` says of tables and columns why they are left out."""

    log: SniffedTable
    user: Reason
    item: Reason
    id_type: str
    id_reason: str
    time: Time | None
    labels: tuple[Label, ...]
    joins: tuple[GuessedJoin, ...]
    features: tuple[GuessedFeature, ...]
    splits: Reason
    unused: tuple[str, ...]


def guess(connection: duckdb.DuckDBPyConnection, tables: Sequence[SniffedTable], progress: BuildProgress) -> Guess:
    """Guesses what the tables mean.

    Args:
        connection: for counts that take a look at more than one column.
        tables: all files, read.
        progress: told what begins.

    Raises:
        UserError: there is no log among them, or nothing in it that could be its user, item or label.
    """
    progress.stage("guessing what the columns mean", 0, "")
    log, user, item = _log_of(tables)
    time = guess_time(connection, log, {user[0], item[0]})
    others = [c.name for c in log.columns if c.filled and c.distinct > 1 and not c.is_list]
    taken = {user[0], item[0], *(time.columns if time else ())}
    own = _fixed(connection, log, user[0], item[0], [name for name in others if name not in taken])
    log, user, item, time = _named(log, user, item, time, own)
    taken = {user[0], item[0], *(time.columns if time else ())}
    joins, unused = _joins(connection, log, user[0], item[0], [t for t in tables if t.files != log.files])
    rest = [c.name for c in log.columns if c.name not in taken and not c.is_list and c.filled and c.distinct > 1]
    labels = _labels(log, [c for c in log.columns if c.name in rest and c.name not in own])
    if not labels:
        raise UserError(
            f"{log.title}: no column that could be a label: none holds zeros and ones, ratings or kinds of events "
            f"(columns: {', '.join(c.name for c in log.columns)}); a log that has only what was taken needs rows of "
            "what was shown and left, or write a recipe whose task has a where"
        )
    id_type, id_reason = _id_type(log, user[0], item[0], joins)
    joins += [
        GuessedJoin(log, side, key, "", of_log=True) for side, key in _sides(user[0], item[0]) if side in own.values()
    ]
    features, more = _features(
        connection, log, joins, own, (user[0], item[0]), {*taken, *(label.column for label in labels)}
    )
    unused += more
    return Guess(
        log,
        user,
        item,
        id_type,
        id_reason,
        time,
        tuple(labels),
        tuple(joins),
        tuple(features),
        guess_splits(connection, log, user[0], time),
        tuple(unused),
    )


def _is_id(log: SniffedTable, column: SniffedColumn) -> bool:
    """Whether a column may hold ids: filled, no fractions, several values, and some of them in several rows."""
    if column.is_list or column.is_instant or column.filled < MIN_ID_FILLED * log.num_rows:
        return False
    return 2 < column.distinct <= max(3, 0.98 * log.num_rows) and (column.is_whole or not column.is_number)


def _best(columns: Sequence[SniffedColumn], known: frozenset[str]) -> SniffedColumn | None:
    """The column whose name says most; of equals the first."""

    def score(column: SniffedColumn) -> int:
        words = words_of(column.name)
        hits = [word for word in words if word in known or word.removesuffix("s") in known]
        if not hits or any(w in ("count", "num", "cnt", "name", "type", "age", "time") for w in words):
            return 0
        return 3 - min(2, sum(word not in known and word not in ("id", "key", "idx", "no") for word in words))

    scored = [(score(column), -k) for k, column in enumerate(columns)]
    best = max(scored, default=(0, 0))
    return columns[-best[1]] if best[0] else None


def _log_of(tables: Sequence[SniffedTable]) -> tuple[SniffedTable, Reason, Reason]:
    """The log, its user and its item."""
    found: list[tuple[int, SniffedTable, Reason, Reason]] = []
    for table in tables:
        ids = [column for column in table.columns if _is_id(table, column)]
        if table.has_header:
            user, item = _best(ids, USER_WORDS), _best(ids, ITEM_WORDS)
            reasons = [f"its name says so; about {c.distinct:,} values" for c in (user, item) if c]
        else:
            times = [c for c in table.columns if time_unit(c) is not None]
            plain = [
                c for c in ids if c not in times and not _is_rating(c, named=False) and not _is_event(c, named=False)
            ]
            user, item = (
                (plain[0], plain[1])
                if len(plain) > 1 and (times or len(table.columns) <= FEW_COLUMNS)
                else (None, None)
            )
            order = ("the first", "the second")
            reasons = [
                f"{w} column that may hold ids; about {c.distinct:,} values" for w, c in zip(order, plain, strict=False)
            ]
        if user and item and user != item:
            found.append((table.num_rows, table, (user.name, reasons[0]), (item.name, reasons[1])))
    if not found:
        names = "; ".join(f"{t.title}: {', '.join(c.name for c in t.columns[:12])}" for t in tables)
        raise UserError(
            f"no file has a column that could be the user and one that could be the item ({names}); write a recipe by "
            "hand, see configs/datasets/template.toml"
        )
    return max(found, key=lambda f: f[0])[1:]


def _named(
    log: SniffedTable, user: Reason, item: Reason, time: Time | None, own: Collection[str]
) -> tuple[SniffedTable, Reason, Reason, Time | None]:
    """Gives the columns of a log without a header the names of what they are."""
    if log.has_header:
        return log, user, item, time
    names = {user[0]: "user", item[0]: "item"}
    if time is not None:
        names |= dict(zip(time.columns, ("time",) if len(time.columns) == 1 else ("date", "clock"), strict=True))
    for column in log.columns:
        if column.name in own:
            continue
        if column.name not in names and _is_rating(column, named=False) and not column.is_flag:
            names[column.name] = "rating" if "rating" not in names.values() else column.name
        elif column.name not in names and _is_event(column, named=False):
            names[column.name] = "event" if "event" not in names.values() else column.name
    renamed = _renamed(log, names)
    new = replace(time, columns=tuple(names[c] for c in time.columns)) if time else None
    return renamed, (names[user[0]], user[1]), (names[item[0]], item[1]), new


def _renamed(table: SniffedTable, names: dict[str, str]) -> SniffedTable:
    """A table without a header, with other names for its columns."""
    columns = tuple(names.get(c.name, c.name) for c in table.columns)
    raw = replace(table.raw, columns=columns, form=replace(table.raw.form, columns=columns))
    fresh = tuple(replace(c, name=name) for c, name in zip(table.columns, columns, strict=True))
    return replace(table, raw=raw, columns=fresh)


def _is_rating(column: SniffedColumn, *, named: bool) -> bool:
    if column.is_list or not column.is_number or column.low is None or column.high is None:
        return False
    if named:
        return bool(RATING_WORDS & set(words_of(column.name))) and 2 < column.distinct <= MAX_RATINGS
    return 2 < column.distinct <= 11 and column.low >= 0 and column.high <= 10


def _is_event(column: SniffedColumn, *, named: bool) -> bool:
    values = {value.strip().lower() for value in column.few}
    if column.is_list or column.is_number or not 1 < len(values) <= MAX_EVENTS:
        return False
    known = len(values & EVENT_VALUES) * 2 >= len(values)
    return known or (named and bool(EVENT_WORDS & set(words_of(column.name))))


def _sides(user: str, item: str) -> tuple[tuple[Side, str], tuple[Side, str]]:
    """Each side with its column of the log."""
    return ("user", user), ("item", item)


def _joins(
    connection: duckdb.DuckDBPyConnection, log: SniffedTable, user: str, item: str, others: Sequence[SniffedTable]
) -> tuple[list[GuessedJoin], list[str]]:
    """The tables of users and items, and why others are none."""
    joins: list[GuessedJoin] = []
    unused: list[str] = []
    for table in others:
        best: tuple[float, GuessedJoin] | None = None
        for column in table.columns:
            if column.is_list or not is_unique(connection, table, column.name):
                continue
            for side, mine in _sides(user, item):
                of_log, of_table, both = matched_share(connection, log, mine, table, column.name)
                words = USER_WORDS if side == "user" else ITEM_WORDS
                named = 0.5 if table.has_header and _best([column], words) else 0.0
                score = both / max(1, of_log + of_table - both) + named
                reason = f"{both:,} of the log's {of_log:,} {side}s are among its {of_table:,} keys"
                if both and (best is None or score > best[0]):
                    best = (score, GuessedJoin(table, side, column.name, reason))
        if best is None:
            unused.append(f"{table.title}: no column has one row a value and values of the log's users or items")
            continue
        join = best[1]
        if not table.has_header:
            names = {c.name: f"{join.side}_{c.place + 1}" for c in table.columns} | {join.key: join.side}
            join = replace(join, table=_renamed(table, names), key=join.side)
        joins.append(join)
    return joins, unused


def _fixed(
    connection: duckdb.DuckDBPyConnection, log: SniffedTable, user: str, item: str, rest: Sequence[str]
) -> dict[str, Side]:
    """Columns of the log that say something of the user or the item, and not of the row."""
    found: dict[str, Side] = {}
    for side, key in _sides(user, item):
        if log.column(key).distinct * 2 > log.num_rows:
            continue  # too few rows of each to say so
        left = [name for name in rest if name not in found]
        found |= dict.fromkeys(fixed_by(connection, log, key, left), side)
    return found


def _labels(log: SniffedTable, columns: Sequence[SniffedColumn]) -> list[Label]:
    """Tasks: zeros and ones, else ratings, else kinds of events."""
    flags = [c for c in columns if c.is_flag and not NO_LABEL_WORDS & set(words_of(c.name))]
    if flags:
        # True and false are 1 and 0 in predicates.
        wheres = {c.name: f"{sql_name(c.name)} = 1" for c in flags}
        return [
            Label(small_name(c), c, is_flag=True, where=w, reason="two values, no and yes") for c, w in wheres.items()
        ]
    for column in columns:
        if _is_rating(column, named=log.has_header):
            low, high = column.low or 0.0, column.high or 0.0
            values = sorted(float(v) for v in column.few) or [low + RATING_SHARE * (high - low)]
            good = next((v for v in values if v >= low + RATING_SHARE * (high - low)), high)
            where = f"{sql_name(column.name)} >= {good:g}"
            reason = f"values from {low:g} to {high:g}: the upper quarter counts as liked"
            return [Label("liked", column.name, is_flag=False, where=where, reason=reason)]
    for column in columns:
        if _is_event(column, named=log.has_header):
            wheres = {value: f"{sql_name(column.name)} = {_sql_text(value)}" for value in column.few}
            return [
                Label(small_name(value), column.name, is_flag=False, where=where, reason="a kind of event")
                for value, where in wheres.items()
            ]
    return []


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """A column in a predicate."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name != "like" else '"' + name.replace('"', '""') + '"'


def small_name(text: str) -> str:
    """A name for a task or behaviour: small letters, digits and _."""
    name = re.sub(r"[^a-z0-9]+", "_", plain_name(text).lower()).strip("_")
    return name if re.match(r"[a-z]", name) else f"label_{name}".rstrip("_")


def safe_name(column: str) -> str:
    """A feature's name, as a recipe makes it by default."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", column)


def _id_type(log: SniffedTable, user: str, item: str, joins: Sequence[GuessedJoin]) -> Reason:
    columns = [log.column(user), log.column(item), *(join.table.column(join.key) for join in joins)]
    texts = [c for c in columns if not c.is_whole]
    if texts:
        return "string", f"{texts[0].name} holds texts"
    padded = [c for c in columns if c.padded]
    if padded:
        return "string", f"{padded[0].name} has zeros in front, which a number would lose"
    return "int64", "whole numbers"


def _features(
    connection: duckdb.DuckDBPyConnection,
    log: SniffedTable,
    joins: Sequence[GuessedJoin],
    own: dict[str, Side],
    ids: tuple[str, str],
    taken: set[str],
) -> tuple[list[GuessedFeature], list[str]]:
    """The ids themselves, columns of side tables, and those of the log that are known before the user answers."""
    features = [
        GuessedFeature(ids[0], "user", "index", (), "the id itself"),
        GuessedFeature(ids[1], "item", "index", (), "the id itself"),
    ]
    unused: list[str] = []
    seen: set[tuple[Side, str]] = {("user", ids[0]), ("item", ids[1])}
    for join in joins:
        for column in join.table.columns:
            if (join.of_log and own.get(column.name) != join.side) or column.name == join.key:
                continue
            if (join.side, column.name) in seen:
                continue
            seen.add((join.side, column.name))
            _add(features, unused, join.table, column, join.side, lambda c, t=join.table: _encoding(connection, t, c))
    for column in log.columns:
        if column.name in taken or column.name in own:
            continue
        if column.distinct > 1 and CONTEXT_WORDS & {*words_of(column.name), column.name.lower()}:
            of_row = column.is_number and not (column.is_whole and column.distinct <= MAX_INDEX)
            if of_row:
                unused.append(f"{log.title}, {column.name}: a number of the row; give it an encoding by hand")
            else:
                features.append(
                    GuessedFeature(column.name, "context", "index", (), "known before the user answers, by its name")
                )
        elif column.filled:
            unused.append(f"{log.title}, {column.name}: may be known only after the user has answered")
    return features, unused


def _add(
    features: list[GuessedFeature],
    unused: list[str],
    table: SniffedTable,
    column: SniffedColumn,
    side: Side,
    encoding: Callable[[SniffedColumn], tuple[str, tuple[tuple[str, str], ...], str]],
) -> None:
    why = (
        "is empty"
        if not column.filled
        else "has one value only"
        if column.distinct == 1 and column.filled == table.num_rows
        else "lists are read with encoding = multi, which only you can choose"
        if column.is_list
        else "is another text in nearly every row"
        if not column.is_number and column.distinct > 0.9 * table.num_rows and column.mean_length > 8
        else "is long text"
        if column.mean_length > LONG_TEXT
        else ""
    )
    if why:
        unused.append(f"{table.title}, {column.name}: {why}")
        return
    kind, options, reason = encoding(column)
    features.append(GuessedFeature(column.name, side, kind, options, reason))


def _encoding(
    connection: duckdb.DuckDBPyConnection, table: SniffedTable, column: SniffedColumn
) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """How a column of a side table becomes ids."""
    nulls = (("null_values", "|".join(column.nulls)),) if column.nulls and _means_missing(column) else ()
    match = RECBOLE.fullmatch(column.name)
    if match and match[2] == "token_seq":
        _, _, most = parts_of(connection, table, column.name, " ")
        return (
            "multi",
            (("separator", " "), ("max_values", str(min(64, max(2, most)))), *nulls),
            "a sequence, by its name",
        )
    if column.is_number:
        words = words_of(column.name)
        is_category = column.is_whole and (column.distinct <= MAX_INDEX or words[-1:] == ["id"] or column.padded > 0)
        if is_category:
            return "index", nulls, f"{column.distinct:,} whole numbers"
        return "quantile", nulls, f"numbers from {column.low:g} to {column.high:g}"
    for separator in SEPARATORS:
        rows, parts, most = parts_of(connection, table, column.name, separator)
        if rows >= 0.2 * column.filled and parts <= 0.5 * column.distinct + 1 and 2 <= most <= 64:
            options = (("separator", separator), ("max_values", str(most)))
            return "multi", (*options, *nulls), f"up to {most} of {parts:,} values a row"
    return "index", nulls, f"{column.distinct:,} texts"


def _means_missing(column: SniffedColumn) -> bool:
    r"""Whether texts such as NA say that a value is missing: in numbers they do, and \N always does."""
    return column.is_number or "\\N" in column.nulls
