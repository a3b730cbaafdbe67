"""Run files, overrides and recipes: what is refused, in which words, and that every file of the repository is sound."""

import ast
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_fixtures import GENERATED_RECIPE, ROOT, SHOP_RECIPE
from infnet_rec.config.load import load_config, validate_run
from infnet_rec.config.toml import read_toml, validate_model
from infnet_rec.data.ingest.recipe import Recipe, load_recipe
from infnet_rec.errors import UserError

QUICKSTART = ROOT / "configs" / "quickstart.toml"
RUNS = sorted((ROOT / "configs").glob("*.toml"))
RECIPES = sorted((ROOT / "configs" / "datasets").glob("*.toml"))


def run_file(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def fault_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_of_the_repository_loads(path: Path) -> None:
    """And is the same when read back from the copy that a run directory keeps."""
    config = load_config(path)
    assert validate_run(json.loads(config.model_dump_json()), "config.json") == config
    profiles = set().union(*(load_recipe(recipe).profile_choices() for recipe in RECIPES))
    assert config.data.profile in profiles


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert validate_model(Recipe, json.loads(recipe.model_dump_json()), "manifest.json") == recipe
    profiles = {name: choice["features"] for name, choice in recipe.profile_choices().items()}
    num_sequences = {
        name: len(choice["behaviours"]) * len(recipe.sequences.attributes)
        for name, choice in recipe.profile_choices().items()
    }
    sizes = {name: len(features) for name, features in profiles.items()}
    if path.stem == "qb_video":
        assert sizes == {"all": 5, "paper6": 6} and num_sequences == {"all": 12, "paper6": 12}
        assert set(profiles["paper6"]) - set(profiles["all"]) == {"watching_times"}, "it is known after the fact"
    elif path.stem == "template":
        assert sizes == {"all": 10, "no_context": 8} and set(num_sequences.values()) == {4}
    elif path.stem.startswith("kuairand"):
        more = {"ctx89_exposures": 89} if path.stem == "kuairand_pure_late" else {}
        assert sizes == {"all": 92, "paper89": 89, "ctx89": 89, "safe": 40} | more
        assert {num_sequences[name] for name in ("paper89", "ctx89")} == {28}


def test_there_are_runs_and_recipes() -> None:
    assert len(RUNS) >= 2 and len(RECIPES) >= 2


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = """
        colour = "red"
        [data]
        stor = "x"
        sequence_length = 0
        [modle]
        width = 3
        [train]
        num_epochs = "two"
        [train.dense]
        lrr = 1e-3
        optimizer = "adamm"
        [train.loss.task_weights]
        click = -1.0
    """
    message = fault_of(run_file(tmp_path, text))
    assert message.splitlines()[0].endswith("run.toml: 9 faults")
    for line in (
        "  data.store: missing; it has no default",
        "  data.stor: unknown key (did you mean 'store'?)",
        "  data.sequence_length = 0: Input should be greater than or equal to 1",
        "  train.num_epochs = 'two': Input should be a valid number",
        "  train.dense.lrr: unknown key (did you mean 'lr'?)",
        "  train.dense.optimizer = 'adamm': Input should be 'adam', 'adamw' or 'adagrad' (did you mean 'adam'?)",
        "  train.loss.task_weights.click = -1.0: Input should be greater than 0",
        "  modle: unknown key (did you mean 'model'?)",
        "  colour: unknown key",
    ):
        assert line in message.splitlines()


WRONG = {
    "train.seed=1.0": "train.seed = 1.0: Input should be a valid integer",
    "train.seed=true": "train.seed = True: Input should be a valid integer",
    "train.seed=-1": "train.seed = -1: Input should be greater than or equal to 0",
    "train.seed='1'": "train.seed = '1': Input should be a valid integer",
    "train.seed=2022-04-08": "train.seed = '2022-04-08T00:00:00': Input should be a valid integer",
    "train.dense.lr=0": "train.dense.lr = 0: Input should be greater than 0",
    "train.dense.lr=fast": "train.dense.lr = 'fast': Input should be a valid number",
    "train.dense.lr=inf": "train.dense.lr = inf: Input should be a finite number",
    "train.num_epochs=nan": "train.num_epochs = nan: Input should be a finite number",
    "train.dense=3": "train.dense = 3: Input should be an object",
    "data=3": "data = 3: Input should be an object",
    "data.store=3": "data.store = 3: Input should be a valid string",
    "data.store=true": "data.store = True: Input should be a valid string",
    "model.proxy_hidden=8": "model.proxy_hidden = 8: Input should be a valid array",
    "model.proxy_hidden=[8, 0]": "model.proxy_hidden.1 = 0: Input should be greater than or equal to 1",
    "model.pooling=summ": "model.pooling = 'summ': Input should be 'sum' or 'mean' (did you mean 'sum'?)",
    "model.dropout=1.0": "model.dropout = 1.0: Input should be less than 1",
    "model.num_heads=3": "model: width = 16 does not divide by num_heads = 3",
    "train.dens.lr=1.0": "train.dens: unknown key (did you mean 'dense'?)",
    "trainn.seed=1": "trainn: unknown key (did you mean 'train'?)",
    # Forms of the override itself.
    "train.dense.lr": "--set 'train.dense.lr': must look like section.key=value, such as train.dense.lr=3e-4",
    "=3": "--set '=3': must look like section.key=value",
    ".seed=3": "--set '.seed=3': must look like section.key=value",
    "train..seed=3": "--set 'train..seed=3': must look like section.key=value",
    "train.seed=": "'' is not a TOML value",
    "data.store=my store": "'my store' is not a TOML value",
    "train.seed=[1": "'[1' is not a TOML value",
    "train.dense.lr.x=3": "--set 'train.dense.lr.x=3': 'lr' is a value, not a section",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_override_is_refused_by_name_and_value(override: str) -> None:
    assert WRONG[override] in fault_of(QUICKSTART, override)


def test_a_fault_says_which_overrides_were_laid_on_which_file() -> None:
    message = fault_of(QUICKSTART, "train.seed=3", "model.width=-1")
    assert message.startswith(f"{QUICKSTART} with --set train.seed=3 model.width=-1: 1 fault\n")


RIGHT: dict[str, tuple[str, Any]] = {
    "train.dense.lr=3e-4": ("train.dense.lr", 3e-4),
    "train.dense.lr=1": ("train.dense.lr", 1.0),
    " train.seed = 4 ": ("train.seed", 4),
    "train.num_epochs=0.5": ("train.num_epochs", 0.5),
    "model.pooling=mean": ("model.pooling", "mean"),
    "model.pooling='mean'": ("model.pooling", "mean"),
    "data.store=stores/x-1.y": ("data.store", "stores/x-1.y"),
    'data.store="my store"': ("data.store", "my store"),
    'data.store="a=b"': ("data.store", "a=b"),
    "model.proxy_hidden=[64, 32]": ("model.proxy_hidden", (64, 32)),
    "model.proxy_hidden=[]": ("model.proxy_hidden", ()),
    "train.loss.task_weights={like = 2.0}": ("train.loss.task_weights", {"like": 2.0}),
    "train.loss.task_weights.like=2": ("train.loss.task_weights.like", 2.0),
    "train.dense={lr = 0.5}": ("train.dense.lr", 0.5),
}


@pytest.mark.parametrize("override", RIGHT)
def test_an_override_is_laid_on_the_file(override: str) -> None:
    key, value = RIGHT[override]
    config = load_config(QUICKSTART, [override])
    assert at(config, key) == value
    assert config.data.profile == load_config(QUICKSTART).data.profile


def test_overrides_are_laid_in_turn_and_one_by_one() -> None:
    config = load_config(QUICKSTART, ["train.seed=1", "train.dense.lr=0.5", "train.seed=2", "train.sparse.lr=0.25"])
    plain = load_config(QUICKSTART)
    assert (config.train.seed, config.train.dense.lr, config.train.sparse.lr) == (2, 0.5, 0.25)
    assert config.train.global_batch_size == plain.train.global_batch_size
    with pytest.raises(ValidationError, match="frozen"):
        config.train.seed = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data: missing; it has no default"),
        ("[data\n", "run.toml: not a TOML file: Expected"),
        ("[data]\nstore = 'x'\nstore = 'y'", "run.toml: not a TOML file: Cannot overwrite"),
        ("[data]\nstore = 'x'\n[[train]]\nseed = 1", "train = [{'seed': 1}]: Input should be an object"),
    ],
)
def test_a_broken_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    assert message in fault_of(run_file(tmp_path, text))
    assert "no such file" in fault_of(tmp_path / "absent.toml")


