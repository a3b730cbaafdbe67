"""An experiment against its store, before its first cell: a typo is said once, not in the log of every cell.

It reads the store's manifest only. What hangs on the device or the model is left to the cells.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from infnet_rec.config.experiment import Experiment, Variant, override_of
from infnet_rec.config.load import make_config
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import read_toml
from infnet_rec.config.train import hasty_patience
from infnet_rec.data.remote import fetched
from infnet_rec.data.run_schema import check_managed, one_class_tasks, run_schema, unjudgeable
from infnet_rec.data.sampler import check_divides, check_fits
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.planner.table_rules import precisions_of
from infnet_rec.schema import Schema

# A choice of any other key changes nothing that a store knows of.
ASKED_OF_STORE = ("data", "train", "model.tables", "sharding")


def check_against_store(experiment: Experiment, path: Path, num_ranks: int) -> list[str]:
    """Checks every variant, and every choice of its search, against the store that all read.

    Args:
        experiment: whose runs these are.
        path: its file, for messages.
        num_ranks: of a cell.

    Returns:
        What is doubtful, a line each.

    Raises:
        UserError: no such store, or no cell of a variant could start.
    """
    store = Store(fetched(experiment.variants[0].config.data.store))
    doubts: dict[str, str] = {}
    for variant in experiment.variants:
        for config in _configs(experiment, variant):
            try:
                schema = _check(config, store, num_ranks)
                _check_search(experiment, variant, store, schema)
            except UserError as fault:
                raise UserError(f"{path}: variant {variant.name!r}: {fault}") from fault
            hasty = hasty_patience(config.train, store.num_examples("train"))
            for doubt in (hasty, unjudgeable(store, schema), _unreportable(store, schema)):
                if doubt is not None:
                    doubts.setdefault(doubt, f"warning: {variant.name}: {doubt}")
    return list(doubts.values())


def _configs(experiment: Experiment, variant: Variant) -> Iterator[RunConfig]:
    """The variant as it stands, as its trials are, and with every choice that a store may refuse."""
    yield variant.config
    base, search = read_toml(experiment.config.base), experiment.config.search
    if search is None:
        return

    def trial(*more: str) -> RunConfig:
        # Overrides change what they are laid on.
        return make_config(json.loads(json.dumps(base)), [*variant.overrides, *search.set, *more], variant.name)

    yield trial()
    for key, choices in variant.space.items():
        if key.startswith(ASKED_OF_STORE):
            yield from (trial(override_of(key, choice)) for choice in choices)


def _check_search(experiment: Experiment, variant: Variant, store: Store, schema: Schema) -> None:
    if experiment.config.search is None or not variant.space:
        return
    if len(one_class_tasks(store, schema, "valid")) == len(schema.tasks):
        raise UserError(
            "search: valid has one class only in every task, so no trial could be judged; leave the search out, or "
            "build a store with other [splits]"
        )


def _unreportable(store: Store, schema: Schema) -> str | None:
    if not (one_class := one_class_tasks(store, schema, "test")):
        return None
    which = ", ".join(f"{name} ({what})" for name, what in one_class.items())
    return f"test has one class only in {which}: the report will refuse that; leave it out of train.tasks"


def _check(config: RunConfig, store: Store, num_ranks: int) -> Schema:
    check_divides("train.global_batch_size", config.train.global_batch_size, num_ranks)
    check_fits(config.train.global_batch_size, store.num_examples("train"))
    schema = run_schema(config, store)
    check_managed(config, schema)
    precisions_of(config, schema)
    return schema
