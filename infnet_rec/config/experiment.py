"""An experiment: one base run, variants of it, seeds, and how settings are searched. No torch here.

`configs/experiments/` has complete examples. Every key of the base run, and of the experiment, can be set on the
command line: `--set data.store=... --set seeds=[0]`.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.config.load import lay, make_config
from infnet_rec.config.plugins import plugin_of
from infnet_rec.config.ranges import Count
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import StrictModel, read_toml, validate_model
from infnet_rec.errors import UserError

Choice = bool | int | float | str
Metric = Literal["auc", "gauc", "gauc_unweighted"]
Space = dict[str, tuple[Choice, ...]]
# What the cells of one experiment share, and what is the experiment's own to set.
SHARED = ("data.store", "train.seed", "train.test")
# They change where and how fast a cell is made, not what it is.
NOT_IN_KEY = ("data.store", "train.seed", "train.test", "train.num_threads", "train.log_every_steps")


class SearchConfig(StrictModel):
    """How settings are chosen for each variant, on the validation split.

    Attributes:
        sampler: of Optuna. A "grid" larger than `num_trials` is drawn from without repetition.
        num_trials: the budget, the same for every variant; a grid may be smaller.
        metric: mean over the run's tasks, on valid, that is to be high.
        seed: of the sampler and of all trials.
        set: overrides of all trials, after the variant's own: a cheaper run to choose by, such as half an epoch.
        prune: end trials that are below the median of the others at the same step; wants several evaluations a run.
        space: what each key may be; a variant's own `space` is laid on top.
    """

    sampler: Literal["grid", "tpe", "random"] = "grid"
    num_trials: Count
    metric: Metric = "auc"
    seed: Annotated[int, Field(ge=0)] = 0
    set: tuple[str, ...] = ()
    prune: bool = False
    space: Annotated[Space, Field(min_length=1)]


class VariantConfig(StrictModel):
    """One line of a table.

    Attributes:
        name: unique.
        set: overrides, laid on the base run.
        label: the table's row; `name` by default. The paper's name for what the paper has too.
        setting: said beside the label, such as "shared".
        separate: one model for each of these tasks, in place of one for all.
        ours: what is compared with the best of the others.
        space: laid on the search's own; a key with [] is not searched.
        series: the line of a figure that this is a point of.
        at: where on that line.
    """

    name: Annotated[str, Field(min_length=1)]
    set: tuple[str, ...] = ()
    label: str = ""
    setting: str = ""
    separate: tuple[str, ...] = ()
    ours: bool = False
    space: Space = Field(default_factory=dict)
    series: str = ""
    at: str = ""


class ExperimentConfig(StrictModel):
    """A complete experiment.

    Attributes:
        base: a run's TOML file.
        set: overrides of every variant, before its own.
        seeds: of every variant.
        variants: what is compared.
        search: how settings are chosen; as the variants have them without it.
        paper: the paper's dataset whose numbers stand beside ours.
        reference: the label that all others are tested against; without it `ours` are, against the best of the others.
    """

    base: Path
    set: tuple[str, ...] = ()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=2**31)], ...], Field(min_length=1)] = (0, 1, 2)
    variants: Annotated[tuple[VariantConfig, ...], Field(min_length=1)]
    search: SearchConfig | None = None
    paper: Literal["KuaiRand-Pure", "KuaiRand-27K", "QB-video", ""] = ""
    reference: str = ""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if repeated := _repeated(self.seeds):
            raise ValueError(f"seeds: {repeated[0]} stands there twice")
        if repeated := _repeated([slug(v.name) for v in self.variants]):
            raise ValueError(f"variants: two are called {repeated[0]!r} (their folders would be); rename one")
        labels = [v.label or v.name for v in self.variants]
        if self.reference and self.reference not in labels:
            raise ValueError(f"reference = {self.reference!r}: is none of the variants' labels, {', '.join(labels)}")
        return self


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant as it is run: `separate` is spread out into one for each task.

    Attributes:
        facts: what the report wants to know: label, setting, series, at, ours.
        overrides: of the base run, the command line's last.
        space: what a search may choose from.
        config: the whole run, with a seed of 0, before any search.
    """

    name: str
    facts: dict[str, Any]
    overrides: tuple[str, ...]
    space: Space
    config: RunConfig

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return slug(self.name)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A checked experiment: every run of it is a valid configuration."""

    name: str
    config: ExperimentConfig
    variants: tuple[Variant, ...]

    @property
    def cells(self) -> list[tuple[Variant, int]]:
        """Variant and seed of every cell, seed by seed, so that a table can be made early."""
        return [(variant, seed) for seed in self.config.seeds for variant in self.variants]


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment and checks every run of it, and every choice of its search.

    Args:
        path: the experiment's TOML file.
        overrides: of the experiment's own keys or of every run's; the command line has the last word.

    Raises:
        UserError: the experiment, a variant or a choice is at fault.
    """
    data = read_toml(path)
    own = [o for o in overrides if re.split(r"[.=]", o.strip())[0].strip() in ExperimentConfig.model_fields]
    for override in own:
        lay(data, override)
    config = validate_model(ExperimentConfig, data, f"{path}{' with --set ' + ' '.join(own) if own else ''}")
    of_runs = [o for o in overrides if o not in own]
    _refuse_shared(config.set, ("train.seed", "train.test"), f"{path}: set")
    _refuse_shared(of_runs, ("train.seed", "train.test"), "--set")
    base = read_toml(config.base)
    variants = []
    for variant in _spread(config.variants):
        source = f"{path}: variant {variant.name!r}: {config.base}"
        _refuse_shared(variant.set, SHARED, f"{path}: variant {variant.name!r}: set")
        laid = [*config.set, *variant.set, *of_runs]
        space = _space(config.search, variant, path)
        # Tables of the file are changed by overrides, so each variant gets its own.
        run = make_config(json.loads(json.dumps(base)), laid, source)
        of_trials = config.search.set if config.search else ()
        _refuse_shared(of_trials, SHARED, f"{path}: search.set")
        for key, choices in space.items():
            for choice in choices:
                for more in ((), of_trials):
                    make_config(json.loads(json.dumps(base)), [*laid, *more, override_of(key, choice)], source)
        facts = {
            "label": variant.label or variant.name,
            "setting": variant.setting,
            "series": variant.series,
            "at": variant.at,
            "ours": variant.ours,
        }
        variants.append(Variant(variant.name, facts, tuple(laid), space, run))
    return Experiment(path.stem, config, tuple(variants))


