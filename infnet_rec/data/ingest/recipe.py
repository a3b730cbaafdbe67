"""What a dataset's raw files are and mean: a TOML recipe, not code, per dataset.

`configs/datasets/kuairand_pure.toml` is a complete example.
"""

import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, NaiveDatetime, model_validator

from infnet_rec.config.toml import StrictModel, read_toml, validate_model
from infnet_rec.data.ingest.splits import SplitsRecipe
from infnet_rec.data.parsing.instants import EARLIEST, LATEST, Clock, TimeUnit
from infnet_rec.data.parsing.text_format import MAX_DELIMITER_BYTES, TextEncoding, TextFormat
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.schema import Side

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Files = Annotated[tuple[str, ...], Field(min_length=1)]


def _fits_duckdb(delimiter: str) -> str:
    if len(delimiter.encode()) > MAX_DELIMITER_BYTES:
        raise ValueError(f"{delimiter!r}: a delimiter has at most {MAX_DELIMITER_BYTES} bytes")
    if set(delimiter) & set('"\r\n\0'):
        raise ValueError(f"{delimiter!r}: a delimiter holds no double quote and no end of a line")
    return delimiter


Delimiter = Annotated[str, Field(min_length=1), AfterValidator(_fits_duckdb)]
Quote = Literal['"', "'", ""]
DEFAULT_RANGES, MAX_RANGES = 64, 10_000
MAX_NAME = 100  # with what is put around it, in bytes of a file's name
# Of the log's time: `vocabulary.py` says what each makes of it.
ClockEncoding = Literal["hour_of_day", "day_of_week"]
Encoding = Literal["index", "hash", "multi", "quantile", ClockEncoding]


def _check_columns(columns: tuple[str, ...], *, has_header: bool) -> None:
    if not has_header and not columns:
        raise ValueError('header = false needs columns, the names in order, such as columns = ["user", "item", "time"]')
    if has_header and columns:
        raise ValueError("columns names what the first line names already; write header = false if it does not")
    if empty := [k for k, name in enumerate(columns, start=1) if not name]:
        raise ValueError(f"columns: name {empty[0]} is empty")


class LogRecipe(StrictModel):
    """The behaviour log: one row an impression.

    Attributes:
        files: text or Parquet files relative to the raw folder, also patterns (`log_*.csv.gz`) and folders, whose parts
            of the form `name=value` are columns; together they are the log. Those of a pattern or a folder are taken in
            the order of their names.
        delimiter: of text files, 1 to 4 bytes.
        header: whether the first line of a text file names its columns.
        columns: the names, where it does not.
        quote: of text files, around cells that hold a delimiter; "" where a quote is a character like others.
        encoding: of text files.
        null_values: texts that mean "missing" in any column, besides the empty field.
        user: column of the user's id.
        item: column of the item's id.
        time: column of the instant, or two columns: a date and a time of day. Leave it out if the log has none and each
            user's rows stand in the order in which they happened; the row's number is then its time.
        time_unit: how `time` is written: integers since 1970 UTC in s, ms, us or ns, "decimal_s" for seconds with a
            fraction, "text" for a date and a time of day. Times of a Parquet type are read by their type. A store
            counts in seconds for "s" and in milliseconds for all others.
        earliest: rows before it are bad rows; on the local clock.
        latest: rows from it on are bad rows; on the local clock.
        utc_offset_hours: local clock, for split dates, hours and days of the week, and for times without an offset.
        id_type: type of the user and item ids.
        weight: column of the example's weight in the training loss, a finite number from 0; metrics do not weigh. A
            weight counts in proportion to the mean over the training examples.
    """

    files: Files
    delimiter: Delimiter = ","
    header: bool = True
    columns: tuple[str, ...] = ()
    quote: Quote = '"'
    encoding: TextEncoding = "utf-8"
    null_values: tuple[str, ...] = ()
    user: str
    item: str
    time: str | tuple[str, str] | None = None
    time_unit: TimeUnit = "ms"
    earliest: NaiveDatetime = EARLIEST
    latest: NaiveDatetime = LATEST
    utc_offset_hours: int = Field(0, ge=-12, le=14)
    id_type: Literal["int64", "string"] = "int64"
    weight: str | None = None

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        _check_columns(self.columns, has_header=self.header)
        if isinstance(self.time, tuple):
            if self.time_unit not in ("ms", "text"):
                raise ValueError(f'time_unit = {self.time_unit!r}: a date and a time of day are of time_unit "text"')
            if self.time[0] == self.time[1]:
                raise ValueError(f"time: {self.time[0]!r} stands there twice; name a date and a time of day")
        if not self.earliest < self.latest:
            raise ValueError(f"earliest = {self.earliest} must be before latest = {self.latest}")
        return self

    @property
    def form(self) -> TextFormat:
        """How the text files are written."""
        return TextFormat(self.delimiter, self.quote, self.columns, self.encoding)

    @property
    def time_columns(self) -> tuple[str, ...]:
        """None, one, or two: a date and a time of day."""
        return (self.time,) if isinstance(self.time, str) else self.time or ()

    @property
    def clock(self) -> Clock:
        """How times are read."""
        return Clock(self.time_unit, self.utc_offset_hours, self.earliest, self.latest)


