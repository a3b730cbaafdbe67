"""A run's managed tables: from configuration to schema, and what they do not go with. No process group."""

from dataclasses import replace

from infnet_rec.config.model import ManagedTable
from infnet_rec.config.run import RunConfig
from infnet_rec.data.store import Store
from infnet_rec.faults import Fault, did_you_mean
from infnet_rec.schema import Managed, Schema, Table

OPTIMIZERS = ("rowwise_adagrad", "sgd")


def with_managed(schema: Schema, config: RunConfig, store: Store) -> Schema:
    """The schema with the sizes of the run's managed tables in place of the store's.

    Args:
        schema: of the run's profile.
        config: whose `model.tables` speaks.
        store: which knows how features are encoded.

    Raises:
        Fault: no such table, or one that cannot be managed.
    """
    asked = config.model.tables
    read = [table.name for table in (*schema.bag_tables, *schema.sequence_tables)]
    for name in asked:
        if name not in read:
            raise Fault(
                f"model.tables.{name}: the run reads no such table{did_you_mean(name, read)}; its tables are named "
                "after features of the profile"
            )
    return replace(schema, tables=tuple(_table(table, asked.get(table.name), schema, store) for table in schema.tables))


def check_managed(config: RunConfig, schema: Schema) -> None:
    """Refuses settings that managed tables do not go with.

    Raises:
        Fault: the first of them.
    """
    for table in schema.managed_tables:
        here = f"model.tables.{table.name}: is managed, and"
        if config.train.sparse.optimizer not in OPTIMIZERS:
            raise Fault(
                f"{here} train.sparse.optimizer = {config.train.sparse.optimizer!r}: its state of a row that goes to "
                f"another id would stay; use {' or '.join(OPTIMIZERS)}"
            )
        if config.train.sparse.each_epoch == "fresh":
            raise Fault(f'{here} train.sparse.each_epoch = "fresh": would leave ids their rows; use "keep"')
        if config.sharding.replica_groups > 1:
            raise Fault(f"{here} sharding.replica_groups = {config.sharding.replica_groups}: use 1")


def refuse_managed(schema: Schema, what: str) -> None:
    """For what measures plain collections only.

    Raises:
        Fault: the run has managed tables.
    """
    if schema.managed_tables:
        raise Fault(
            f"model.tables.{schema.managed_tables[0].name}: {what} does not measure managed tables; leave model.tables "
            "out, or drop the feature from the profile"
        )


def _table(table: Table, asked: ManagedTable | None, schema: Schema, store: Store) -> Table:
    if asked is None:
        return table
    here = f"model.tables.{table.name}"
    if table in schema.sequence_tables:
        reader = next(s.name for s in schema.sequences if s.table == table.name)
        raise Fault(
            f"{here}: sequence {reader} reads it, and tables of sequences cannot be managed here; take the attribute "
            "out of the recipe's [sequences], or give it a table of its own there (share_tables = false)"
        )
    encodings = {f.name: store.manifest["encodings"][f.name] for f in schema.features if f.table == table.name}
    for feature, encoding in encodings.items():
        if encoding != "hash":
            raise Fault(
                f"{here}: feature {feature} has encoding {encoding!r}, which has an id for the values of the training "
                'window only; only "hash" gives later values ids: set it in the recipe, with many buckets, and build '
                "the store again"
            )
    return Table(table.name, asked.rows, Managed(table.num_rows, asked.eviction, asked.interval_steps))
