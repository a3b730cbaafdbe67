"""What of a store a run uses: from its configuration and the manifest; no other file is read. No torch here."""

from dataclasses import replace

from infnet_rec.config.model import ManagedTable
from infnet_rec.config.run import RunConfig
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.schema import Managed, Schema, Table

OPTIMIZERS = ("rowwise_adagrad", "sgd")


def with_managed(schema: Schema, config: RunConfig, store: Store) -> Schema:
    """The schema with the sizes of the run's managed tables in place of the store's.

    Args:
        schema: of the run's profile.
        config: whose `model.tables` speaks.
        store: which knows how features are encoded.

    Raises:
        UserError: no such table, or one that cannot be managed.
    """
    asked = config.model.tables
    read = [table.name for table in (*schema.bag_tables, *schema.sequence_tables)]
    for name in asked:
        if name not in read:
            raise UserError(
                f"model.tables.{name}: the run reads no such table{did_you_mean(name, read)}; its tables are named "
                "after features of the profile"
            )
    return replace(schema, tables=tuple(_table(table, asked.get(table.name), schema, store) for table in schema.tables))


def check_managed(config: RunConfig, schema: Schema) -> None:
    """Refuses settings that managed tables do not go with.

    Raises:
        UserError: the first of them.
    """
    for table in schema.managed_tables:
        here = f"model.tables.{table.name}: is managed, and"
        if config.train.sparse.optimizer not in OPTIMIZERS:
            raise UserError(
                f"{here} train.sparse.optimizer = {config.train.sparse.optimizer!r}: its state of a row that goes to "
                f"another id would stay; use {' or '.join(OPTIMIZERS)}"
            )
        if config.train.sparse.each_epoch == "fresh":
            raise UserError(f'{here} train.sparse.each_epoch = "fresh": would leave ids their rows; use "keep"')
        if config.sharding.replica_groups > 1:
            raise UserError(f"{here} sharding.replica_groups = {config.sharding.replica_groups}: use 1")


def refuse_managed(schema: Schema, what: str) -> None:
    """For what measures plain collections only.

    Raises:
        UserError: the run has managed tables.
    """
    if schema.managed_tables:
        raise UserError(
            f"model.tables.{schema.managed_tables[0].name}: {what} does not measure managed tables; leave model.tables "
            "out, or drop the feature from the profile"
        )


def _table(table: Table, asked: ManagedTable | None, schema: Schema, store: Store) -> Table:
    if asked is None:
        return table
    here = f"model.tables.{table.name}"
    if table in schema.sequence_tables:
        reader = next(s.name for s in schema.sequences if s.table == table.name)
        raise UserError(
            f"{here}: sequence {reader} reads it, and tables of sequences cannot be managed here; take the attribute "
            "out of the recipe's [sequences], or give it a table of its own there (share_tables = false)"
        )
    encodings = {f.name: store.manifest["encodings"][f.name] for f in schema.features if f.table == table.name}
    for feature, encoding in encodings.items():
        if encoding != "hash":
            raise UserError(
                f"{here}: feature {feature} has encoding {encoding!r}, which has an id for the values of the training "
                'window only; only "hash" gives later values ids: set it in the recipe, with many buckets, and build '
                "the store again"
            )
    return Table(table.name, asked.rows, Managed(table.num_rows, asked.eviction, asked.interval_steps))


def run_schema(config: RunConfig, store: Store) -> Schema:
    """The features, sequences and tasks of a store that a run uses.

    Raises:
        UserError: no such profile or task, a weight of no task, or a table that cannot be managed.
    """
    schema = store.profile_schema(config.data.profile).with_grouping(config.data.sequence_groups)
    schema = with_tasks(schema, config.train.tasks)
    _check_weights(config, schema)
    return with_managed(schema, config, store)


def with_tasks(schema: Schema, chosen: tuple[str, ...] | None) -> Schema:
    """The same schema with these of its tasks, in its own order; all where None.

    Raises:
        UserError: the store has no such task, or one is named twice.
    """
    if chosen is None:
        return schema
    names = [task.name for task in schema.tasks]
    for task in chosen:
        if task not in names:
            raise UserError(
                f"train.tasks: {task!r}: the store's tasks are {', '.join(names)}{did_you_mean(task, names)}"
            )
        if chosen.count(task) > 1:
            raise UserError(f"train.tasks: {task!r} stands there {chosen.count(task)} times; name each task once")
    return replace(schema, tasks=tuple(task for task in schema.tasks if task.name in chosen))


def unjudgeable(store: Store, schema: Schema) -> str | None:
    """What valid cannot say of the run's weights, in a line; None where it can judge every task.

    The labels of a split are known before anything is trained: a task without positives, or with nothing else, has no
    AUC whatever the model predicts.
    """
    one_class = one_class_tasks(store, schema, "valid")
    if not one_class:
        return None
    which = ", ".join(f"{name} ({what})" for name, what in one_class.items())
    others = [task.name for task in schema.tasks if task.name not in one_class]
    if others:
        return f"valid has one class only in {which}: early stopping and the best weights go by {', '.join(others)}"
    return (
        f"valid has one class only in every task, {which}, so the weights of this run cannot be judged: it trains "
        "all its steps, patience or not, and its last weights are its result; a store with other [splits] would "
        "mend it"
    )


def one_class_tasks(store: Store, schema: Schema, split: str) -> dict[str, str]:
    """The run's tasks that have one class only in a split, and which one."""
    rates = store.manifest["splits"][split]["label_rates"]
    words = {0.0: "no positives", 1.0: "only positives"}
    return {task.name: words[rate] for task in schema.tasks if (rate := rates.get(task.name)) in words}


def _check_weights(config: RunConfig, schema: Schema) -> None:
    names = [task.name for task in schema.tasks]
    for task in config.train.loss.task_weights:
        if task not in names:
            raise UserError(
                f"train.loss.task_weights.{task}: the run's tasks are {', '.join(names)}; leave the weight out"
                f"{did_you_mean(task, names)}"
            )