class SourceRecipe(StrictModel):
    """Files with one row per user or item; several files are parts of one table.

    Attributes:
        files: text or Parquet files relative to the raw folder, patterns or folders, as of the log.
        delimiter: as of the log; so are header, columns, quote, encoding and null_values.
        header: whether the first line of a text file names its columns.
        columns: the names, where it does not.
        quote: of text files.
        encoding: of text files.
        null_values: texts that mean "missing" in any column, besides the empty field.
        key: column of the user's or item's id.
        first_row_of_each: whether a key may stand in several rows, of which the first counts; such as the log itself,
            where it says something of the user or the item in every row.
    """

    files: Files
    delimiter: Delimiter = ","
    header: bool = True
    columns: tuple[str, ...] = ()
    quote: Quote = '"'
    encoding: TextEncoding = "utf-8"
    null_values: tuple[str, ...] = ()
    key: str
    first_row_of_each: bool = False

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        _check_columns(self.columns, has_header=self.header)
        return self

    @property
    def form(self) -> TextFormat:
        """How the text files are written."""
        return TextFormat(self.delimiter, self.quote, self.columns, self.encoding)


class SidesRecipe(StrictModel):
    """Side tables of users and of items, each joined on its key."""

    user: tuple[SourceRecipe, ...] = ()
    item: tuple[SourceRecipe, ...] = ()


class FeatureRecipe(StrictModel):
    """Categorical features made the same way from columns of one side.

    Attributes:
        side: where the columns stand: user or item side table, or the log (context).
        encoding: "index" gives every distinct training value an id; "hash" gives any value one of `buckets` ids,
            without a vocabulary; "multi" splits a text at `separator` (or takes a list) and gives each of its first
            `max_values` values an id as "index" does, whose embeddings are averaged; "quantile" cuts a number into
            `buckets` equally frequent ranges (exact zero is an id of its own); "hour_of_day" and "day_of_week" read
            the log's time.
        columns: the columns; a feature is named after its column, with "_" for every character that is no letter a-z,
            A-Z, no digit, no "_" and no "-": "user_id:token" makes "user_id_token".
        name: the feature's name, where it must differ from that of its only column.
        buckets: number of quantile ranges or of hashed ids; 64 ranges by default, hashes need a number.
        min_count: index and multi: values with fewer training rows are treated as never seen.
        separator: multi: what stands between the values of a text.
        max_values: multi: values kept, from the left.
        null_values: raw strings that mean "missing", besides the empty field.
    """

    side: Side
    encoding: Encoding
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    name: Name | None = None
    buckets: int | None = Field(None, ge=2, le=2**31 - 16)
    min_count: int = Field(1, ge=1)
    separator: str = Field(",", min_length=1)
    max_values: int = Field(5, ge=2, le=64)
    null_values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_and_sides(self) -> Self:
        if self.name is not None and len(self.columns) != 1:
            raise ValueError(f"name = {self.name!r} needs exactly one column, got {len(self.columns)}")
        if self.is_clock and self.side != "context":
            raise ValueError(f"encoding {self.encoding!r} reads the log's time, so side must be 'context'")
        columns_of: dict[str, list[str]] = {}
        for column in self.columns:
            columns_of.setdefault(safe_name(column), []).append(column)
        for name, columns in columns_of.items():
            if len(columns) > 1:
                raise ValueError(
                    f"columns {' and '.join(map(repr, columns))} would both be feature {name!r}; list one of them in a "
                    "[[features]] of its own, with a name"
                )
        if self.encoding == "hash" and self.buckets is None:
            raise ValueError("encoding 'hash' needs buckets, the number of ids; twice the number of values is usual")
        if self.encoding == "quantile" and (self.buckets or 0) > MAX_RANGES:
            raise ValueError(f"buckets = {self.buckets}: encoding 'quantile' has at most {MAX_RANGES:,}")
        return self

    @property
    def is_clock(self) -> bool:
        """Whether it is read from the log's time."""
        return self.encoding in get_args(ClockEncoding)

    @property
    def num_ranges(self) -> int:
        """Ranges of a quantile feature."""
        return self.buckets or DEFAULT_RANGES

    @property
    def named_columns(self) -> dict[str, str]:
        """Feature name -> column."""
        return {self.name or safe_name(column): column for column in self.columns}


