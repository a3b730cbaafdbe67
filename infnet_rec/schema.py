"""What one example is made of: features, sequences, the tables their ids index, and the tasks.

Ids are the same everywhere: 0 is padding or a value never seen in training, 1 is null, values start at 2.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from infnet_rec.config.data import Grouping
from infnet_rec.config.model import Eviction
from infnet_rec.config.toml import read_fields
from infnet_rec.errors import UserError, did_you_mean

UNSEEN_ID = 0
NULL_ID = 1
FIRST_VALUE_ID = 2
EMPTY_SLOT = -1  # in a store, after the last id of a multi-valued feature

# What `torch.nn.ModuleDict` is, has or does: no part of one can have such a name.
NAMES_OF_MODULES = frozenset(
    """
    ___needs_generation_tag_patch T_destination _apply _backward_hooks _backward_pre_hooks _buffers _call_impl
    _compiled_call_impl _forward_hooks _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks
    _forward_pre_hooks_with_kwargs _get_backward_hooks _get_backward_pre_hooks _get_name _is_full_backward_hook
    _load_from_state_dict _load_state_dict_post_hooks _load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook
    _modules _named_members _non_persistent_buffers_set _parameters _register_load_state_dict_pre_hook
    _register_state_dict_hook _replicate_for_data_parallel _save_to_state_dict _slow_forward _state_dict_hooks
    _state_dict_pre_hooks _version _wrapped_call_impl add_module apply bfloat16 buffers call_super_init children
    clear compile cpu cuda double dump_patches eval extra_repr float forward get_buffer get_extra_state
    get_parameter get_submodule half ipu items keys load_state_dict modules mtia named_buffers named_children
    named_modules named_parameters parameters pop register_backward_hook register_buffer register_forward_hook
    register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule
    share_memory state_dict to to_empty train training type update values xpu zero_grad
    """.split()  # noqa: SIM905 - a hundred lines otherwise
)
Side = Literal["user", "item", "context"]


@dataclass(frozen=True, slots=True)
class Managed:
    """How a managed table gives its rows to ids as they come; a matter of the run, not of the store.

    Attributes:
        num_ids: ids run from 0 to num_ids - 1, and there may be many more of them than rows.
        eviction: which ids keep their rows.
        interval_steps: training steps between two rounds of giving rows away.
    """

    num_ids: int
    eviction: Eviction
    interval_steps: int


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table of `num_rows` rows; ids run from 0 to num_rows - 1 unless it is managed."""

    name: str
    num_rows: int
    managed: Managed | None = None

    @property
    def num_ids(self) -> int:
        """Ids run from 0 to one less."""
        return self.managed.num_ids if self.managed else self.num_rows


@dataclass(frozen=True, slots=True)
class Feature:
    """A categorical feature, read from the user, the item or the example itself (context).

    `max_values` is the number of ids an example may have: 1, or more for a multi-valued feature such as tags, whose
    embeddings are averaged. In the store such a feature is as many columns of the same name; ids stand at the left,
    `EMPTY_SLOT` fills up, and a null has the one id 1: there is always one.
    """

    name: str
    table: str
    side: Side
    max_values: int = 1


@dataclass(frozen=True, slots=True)
class Sequence:
    """One attribute of a user's past events of one behaviour, such as the authors of the videos they liked.

    `attribute` names the feature that is read for each event, of its item or of its own row of the log; `group` names
    the proxy token that pools it. `max_values` is that of the feature: the embeddings of an event's ids are averaged.
    """

    name: str
    behaviour: str
    attribute: str
    table: str
    group: str
    max_values: int = 1


