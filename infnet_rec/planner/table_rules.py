"""A run's rules for its tables, to what the planner may do with each: pure, before any process group.

Rules are laid one on the other, key by key, and what comes out is checked against the device that is planned for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from infnet_rec.config.run import RunConfig
from infnet_rec.config.sharding import ShardingConfig, TableRule
from infnet_rec.distributed.optimizers import SPARSE
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.planner.hardware import Device
from infnet_rec.planner.request import Precision, Sharding, TableControl
from infnet_rec.schema import Schema

COLUMN_WISE = ("column_wise", "table_column_wise", "grid_shard")
# What only means something with the other key: a later rule that replaces that one drops it.
DETAILS = {"sharding": "min_columns", "kernel": "cache_load_factor"}
KEYS = ("sharding", "kernel", "cache_load_factor", "precision", "min_columns")


@dataclass(frozen=True, slots=True)
class _Named:
    """A table of the run; `in_bags` where it is no sequence's."""

    name: str
    num_rows: int
    in_bags: bool
    managed: bool = False


def precisions_of(config: RunConfig, schema: Schema) -> dict[str, Precision]:
    """Precision of the stored weights of the tables that a rule gives one; the others are fp32."""
    merged = _merged(config.sharding, [table.name for table in _tables(schema)])
    return {name: rule.precision for name, rule in merged.items() if rule.precision is not None}


def controls_of(config: RunConfig, schema: Schema, device: Device) -> dict[str, TableControl]:
    """What the planner may do with each table, by name; a table that nothing is said of is left out.

    Args:
        config: whose `sharding` section speaks.
        schema: of the run, with its profile's features.
        device: what is planned for.

    Raises:
        UserError: a rule fits no table, rules contradict one another, or ask for what the device or the table cannot
            do.
    """
    sharding = config.sharding
    _check_device(sharding, device)
    tables = _tables(schema)
    merged = _merged(sharding, [table.name for table in tables])
    controls = {}
    for table in tables:
        rule = merged[table.name]
        way = _way(table, rule, sharding, device)
        _check_way(table, way, config)
        _check_keys(table, rule, way, device)
        kernel = None if rule.kernel in (None, "auto") else rule.kernel
        control = TableControl(
            sharding_types=None if way is None else (way,),
            kernels=None if kernel is None else (kernel,),
            cache_load_factor=rule.cache_load_factor,
            precision=rule.precision,
            min_columns=rule.min_columns,
        )
        if control != TableControl():
            controls[table.name] = control
    return controls


def _tables(schema: Schema) -> list[_Named]:
    return [
        *(
            _Named(table.name, table.num_rows, in_bags=True, managed=table.managed is not None)
            for table in schema.bag_tables
        ),
        *(_Named(table.name, table.num_rows, in_bags=False) for table in schema.sequence_tables),
    ]


def _merged(sharding: ShardingConfig, names: Iterable[str]) -> dict[str, TableRule]:
    """One rule a table, made of all that fit it."""
    names = list(names)
    said: dict[str, dict[str, object]] = {name: {} for name in names}
    for position, rule in enumerate(sharding.tables):
        fitting = [name for name in names if fnmatchcase(name, rule.match)]
        if not fitting:
            raise UserError(
                f"sharding.tables.{position}.match = {rule.match!r}: fits none of the run's {len(names)} tables"
                f"{did_you_mean(rule.match, names)}; name one, or use a pattern such as {names[0][:3]}*"
            )
        for name in fitting:
            for key, detail in DETAILS.items():
                if getattr(rule, key) is not None:
                    said[name].pop(detail, None)
            said[name] |= {key: value for key in KEYS if (value := getattr(rule, key)) is not None}
    return {name: TableRule.model_construct(match=name, **keys) for name, keys in said.items()}  # pyright: ignore[reportArgumentType]


def _way(table: _Named, rule: TableRule, sharding: ShardingConfig, device: Device) -> Sharding | None:
    """The one sharding that a table may have; None leaves it to the search."""
    if rule.sharding is not None:
        return None if rule.sharding == "auto" else rule.sharding
    if table.managed:
        return "row_wise"  # all that TorchRec can do
    # What a rule asks for and a copied table has not is the more particular wish.
    free = rule.kernel in (None, "auto") and rule.precision != "fp16"
    if table.num_rows <= sharding.data_parallel_max_rows and free and (table.in_bags or device == "cuda"):
        return "data_parallel"
    if isinstance(sharding.row_wise_min_rows, int):
        return "row_wise" if table.num_rows >= sharding.row_wise_min_rows else "table_wise"
    return None


def _check_device(sharding: ShardingConfig, device: Device) -> None:
    if device == "cuda":
        return
    if sharding.communication == "bf16":
        raise UserError(
            "sharding.communication = 'bf16': is for GPUs; on CPU TorchRec would quietly take fp16 for it: say 'fp16'"
        )
    if sharding.replica_groups > 1:
        raise UserError(
            f"sharding.replica_groups = {sharding.replica_groups}: TorchRec's DMPCollection runs on GPUs only; leave "
            "it at 1 on CPU"
        )


def _check_way(table: _Named, way: Sharding | None, config: RunConfig) -> None:
    """Refuses a sharding that this table cannot have."""
    here = f"sharding.tables: {table.name}: sharding = {way!r}"
    if way == "data_parallel" and SPARSE[config.train.sparse.optimizer].copied is None:
        raise UserError(
            f"{here} with train.sparse.optimizer = {config.train.sparse.optimizer!r}: a copied table would be moved in "
            "steps that do not read its rows, unlike other tables; use another optimizer or another sharding"
        )


def _check_keys(table: _Named, rule: TableRule, way: Sharding | None, device: Device) -> None:
    """Refuses keys that do not go together."""
    here = f"sharding.tables: {table.name}"
    if table.managed and rule.precision == "fp16":
        raise UserError(f"{here}: precision = 'fp16': the table is managed, and such tables are fp32; drop it")
    in_host = rule.kernel in ("fused_uvm", "fused_uvm_caching")
    if in_host and device == "cpu":
        raise UserError(
            f"{here}: kernel = {rule.kernel!r} is for GPUs; on CPU all tables stand in the host's memory anyway"
        )
    if way == "data_parallel" and rule.kernel not in (None, "auto"):
        raise UserError(f"{here}: sharding = 'data_parallel' has no kernel to choose; drop kernel = {rule.kernel!r}")
    if way == "data_parallel" and rule.precision == "fp16":
        raise UserError(
            f"{here}: sharding = 'data_parallel' keeps fp32 weights; drop precision = 'fp16' or shard the table"
        )
    if rule.cache_load_factor is not None and rule.kernel != "fused_uvm_caching":
        raise UserError(
            f"{here}: cache_load_factor = {rule.cache_load_factor} needs kernel = 'fused_uvm_caching', and it is "
            f"{rule.kernel or 'auto'!r}"
        )
    if rule.min_columns is not None and way not in COLUMN_WISE:
        raise UserError(
            f"{here}: min_columns = {rule.min_columns} needs a sharding that cuts columns "
            f"({', '.join(COLUMN_WISE)}), and it is {way or 'auto'!r}"
        )
