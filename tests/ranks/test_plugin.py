"""A model from outside of the package: trained on two ranks, resumed, evaluated, planned, compared and launched."""

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_fixtures import ROOT
from infnet_rec import cli
from infnet_rec.config import plugins
from infnet_rec.config.experiment import key_of
from infnet_rec.config.load import load_config
from infnet_rec.config.model import model_sections, replace_sections
from infnet_rec.data.run_data import open_data
from infnet_rec.errors import UserError
from infnet_rec.launcher.launch import write_launch
from infnet_rec.planner.tables import meta_model
from launch import components

CONFIG = ROOT / "tests" / "small.toml"
PAGE = ROOT / "docs" / "your_own_model.md"
EXAMPLE = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
CHOSEN = 'model={name = "field_mix", width = 8, hidden = [8]}'
TIMEOUT_S = 240


@pytest.fixture
def known() -> Any:
    """What a test registers is forgotten after it."""
    before = model_sections()
    yield
    replace_sections(before)
    plugins.use_plugins([])
    plugins._loaded.clear()


@pytest.fixture(scope="module")
def my_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "my_model.py"
    path.write_text(EXAMPLE)
    return path


def infnet_rec(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "infnet_rec.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refused(*words: object) -> str:
    """What a command says that is refused before anything starts; in this process."""
    answer = CliRunner().invoke(cli.app, [*map(str, words)])
    assert isinstance(answer.exception, UserError), answer.output
    return str(answer.exception)


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.splitlines()) <= 60