RECIPE_FAULTS = {
    (
        'side = "user"\nencoding = "index"',
        'sides = "user"\nencoding = "index"',
    ): "features.0.sides: unknown key (did you mean",
    ('key = "id"', 'kee = "id"'): "sides.user.0.kee: unknown key (did you mean 'key'?)",
    ('attributes = ["sku"', 'attribute = ["sku"'): "sequences.attribute: unknown key (did you mean 'attributes'?)",
    ('drop = ["device"', 'drp = ["device"'): "profiles.no_context.drp: unknown key (did you mean 'drop'?)",
    (
        'drop = ["device"',
        'drop = ["devise"',
    ): "profile no_context: drops unknown feature 'devise' (did you mean 'device'?)",
    ('encoding = "quantile"', 'encoding = "quantiles"'): "features.1.encoding = 'quantiles': Input should be",
    ("buckets = 4", "buckets = 1"): "features.1.buckets = 1: Input should be greater than or equal to 2",
    (
        'attributes = ["sku", "shelf"',
        'attributes = ["sku", "shelv"',
    ): "attribute 'shelv' is neither an item feature nor one of the log's own (did you mean 'shelf'?)",
    ('"customer", "country"', '"sku", "country"'): "feature 'sku' is declared 2 times",
    ('behaviour = "buy"', 'behaviour = "by"'): "history: unknown behaviour 'by' (did you mean 'buy'?)",
    ('name = "look"', 'name = "buy"'): "behaviour 'buy' is declared 2 times",
    (
        'columns = ["at"]\nname = "hour"',
        'columns = ["on"]\nname = "hour"',
    ): "feature 'hour': encoding 'hour_of_day' reads",
    ('side = "user"\nencoding = "quantile"', 'side = "user"\nencoding = "hour_of_day"'): "side must be 'context'",
    (
        'columns = ["at"]\nname = "day"',
        'columns = ["at", "on"]\nname = "day"',
    ): "name = 'day' needs exactly one column, got 2",
    ('time_unit = "s"', 'time_unit = "min"'): "log.time_unit = 'min': Input should be 's', 'ms'",
    ("utc_offset_hours = -3", "utc_offset_hours = 20"): "log.utc_offset_hours = 20: Input should be less than or equal",
    # Dates.
    ("train = 2023-11-16", "train = 2023-11-25"): "splits: the boundaries must increase: train < valid < test < end",
    (
        "train = 2023-11-16",
        "train = 2023-11-16T00:00:00Z",
    ): "splits.train = '2023-11-16T00:00:00+00:00': Input should not have",
    ("train = 2023-11-16", "train = 12:00:00"): "splits.train = '12:00:00': Input should be a valid datetime",
    ("train = 2023-11-16", "train = 20231116"): "splits.train = 20231116: ",
    ("valid = 2023-11-20", ""): "splits.valid: missing; it has no default",
}


