"""What the files of experiments mean, and what is refused in them."""

import copy
import json
from pathlib import Path

import pytest

from experiment_files import SEARCH, TWO, written
from infnet_rec.config.experiment import grid_size, key_of, load_experiment, override_of
from infnet_rec.config.load import make_config
from infnet_rec.config.model import InfnetConfig, model_sections
from infnet_rec.config.run import RunConfig, run_config
from infnet_rec.config.toml import read_toml
from infnet_rec.config.train import hasty_patience
from infnet_rec.errors import UserError

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = tuple(model_sections())
SHIPPED = sorted((ROOT / "configs" / "experiments").glob("*.toml"))


def test_cells_come_seed_by_seed_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path, TWO), ["train.num_epochs=0.5", "seeds=[7,8,9]"])
    assert [(v.name, seed) for v, seed in experiment.cells[:3]] == [("INFNet", 7), ("w/o1", 7), ("INFNet", 8)]
    whole, without = experiment.variants
    assert without.overrides == (
        "model.width=4",
        "model.ablation=no_task_tokens",
        "train.num_epochs=2",
        "train.num_epochs=0.5",
    )
    assert (without.config.train.num_epochs, without.config.model.width, without.folder) == (0.5, 4, "w_o1")
    assert (whole.facts["ours"], without.facts["ours"]) == (True, False)


def test_a_key_is_what_a_run_is_and_not_where_or_with_which_seed(tmp_path: Path) -> None:
    path = written(tmp_path, TWO)
    whole, without = (key_of(v.config) for v in load_experiment(path).variants)
    assert whole != without
    elsewhere = load_experiment(path, ["data.store=elsewhere", "train.num_threads=2"]).variants[0].config
    assert key_of(elsewhere) == whole
    assert key_of(load_experiment(path, ["train.dense.lr=0.5"]).variants[0].config) != whole


def test_an_option_that_a_later_version_adds_leaves_a_key_as_it_was(tmp_path: Path) -> None:
    whole = load_experiment(written(tmp_path, TWO)).variants[0].config

    class LaterModel(InfnetConfig):
        added: int = 3

    class LaterRun(RunConfig):
        model: LaterModel = LaterModel()

    settings = whole.model_dump(exclude_defaults=True)
    assert key_of(LaterRun.model_validate(settings)) == key_of(whole)
    settings["model"]["added"] = 4
    assert key_of(LaterRun.model_validate(settings)) != key_of(whole)


def test_models_have_keys_of_their_own() -> None:
    """Nothing but the names differs."""
    configs = [run_config().model_validate({"data": {"store": "x"}, "model": {"name": name}}) for name in MODELS]
    assert len({key_of(config) for config in configs}) == len(MODELS) == 13


def test_separate_models_are_one_variant_a_task(tmp_path: Path) -> None:
    text = """
    set = ["train.loss.task_weights.like=3.0"]
    [[variants]]
    name = "FM alone"
    label = "FM"
    set = ['model={name="fm"}']
    separate = ["click", "like"]
    """
    variants = load_experiment(written(tmp_path, text)).variants
    assert [v.name for v in variants] == ["FM alone [click]", "FM alone [like]"]
    assert [v.config.train.tasks for v in variants] == [("click",), ("like",)]
    assert not variants[0].config.train.loss.task_weights
    assert {(v.facts["label"], v.facts["setting"]) for v in variants} == {("FM", "separate")}