def _spread(variants: Sequence[VariantConfig]) -> Iterator[VariantConfig]:
    for variant in variants:
        if not variant.separate:
            yield variant
        for task in variant.separate:
            # Weights between tasks mean nothing to one of them, and may name another.
            alone = (f"train.tasks={json.dumps([task])}", "train.loss.task_weights={}")
            changes: dict[str, Any] = {"name": f"{variant.name} [{task}]", "set": (*variant.set, *alone)}
            changes |= {"label": variant.label or variant.name, "setting": variant.setting or "separate"}
            yield variant.model_copy(update=changes)


def _space(search: SearchConfig | None, variant: VariantConfig, path: Path) -> Space:
    if search is None:
        if variant.space:
            raise UserError(f"{path}: variant {variant.name!r}: has a space, but the experiment has no [search]")
        return {}
    space = {key: choices for key, choices in {**search.space, **variant.space}.items() if choices}
    _refuse_shared([f"{key}=" for key in space], SHARED, f"{path}: variant {variant.name!r}: space")
    if not space:
        raise UserError(
            f"{path}: variant {variant.name!r}: nothing is left to search; its budget would not be the others'"
        )
    return space


def _refuse_shared(overrides: Sequence[str], keys: Sequence[str], where: str) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in keys or key in ("data", "train"):
            raise UserError(
                f"{where} {override!r}: all cells of an experiment share their store and their seeds; set `seeds` in "
                "the experiment, data.store in the base run or on the command line"
            )


def override_of(key: str, choice: Choice) -> str:
    """A choice as `--set` takes it."""
    return f"{key}={json.dumps(choice)}"


def grid_size(space: Space) -> int:
    """How many configurations a space has."""
    return math.prod(len(choices) for choices in space.values())


def key_of(config: RunConfig) -> str:
    """A hash of what a run is, without its seed and what changes nothing but its place and speed.

    Only what differs from the defaults is hashed: an option that a later version adds leaves cells what they were.
    """
    data = config.model_dump(mode="json", exclude_defaults=True)
    # Models differ in their names' defaults.
    data.setdefault("model", {})["name"] = config.model.name
    for path in NOT_IN_KEY:
        section, name = path.split(".")
        data.get(section, {}).pop(name, None)
    data.pop("checkpoint", None)
    if (plugin := plugin_of(config.model)) is not None:
        data["plugin"] = plugin.sha256
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=8).hexdigest()


def slug(name: str) -> str:
    """A name as a folder is called."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "_"


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [a for a, b in itertools.pairwise(sorted(values)) if a == b]