@pytest.mark.parametrize("change", RECIPE_FAULTS, ids=lambda change: change[1].replace("\n", " ") or "left out")
def test_a_wrong_recipe_is_refused(change: tuple[str, str], tmp_path: Path) -> None:
    assert change[0] in SHOP_RECIPE
    path = tmp_path / "shop.toml"
    path.write_text(SHOP_RECIPE.replace(*change, 1))
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert RECIPE_FAULTS[change] in str(caught.value)


def test_a_recipe_is_a_file() -> None:
    with pytest.raises(UserError, match=r"datasets: is a folder; name the recipe's TOML file"):
        load_recipe(GENERATED_RECIPE.parent)


def test_dates_are_instants_of_the_local_clock(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(SHOP_RECIPE)
    recipe = load_recipe(path)
    assert recipe.splits.train == datetime(2023, 11, 16) and recipe.splits.test == datetime(2023, 11, 21, 12)
    assert recipe.instant(recipe.splits.train) == 1_700_103_600, "2023-11-16 03:00 UTC in seconds"
    kuairand = load_recipe(GENERATED_RECIPE)
    assert kuairand.instant(datetime(2022, 4, 8)) == 1_649_347_200_000, "2022-04-07 16:00 UTC in milliseconds"
    assert read_toml(path)["splits"]["train"].isoformat() == "2023-11-16"


def test_configuration_imports_no_torch() -> None:
    imports = "import sys, infnet_rec.config.load, infnet_rec.data.ingest.recipe"
    code = f"{imports}; print({{'torch', 'torchrec'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def literal_sets() -> dict[frozenset[object], list[str]]:
    """Where each set of choices of the package is written out, other than as a single value."""
    found: dict[frozenset[object], list[str]] = {}
    for path in sorted((ROOT / "infnet_rec").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                choices = frozenset(part.value for part in parts if isinstance(part, ast.Constant))
                if len(choices) > 1:
                    found.setdefault(choices, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_a_set_of_choices_is_written_once() -> None:
    sets = literal_sets()
    assert frozenset({"adam", "adamw", "adagrad"}) in sets
    assert {" ".join(places) for places in sets.values() if len(places) > 1} == set()
