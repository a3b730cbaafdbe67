"""What of a store a run uses: from its configuration and the manifest; no other file is read. No torch here."""

from dataclasses import dataclass, replace

from infnet_rec.commands.managed_tables import with_managed
from infnet_rec.config.run import RunConfig
from infnet_rec.data.store import Store
from infnet_rec.faults import Fault, did_you_mean
from infnet_rec.schema import Schema


@dataclass(frozen=True, slots=True)
class Data:
    """The opened store as a run sees it."""

    store: Store
    schema: Schema

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order of labels and logits."""
        return [task.name for task in self.schema.tasks]


def run_schema(config: RunConfig, store: Store) -> Schema:
    """The features, sequences and tasks of a store that a run uses.

    Raises:
        Fault: no such profile or task, a weight of no task, or a table that cannot be managed.
    """
    schema = store.profile_schema(config.data.profile).with_grouping(config.data.sequence_groups)
    schema = with_tasks(schema, config.train.tasks)
    _check_weights(config, schema)
    return with_managed(schema, config, store)


def with_tasks(schema: Schema, chosen: tuple[str, ...] | None) -> Schema:
    """The same schema with these of its tasks, in its own order; all where None.

    Raises:
        Fault: the store has no such task, or one is named twice.
    """
    if chosen is None:
        return schema
    names = [task.name for task in schema.tasks]
    for task in chosen:
        if task not in names:
            raise Fault(f"train.tasks: {task!r}: the store's tasks are {', '.join(names)}{did_you_mean(task, names)}")
        if chosen.count(task) > 1:
            raise Fault(f"train.tasks: {task!r} stands there {chosen.count(task)} times; name each task once")
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
            raise Fault(
                f"train.loss.task_weights.{task}: the run's tasks are {', '.join(names)}; leave the weight out"
                f"{did_you_mean(task, names)}"
            )