@dataclass(frozen=True, slots=True)
class Task:
    """A binary label to predict; `label` is the column of the raw log that holds it."""

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Schema:
    """Everything that batches, embeddings and models need to agree on.

    A table that any sequence reads lives in the EmbeddingCollection; a feature that shares such a table is looked up
    there like a sequence of length one. All other tables live in the EmbeddingBagCollection, managed ones in
    another one.
    """

    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    sequences: tuple[Sequence, ...]
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        for kind, names in (
            ("table", [t.name for t in self.tables]),
            ("feature or sequence", [f.name for f in self.features] + [s.name for s in self.sequences]),
            ("task", [t.name for t in self.tasks]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"schema: {kind} {', '.join(twice)} is declared more than once; names must be unique")
        known = {t.name for t in self.tables}
        for part in (*self.features, *self.sequences):
            if part.table not in known:
                raise UserError(f"schema: {part.name} reads table {part.table!r}, which is not declared")
        self._check_multi_valued()

    def _check_multi_valued(self) -> None:
        sizes = {f.name: f.max_values for f in self.features}
        for part in (*self.features, *self.sequences):
            if part.max_values < 1:
                raise UserError(f"schema: {part.name} has max_values {part.max_values}; it must be 1 or more")
        for s in self.sequences:
            if s.max_values != sizes.get(s.attribute, s.max_values):
                raise UserError(
                    f"schema: {s.name} has up to {s.max_values} values an event and reads {s.attribute}, which has up "
                    f"to {sizes[s.attribute]}; they must be equal"
                )

    @property
    def averages_tokens(self) -> bool:
        """Whether any unpooled token is the mean of several rows of its table; see `Batch.mean_row_Q`."""
        return any(part.max_values > 1 for part in (*self.shared_features, *self.sequences))

    @property
    def sequence_tables(self) -> tuple[Table, ...]:
        """Tables of the EmbeddingCollection, in declaration order."""
        used = {s.table for s in self.sequences}
        return tuple(t for t in self.tables if t.name in used)

    @property
    def bag_tables(self) -> tuple[Table, ...]:
        """Tables of the EmbeddingBagCollection, in declaration order; tables that nothing reads are left out."""
        used = {f.table for f in self.features} - {s.table for s in self.sequences}
        return tuple(t for t in self.tables if t.name in used)

    @property
    def shared_features(self) -> tuple[Feature, ...]:
        """Features whose table a sequence reads too; they come before the sequences in `Batch.spread_K`."""
        used = {s.table for s in self.sequences}
        return tuple(f for f in self.features if f.table in used)

    @property
    def bag_features(self) -> tuple[Feature, ...]:
        """Features of tables that no sequence reads."""
        used = {s.table for s in self.sequences}
        return tuple(f for f in self.features if f.table not in used)

    @property
    def plain_bag_features(self) -> tuple[Feature, ...]:
        """Those of them whose tables are not managed; keys of `Batch.categorical`."""
        managed = {t.name for t in self.managed_tables}
        return tuple(f for f in self.bag_features if f.table not in managed)

    @property
    def managed_features(self) -> tuple[Feature, ...]:
        """Those whose tables are; keys of `Batch.managed`."""
        managed = {t.name for t in self.managed_tables}
        return tuple(f for f in self.bag_features if f.table in managed)

    @property
    def managed_tables(self) -> tuple[Table, ...]:
        """Bag tables that give their rows to ids as they come."""
        return tuple(t for t in self.bag_tables if t.managed)

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Behaviours in the order of their first sequence."""
        return tuple(dict.fromkeys(s.behaviour for s in self.sequences))

    @property
    def groups(self) -> tuple[str, ...]:
        """Sequence groups, one proxy token each, in the order of their first sequence."""
        return tuple(dict.fromkeys(s.group for s in self.sequences))

    @property
    def group_of_sequence(self) -> tuple[int, ...]:
        """For each sequence, the index of its group in `groups`."""
        groups = self.groups
        return tuple(groups.index(s.group) for s in self.sequences)

    def with_features(self, names: Iterable[str]) -> Self:
        """The same schema with these features only, in this order (a feature profile)."""
        known = {f.name: f for f in self.features}
        names = tuple(names)
        for name in names:
            if name not in known:
                raise UserError(f"feature {name!r} is not in the store{did_you_mean(name, known)}")
        return replace(self, features=tuple(known[name] for name in names))

    def with_behaviours(self, names: Iterable[str]) -> Self:
        """The same schema with the sequences of these behaviours only."""
        kept = set(names)
        return replace(self, sequences=tuple(s for s in self.sequences if s.behaviour in kept))

    def with_grouping(self, grouping: Grouping) -> Self:
        """The same schema with one sequence group per behaviour, per sequence, or one for all."""
        name_of = {
            "behaviour": lambda s: s.behaviour,
            "sequence": lambda s: s.name,
            "all": lambda s: "all",
        }[grouping]
        return replace(self, sequences=tuple(replace(s, group=name_of(s)) for s in self.sequences))

    def with_free_table_names(self) -> Self:
        """The same schema, where no table has a name that a part of the model cannot have; such get "_table" behind.

        A table is a part of TorchRec's modules under its name, and those have attributes of their own: a table `type`
        or `keys` would be none. Features keep their names.
        """
        taken, renamed = {t.name for t in self.tables}, {}
        for table in self.tables:
            if table.name in NAMES_OF_MODULES or re.fullmatch("__.*__", table.name):
                name = f"{table.name}_table"
                while name in taken:
                    name += "_table"
                taken.add(name)
                renamed[table.name] = name
        if not renamed:
            return self

        def free(table: str) -> str:
            return renamed.get(table, table)

        return replace(
            self,
            tables=tuple(replace(t, name=free(t.name)) for t in self.tables),
            features=tuple(replace(f, table=free(f.table)) for f in self.features),
            sequences=tuple(replace(s, table=free(s.table)) for s in self.sequences),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back; of a store's schema, whose tables are all plain."""
        data = asdict(self)
        data["tables"] = [{"name": t.name, "num_rows": t.num_rows} for t in self.tables]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Reads what `to_json` wrote, in this version or an earlier one."""
        return cls(
            tables=tuple(read_fields(Table, t, "schema") for t in data["tables"]),
            features=tuple(read_fields(Feature, f, "schema") for f in data["features"]),
            sequences=tuple(read_fields(Sequence, s, "schema") for s in data["sequences"]),
            tasks=tuple(read_fields(Task, t, "schema") for t in data["tasks"]),
        ).with_free_table_names()