def test_a_variant_changes_the_space_of_its_search(tmp_path: Path) -> None:
    text = f"""
    [[variants]]
    name = "FM"
    set = ['model={{name="fm"}}']
    space = {{ "model.dropout" = [], "train.sparse.lr" = [0.003, 0.01] }}
    {SEARCH}
    """
    (variant,) = load_experiment(written(tmp_path, text)).variants
    assert variant.space == {"train.dense.lr": (1e-4, 1e-3, 1e-2), "train.sparse.lr": (0.003, 0.01)}
    assert grid_size(variant.space) == 6


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run and every choice is a valid configuration; all searches have the same budget."""
    monkeypatch.chdir(ROOT)
    experiment = load_experiment(path)
    assert len({key_of(v.config) for v in experiment.variants}) > 1
    tells_apart = experiment.config.reference or all(v.facts["series"] for v in experiment.variants)
    assert tells_apart or any(v.facts["ours"] for v in experiment.variants)
    # The size of QB-video, the largest that trains for several epochs.
    assert {hasty_patience(variant.config.train, 1_955_000) for variant in experiment.variants} == {None}
    if experiment.config.search is not None:
        budgets = {min(grid_size(v.space), experiment.config.search.num_trials) for v in experiment.variants}
        assert budgets == {experiment.config.search.num_trials}
        for variant in experiment.variants:
            if variant.facts["label"] == "FM":
                assert {0.01, 0.003} <= set(variant.space["train.sparse.lr"])
            if variant.facts["label"] == "HSTU":
                searched = variant.space.get("model.dropout", (variant.config.model.model_dump()["dropout"],))
                assert 0.0 in searched


REFUSED = {
    "unknown model": ("""[[variants]]\nname = "a"\nset = ['model={name="mmoo"}']""", "did you mean 'mmoe'"),
    "not the model's": (
        """[[variants]]\nname = "a"\nset = ['model={name="fm"}', "model.dropout=0.1"]""",
        r"model\.dropout: unknown key",
    ),
    "own seed": ('[[variants]]\nname = "a"\nset = ["train.seed=4"]', "share their store and their seeds"),
    "own store": ('[[variants]]\nname = "a"\nset = ["data.store=b"]', "share their store and their seeds"),
    "seed searched": (TWO + SEARCH + '"train.seed" = [1, 2]', "share their store and their seeds"),
    "seed of trials": (TWO + SEARCH.replace("= 3", '= 3\nset = ["train.seed=4"]', 1), "share their store"),
    "bad trials": (TWO + SEARCH.replace("= 3", '= 3\nset = ["model.wdth=4"]', 1), "did you mean 'width'"),
    "same folder": ('[[variants]]\nname = "w/o"\n[[variants]]\nname = "w_o"', "rename one"),
    "seed twice": ('seeds = [1, 1]\n[[variants]]\nname = "a"', "1 stands there twice"),
    "bad choice": (TWO + SEARCH.replace("0.5", "1.5"), r"model\.dropout = 1\.5"),
    "no search": ('[[variants]]\nname = "a"\nspace = {"model.width" = [4]}', r"has no \[search\]"),
    "nothing to search": (
        SEARCH + '[[variants]]\nname = "a"\nspace = {"model.dropout" = [], "train.dense.lr" = []}',
        "nothing is left to search",
    ),
    "reference": ('reference = "b"\n[[variants]]\nname = "a"', "none of the variants' labels"),
    "misspelt": ('[[variant]]\nname = "a"', "variant: unknown key"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_experiment(written(tmp_path, text))


def test_a_seed_on_the_command_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set `seeds` in the experiment"):
        load_experiment(written(tmp_path, TWO), ["train.seed=3"])


@pytest.mark.parametrize("folder", sorted(p.parent for p in RESULTS.glob("*/experiment.json")), ids=lambda p: p.name)
def test_committed_cells_are_of_the_shipped_experiments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant is trained, as its file has it now."""
    monkeypatch.chdir(ROOT)
    experiment = load_experiment(ROOT / "configs" / "experiments" / f"{folder.name}.toml")
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    assert {(cell["variant"], cell["seed"]) for cell in cells} == {(v.name, seed) for v, seed in experiment.cells}
    base = read_toml(experiment.config.base)
    for variant in experiment.variants:
        of_variant = [cell for cell in cells if cell["variant"] == variant.name]
        chosen = [override_of(key, value) for key, value in of_variant[0]["chosen"].items()]
        config = make_config(copy.deepcopy(base), [*variant.overrides, *chosen], variant.name)
        assert {cell["key"] for cell in of_variant} == {key_of(config)}
