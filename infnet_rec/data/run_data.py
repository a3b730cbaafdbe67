"""The opened store as a run sees it."""

from dataclasses import dataclass

from infnet_rec.config.run import RunConfig
from infnet_rec.data.inspect.check import ids_outside_tables
from infnet_rec.data.remote import fetched
from infnet_rec.data.run_schema import run_schema
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.schema import Schema


@dataclass(frozen=True, slots=True)
class RunData:
    """The opened store as a run sees it."""

    store: Store
    schema: Schema

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order of labels and logits."""
        return [task.name for task in self.schema.tasks]


def open_data(config: RunConfig) -> RunData:
    """Opens the store with the run's profile, grouping and tasks; a store behind a URL is fetched first.

    Raises:
        UserError: no such store, profile or task, or an id that no table has a row for.
    """
    store = Store(fetched(config.data.store))
    schema = run_schema(config, store)
    outside = ids_outside_tables(store, schema)
    if outside:
        raise UserError("\n".join([f"store {store.path}: ids outside their tables; build it again", *outside]))
    return RunData(store, schema)