class BehaviourRecipe(StrictModel):
    """A behaviour whose events make sequences; `where` is an SQL predicate on the log's columns (see `predicates`)."""

    name: Name
    where: str


class HistoryRecipe(StrictModel):
    """Events before the log begins, one row a user with a list of item ids, oldest first.

    `time` is the column with the instant of the user's last event; all events of the row are given that instant, so
    they are visible to examples after it, in the order of the list.
    """

    file: str
    user: str
    time: str
    behaviour: Name
    items: str


class SequencesRecipe(StrictModel):
    """What is read for each past event: item features, and features of the log's own row (context).

    The embeddings of an attribute of several values ("multi") are averaged, for each event by itself. With
    `share_tables` attributes use the table of the feature itself.
    """

    attributes: Annotated[tuple[str, ...], Field(min_length=1)]
    share_tables: bool = True


class TaskRecipe(StrictModel):
    """A binary label: a column of the log that holds 0 and 1, or true and false, or an SQL predicate on its columns."""

    name: Name
    label: str | None = None
    where: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.label is None) == (self.where is None):
            raise ValueError('a task has either label, a column of 0 and 1, or where, such as where = "rating >= 4"')
        return self

    @property
    def source(self) -> str:
        """What the label is made from, as the recipe has it."""
        return self.label or self.where or ""


class FurtherTestRecipe(StrictModel):
    """Rows that are only ever tested on, such as a log of items that were shown at random.

    They are no part of the log: their events are in no history, and vocabularies are fitted without them. Each sees
    the log's events strictly before it. So the log needs a time.

    Attributes:
        name: of the split, beginning with "test_".
        files: with the columns and the format of the log.
        within_test: whether only rows from the beginning of [splits] test to `end` count, which training has seen
            nothing of the time of; by = "time" only.
    """

    name: Annotated[str, Field(pattern=r"^test_[a-z0-9_]+$")]
    files: Files
    within_test: bool = False


class ProfileRecipe(StrictModel):
    """A choice of features and histories: all that are declared, without some.

    Attributes:
        drop: features to leave out.
        drop_behaviours: behaviours whose sequences to leave out.
    """

    drop: tuple[str, ...] = ()
    drop_behaviours: tuple[str, ...] = ()