@pytest.fixture(scope="module")
def run_dir(my_model: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that was trained for half an epoch and then to its end."""
    run_dir = tmp_path_factory.mktemp("runs") / "mine"
    words = ["train", CONFIG, "--plugin", my_model, f"--set=data.store={small_store}", f"--set={CHOSEN}"]
    words += ["--ranks=2", f"--run-dir={run_dir}", "--json"]
    infnet_rec(*words, "--set=train.num_epochs=0.5")
    infnet_rec(*words, "--set=train.num_epochs=1")
    return run_dir


@pytest.mark.slow
def test_it_trains_on_two_ranks_and_goes_on(run_dir: Path, my_model: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    half = json.loads(next(run_dir.glob("result.step-*.json")).read_text())
    assert result["num_ranks"] == 2 and result["steps_done"] > half["steps_done"] > 0
    losses = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in losses if line["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == result["steps_done"]
    record = {"name": "my_model.py", "sha256": hashlib.sha256(my_model.read_bytes()).hexdigest()}
    assert json.loads((run_dir / "plugin.json").read_text()) == record
    assert result["metrics"]["test"]["click"]["auc"] > 0.5


@pytest.mark.slow
def test_it_is_evaluated_with_the_same_file_only(known: None, run_dir: Path, my_model: Path, tmp_path: Path) -> None:
    again = infnet_rec("eval", run_dir, "--plugin", my_model, "--json")
    was = json.loads((run_dir / "result.json").read_text())["metrics"]["test"]
    now = json.loads(again.stdout)["metrics"]
    assert now["click"]["auc"] == pytest.approx(was["click"]["auc"], abs=1e-6)
    sha = hashlib.sha256(my_model.read_bytes()).hexdigest()[:12]
    assert refused("eval", run_dir) == (
        f"{run_dir}: is of plugin my_model.py with SHA-256 {sha}..., which was not given; add --plugin with a path to "
        "it"
    )
    other = tmp_path / "my_model.py"
    other.write_text(EXAMPLE + "\n# changed\n")
    assert f"SHA-256 {sha}..., and what was given has " in refused("eval", run_dir, "--plugin", other)
    # What needs no model needs no plugin.
    assert "step-" in CliRunner().invoke(cli.app, ["checkpoint", "ls", str(run_dir)]).output


@pytest.mark.slow
def test_another_file_does_not_go_on_with_the_run(
    known: None, run_dir: Path, small_store: Path, tmp_path: Path
) -> None:
    other = tmp_path / "my_model.py"
    other.write_text(EXAMPLE.replace("std=0.1", "std=0.2"))
    words = ["train", CONFIG, "--plugin", other, f"--set=data.store={small_store}", f"--set={CHOSEN}"]
    assert refused(*words, "--set=train.num_epochs=2", f"--run-dir={run_dir}").endswith("give it as it was then")


def test_it_is_planned(known: None, my_model: Path, small_store: Path) -> None:
    words = ["plan", CONFIG, f"--set=data.store={small_store}", f"--set={CHOSEN}", "-j", "1x2", "--hardware=cpu-node"]
    # The name of a model that nobody registered is refused by those that there are.
    assert "model.name = 'field_mix': Input should be one of infnet, fm, " in refused(*words)
    answer = CliRunner().invoke(cli.app, [*map(str, words), "--plugin", str(my_model), "--json"])
    assert answer.exit_code == 0, answer.output
    assert len(json.loads(answer.stdout)["tables"]) == 89


@pytest.mark.slow
def test_an_experiment_compares_it(my_model: Path, small_store: Path, tmp_path: Path) -> None:
    text = f"""
    base = "{CONFIG}"
    set = ["data.sequence_length=2", "train.num_epochs=0.2", "train.eval_every_steps=0"]
    seeds = [0]
    [[variants]]
    name = "ours"
    set = ['{CHOSEN}']
    ours = true
    [[variants]]
    name = "FM"
    set = ['model={{name = "fm", width = 8}}']
    """
    path = tmp_path / "mine.toml"
    path.write_text(text)
    out = tmp_path / "out"
    words = ["experiment", path, f"--set=data.store={small_store}", f"--out={out}", "--plugin", my_model]
    infnet_rec(*words)
    cells = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert {cell["model"]: cell["status"] for cell in cells} == {"field_mix": "done", "fm": "done"}


def test_a_changed_file_is_another_cell(known: None, my_model: Path, tmp_path: Path) -> None:
    keys = []
    before = model_sections()
    for text in (EXAMPLE, EXAMPLE + "# changed\n"):
        path = tmp_path / "my_model.py"
        path.write_text(text)
        plugins.use_plugins([str(path)])
        keys.append(key_of(load_config(CONFIG, [CHOSEN, "data.store=x"])))
        replace_sections(before)
        plugins._loaded.clear()
    assert keys[0] != keys[1]


def test_launches_carry_the_text(known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form hands the text itself to every node; there it is the same plugin."""
    my_model = tmp_path / "my_model.py"
    my_model.write_text(EXAMPLE + "# what's a shell's: \"$HOME\", `ls`, \\, ä, {a,b}\n")
    plugins.use_plugins([str(my_model)])
    sha = hashlib.sha256(my_model.read_bytes()).hexdigest()
    overrides = ["data.store=x", CHOSEN]

    def text_of(form: str, settings: tuple[str, ...] = ()) -> str:
        return write_launch(CONFIG, overrides, "2x2", form, Path("runs/mine"), settings)["text"]

    def read_back(value: str) -> plugins.Plugin:
        plugins._loaded.clear()
        replace_sections({name: s for name, s in model_sections().items() if name != "field_mix"})
        monkeypatch.setenv("INFNET_REC_PLUGIN_MY_MODEL_PY", value)
        return plugins._load("env:my_model.py")

    for form in ("torchrun", "sbatch"):
        script = text_of(form)
        assert "--plugin=env:my_model.py" in script
        (export,) = re.findall(r"^export INFNET_REC_PLUGIN_MY_MODEL_PY='.*?(?<!\\)'\n(?=export )", script, re.M | re.S)
        shell = ["bash", "-c", export + 'printf "%s" "$INFNET_REC_PLUGIN_MY_MODEL_PY" | sha256sum']
        assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout.startswith(sha)
    plugins.use_plugins([str(my_model)])
    documents = list(yaml.safe_load_all(text_of("k8s", ("image=infnet-rec", "gpus=0", "cpus=2"))))
    (job,) = [document for document in documents if document["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert read_back(variables["INFNET_REC_PLUGIN_MY_MODEL_PY"]).sha256 == sha

    app = components.train(CHOSEN, f"--plugin={my_model}", config=str(CONFIG), run_dir="runs/a")
    (role,) = app.roles
    value = role.env["INFNET_REC_PLUGIN_MY_MODEL_PY"]
    assert not set(value) & set(",$'\"\n") and "--plugin=env:my_model.py" in role.args[1]
    assert read_back(value).sha256 == sha


def test_a_rank_reads_what_a_launch_carries(known: None, small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["model", CONFIG, f"--set=data.store={small_store}", f"--set={CHOSEN}", "--plugin=env:my_model.py"]
    assert "has no INFNET_REC_PLUGIN_MY_MODEL_PY" in refused(*words)
    monkeypatch.setenv("INFNET_REC_PLUGIN_MY_MODEL_PY", plugins.encoded(EXAMPLE))
    assert "field_mix of width 8" in CliRunner().invoke(cli.app, [*map(str, words)]).output


def test_an_installed_package_brings_it(known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("field_mix", "their_package", "infnet_rec.models")
    vars(point).update(dist=SimpleNamespace(name="their-package", version="1.2"))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    plugins._installed.cache_clear()
    try:
        section = load_config(CONFIG, [CHOSEN, "data.store=x"]).model
        plugin = plugins.plugin_of(section)
        assert plugin is not None and plugin.name == "their-package 1.2"
        assert plugin.sha256 == hashlib.sha256(EXAMPLE.encode()).hexdigest() and plugins.carried_plugins() == ([], {})
    finally:
        plugins._installed.cache_clear()
        sys.modules.pop("their_package")


FORWARD = EXAMPLE[: EXAMPLE.index("    def forward")].count("\n") + 1
FAULTS = {
    "syntax": (EXAMPLE.replace("def forward(self", "def forward(self,,"), [f"line {FORWARD}: invalid syntax"]),
    "raises": ("\n\nprint(unknown)\n", ["line 3: NameError: name 'unknown'"]),
    "imports": ("import no_such_package\n", ["line 1: ModuleNotFoundError: No module named 'no_such_package'"]),
    "nothing": ("x = 1\n", ["registers no model", "@register(MyConfig)"]),
    "taken": (
        EXAMPLE.replace('"field_mix"', '"fm"'),
        ["model section FieldMixConfig: its name 'fm' is that of FmConfig already"],
    ),
    "no section": (
        EXAMPLE.replace("(ModelConfig)", ""),
        ["model section FieldMixConfig: is no subclass of", "ModelConfig"],
    ),
    "no name": (
        EXAMPLE.replace('    name: Literal["field_mix"] = "field_mix"\n', ""),
        ["model section FieldMixConfig: has no name of its own", 'name: Literal["..."]'],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_file_is_said_in_a_line(known: None, name: str, tmp_path: Path) -> None:
    text, words = FAULTS[name]
    path = tmp_path / "my_model.py"
    path.write_text(text)
    before = model_sections()
    plugins.use_plugins([str(path)])
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, [CHOSEN, "data.store=x"])
    message = str(caught.value)
    assert message.startswith(f"--plugin {path}: ") and "\n" not in message
    assert all(word in message for word in words), message
    assert model_sections() == before


def test_files_that_are_none(known: None, tmp_path: Path) -> None:
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "a").mkdir()
    for word, reason in (
        (tmp_path / "no.py", "no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "binary.py", "UTF-8"),
    ):
        plugins.use_plugins([str(word)])
        with pytest.raises(UserError, match=reason) as caught:
            plugins.load_plugins()
        assert str(caught.value).startswith(f"--plugin {word}: ")


TOWERS = {
    "shape": (
        EXAMPLE.replace("dim=1)\n", "dim=1)[:, :1]\n").replace("softmax(dim=1)[:, :1]", "softmax(dim=1)"),
        ["forward gives (2, 1) for 2 examples and 3 tasks", "which is (2, 3)"],
    ),
    "no tensor": (
        EXAMPLE.replace("    @in_its_precision\n", "").replace("return torch.cat", "return str, torch.cat"),
        ["gives tuple"],
    ),
    "fails": (
        EXAMPLE.replace("@ fields_BND(tokens)", "@ fields_BND(tokens).unknown"),
        ["fails on two examples: AttributeError", f"forward, line {FORWARD + 2} of my_model.py"],
    ),
    "nobody draws": (
        EXAMPLE.replace("reset_parameters", "draw"),
        ["the tower (FieldMix) holds score_TN and has no method reset_parameters"],
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_that_does_not_work_is_refused_before_the_run(
    known: None, name: str, small_store: Path, tmp_path: Path
) -> None:
    text, words = TOWERS[name]
    path = tmp_path / "my_model.py"
    path.write_text(text)
    plugins.use_plugins([str(path)])
    config = load_config(CONFIG, [CHOSEN, f"data.store='{small_store}'"])
    with pytest.raises(UserError) as caught:
        meta_model(config, open_data(config))
    message = str(caught.value)
    assert message.startswith("model 'field_mix' of my_model.py: ") and "\n" not in message
    assert all(word in message for word in words), message


def test_two_files_of_one_name_are_refused(known: None, my_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "my_model.py"
    other.write_text(EXAMPLE.replace("field_mix", "another_mix"))
    plugins.use_plugins([str(my_model), str(other)])
    with pytest.raises(UserError, match="two different files are called alike"):
        plugins.load_plugins()


def test_a_launch_carries_no_two_files_in_one_variable(known: None, tmp_path: Path) -> None:
    for name, model in (("my-model.py", "field_mix"), ("my_model.py", "another_mix")):
        (tmp_path / name).write_text(EXAMPLE.replace("field_mix", model))
    plugins.use_plugins([str(tmp_path / "my-model.py"), str(tmp_path / "my_model.py")])
    with pytest.raises(UserError, match="another file would be INFNET_REC_PLUGIN_MY_MODEL_PY too"):
        plugins.carried_plugins()


def test_what_is_too_large_for_a_variable_is_refused(known: None, tmp_path: Path) -> None:
    path = tmp_path / "my_model.py"
    path.write_text(EXAMPLE + "# " + "x" * 90_000)
    plugins.use_plugins([str(path)])
    with pytest.raises(UserError, match=r"a launch carries at most 90,000; install it as a package"):
        plugins.carried_plugins()