class Recipe(StrictModel):
    """A whole recipe; see the attributes' own classes."""

    name: Name
    licence: str
    log: LogRecipe
    sides: SidesRecipe = SidesRecipe()
    features: Annotated[tuple[FeatureRecipe, ...], Field(min_length=1)]
    behaviours: tuple[BehaviourRecipe, ...] = ()
    history: tuple[HistoryRecipe, ...] = ()
    sequences: SequencesRecipe | None = None
    tasks: Annotated[tuple[TaskRecipe, ...], Field(min_length=1)]
    splits: SplitsRecipe
    further_tests: tuple[FurtherTestRecipe, ...] = ()
    profiles: dict[Name, ProfileRecipe] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        features = [name for f in self.features for name in f.named_columns]
        behaviours = [b.name for b in self.behaviours]
        faults = [
            f"feature {n!r} is declared {k} times; give one of them another name, in a [[features]] of its own"
            for n, k in Counter(features).items()
            if k > 1
        ]
        faults += [f"behaviour {n!r} is declared {k} times" for n, k in Counter(behaviours).items() if k > 1]
        faults += self._time_faults() + self._name_faults(features) + self._sequence_faults(features)
        readable = {name: f for f in self.features if _readable(f) for name in f.named_columns}
        if (self.sequences is None) == bool(self.behaviours):
            faults.append("behaviours and sequences go together: declare both or neither")
        for attribute in self.sequences.attributes if self.sequences else ():
            if attribute not in readable:
                faults.append(
                    f"sequence attribute {attribute!r} is neither an item feature nor one of the log's own"
                    f"{did_you_mean(attribute, readable)}"
                )
        for history in self.history:
            if history.behaviour not in behaviours:
                faults.append(
                    f"history: unknown behaviour {history.behaviour!r}{did_you_mean(history.behaviour, behaviours)}"
                )
        for name, profile in self.profiles.items():
            faults += [
                f"profile {name}: drops unknown feature {drop!r}{did_you_mean(drop, features)}"
                for drop in profile.drop
                if drop not in features
            ]
            faults += [
                f"profile {name}: drops unknown behaviour {drop!r}{did_you_mean(drop, behaviours)}"
                for drop in profile.drop_behaviours
                if drop not in behaviours
            ]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _name_faults(self, features: list[str]) -> list[str]:
        """Names become names of files, of columns in SQL, which has no case, and of parts of the model."""
        faults = [
            f"{what} {name[:40]!r}: its name has {len(name)} characters, and a file's name fits {MAX_NAME}; {remedy}"
            for what, names, remedy in (
                ("feature", features, 'give it a shorter one, name = "..."'),
                ("behaviour", [b.name for b in self.behaviours], "shorten it"),
                ("task", [t.name for t in self.tasks], "shorten it"),
            )
            for name in names
            if len(name) > MAX_NAME
        ]
        faults += ["a feature's column has an empty name; name the column" for name in features if not name]
        tasks, lower = [t.name for t in self.tasks], {name.lower(): name for name in features}
        twins = [(n, lower[n.lower()]) for n in features if lower[n.lower()] != n]
        faults += [f"features {a!r} and {b!r} differ by case only; give one of them another name" for a, b in twins]
        return faults + [f"task {n!r} is declared {k} times" for n, k in Counter(tasks).items() if k > 1]

    def _sequence_faults(self, features: list[str]) -> list[str]:
        """A sequence is named after its behaviour and its attribute, and must be told from all else that has a name."""
        if self.sequences is None:
            return []
        made: dict[str, str] = dict.fromkeys(features, "a feature")
        faults = []
        for behaviour in self.behaviours:
            for attribute in self.sequences.attributes:
                name, what = sequence_name(behaviour.name, attribute), f"{attribute!r} of behaviour {behaviour.name!r}"
                if name in made:
                    faults.append(
                        f"sequence attribute {what} would be {name!r}, as {made[name]} is; rename one of them"
                    )
                made[name] = what
        if not self.sequences.share_tables:
            faults += [
                f"feature {table!r} has the name of the table of sequence attribute {attribute!r}; rename one of them"
                for attribute in self.sequences.attributes
                if (table := sequence_table(attribute)) in features
            ]
        return faults

    def _time_faults(self) -> list[str]:
        faults = [
            f"feature {n!r}: encoding {f.encoding!r} reads the log's time, so its column must be "
            f"{' or '.join(map(repr, self.log.time_columns)) or 'log.time, which this recipe leaves out'}"
            for f in self.features
            if f.is_clock
            for n, column in f.named_columns.items()
            if column not in self.log.time_columns
        ]
        if self.log.time is None and self.splits.by == "time":
            faults.append("splits: by = 'time' needs log.time; without one use by = 'rows_of_each_user'")
        if self.log.time is None and self.history:
            faults.append("history: its events have instants, so the log needs log.time")
        names = [test.name for test in self.further_tests]
        faults += [f"further test {n!r} is declared {k} times" for n, k in Counter(names).items() if k > 1]
        if self.log.time is None and names:
            faults.append("further_tests: their rows see the events before them, so the log needs log.time")
        if self.splits.by != "time" and any(test.within_test for test in self.further_tests):
            faults.append("further_tests: within_test needs [splits] by = 'time'")
        return faults

    @property
    def raw_context(self) -> dict[str, FeatureRecipe]:
        """The features that are read from columns of the log's own, by name: those of its time aside."""
        own = [f for f in self.features if f.side == "context" and not f.is_clock]
        return {name: feature for feature in own for name in feature.named_columns}

    @property
    def ticks_per_second(self) -> int:
        """Of the store's times."""
        return self.log.clock.ticks_per_second

    def instant(self, local: datetime) -> int:
        """A local date of `splits` in the store's ticks."""
        return self.log.clock.ticks(local)

    def profile_choices(self) -> dict[str, dict[str, list[str]]]:
        """Profile -> its `features` and `behaviours` in declaration order; "all" is always there.

        "all" is everything, unless the recipe declares it otherwise.
        """
        names = [name for f in self.features for name in f.named_columns]
        profiles = {"all": ProfileRecipe(), **self.profiles}
        behaviours = [b.name for b in self.behaviours]
        return {
            name: {
                "features": [n for n in names if n not in profile.drop],
                "behaviours": [b for b in behaviours if b not in profile.drop_behaviours],
            }
            for name, profile in profiles.items()
        }


def safe_name(column: str) -> str:
    """What a feature is called after its column: letters, digits, "_" and "-" of ASCII, and "_" for all else."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", column)


def sequence_name(behaviour: str, attribute: str) -> str:
    """The name of the sequence of one attribute of a behaviour's events."""
    return f"seq_{behaviour}_{attribute}"


def sequence_table(attribute: str) -> str:
    """The table of a sequence attribute that shares none with its feature."""
    return f"seq_{attribute}"


def _readable(feature: FeatureRecipe) -> bool:
    """Whether an event has the feature: of its item, or of its own row of the log."""
    return feature.side == "item" or (feature.side == "context" and not feature.is_clock)


def load_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        UserError: every fault of the file in one message.
    """
    if path.is_dir():
        raise UserError(
            f"recipe {path}: is a folder; name the recipe's TOML file, such as configs/datasets/kuairand_pure.toml"
        )
    return validate_model(Recipe, read_toml(path), str(path))
