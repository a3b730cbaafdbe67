"""A run's model by its name: sections of the configuration, what is refused, and how wide tables are."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from data_fixtures import ROOT
from infnet_rec import cli
from infnet_rec.config.load import load_config, validate_run
from infnet_rec.config.model import model_sections
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import World
from infnet_rec.errors import UserError
from infnet_rec.models.registry import _maker, table_width
from infnet_rec.models.tokens import TokenLayout
from infnet_rec.planner.run_plan import check_run
from infnet_rec.planner.tables import meta_model

SMALL = Path(__file__).parents[2] / "small.toml"
QUICKSTART = ROOT / "configs" / "quickstart.toml"
CPU = World(0, 1, 0, 1, torch.device("cpu"))
NAMES = ["infnet", "fm", "din", "dien", "dcnv2", "gdcn", "wukong", "hstu"]
NAMES += ["shared_bottom", "mmoe", "omoe", "ple", "stem"]


def named(name: str, **keys: Any) -> RunConfig:
    return validate_run({"data": {"store": "x"}, "model": {"name": name, **keys}}, "test")


def fault_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_every_model_has_a_name() -> None:
    assert list(model_sections()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_a_tower(name: str) -> None:
    layout = TokenLayout(("user", "item"), ("click_item",), (0,), (0,), (1,), num_tasks=2)
    section = named(name).model
    with torch.device("meta"):
        tower = _maker(section)(layout, section)
    assert isinstance(tower, torch.nn.Module)


@pytest.mark.parametrize("name", NAMES)
def test_a_section_is_the_same_when_read_back(name: str) -> None:
    config = named(name, width=8)
    assert validate_run(config.model_dump(mode="json"), "config.json") == config
    assert config.model.width == 8


def test_a_section_without_a_name_is_infnets() -> None:
    assert load_config(QUICKSTART).model.name == "infnet"
    config = load_config(QUICKSTART, ["model.num_blocks=3"])
    assert config.model.name == "infnet" and config.model.num_blocks == 3


def test_an_override_gives_the_section_anew() -> None:
    config = load_config(SMALL, ['model={name = "mmoe", num_experts = 2}', "model.gate_hidden=[]"])
    assert config.model.name == "mmoe" and (config.model.num_experts, config.model.gate_hidden) == (2, ())


def test_an_unknown_model_is_refused_by_name() -> None:
    text = fault_of(QUICKSTART, "model.name=mmo")
    assert "  model.name = 'mmo': Input should be one of infnet, fm, din, " in text
    assert text.endswith("(did you mean 'mmoe'?)") and text.splitlines()[0].endswith(": 1 fault")
    assert "model.name = 3: Input should be one of infnet" in fault_of(QUICKSTART, "model.name=3")
    assert "model = 3: Input should be an object" in fault_of(QUICKSTART, "model=3")


def test_keys_of_another_model_are_refused_with_those_that_it_has() -> None:
    lines = fault_of(SMALL, "model.name=mmoe", "model.num_expert=4").splitlines()
    assert lines[0].endswith(": 2 faults")
    assert any(line.startswith("  model.proxy_hidden: unknown key") for line in lines)
    assert "  model.num_expert: unknown key (did you mean 'num_experts'?)" in lines
    assert [line for line in lines if "mmoe: has" in line] == [
        "  model of mmoe: has width, table_std, tables, compile, name, num_experts, expert_hidden, gate_hidden, "
        "head_hidden, dropout; leave out all others"
    ]
    assert "model.num_blok: unknown key (did you mean 'num_blocks'?)" in fault_of(SMALL, "model.num_blok=3")


def test_a_model_in_a_place_of_numbers_that_it_does_not_take() -> None:
    assert "model.num_layers = 0: Input should be greater" in fault_of(QUICKSTART, 'model={name="ple", num_layers=0}')
    text = fault_of(QUICKSTART, 'model={name="hstu", transducer_width=-1}')
    assert "model.transducer_width = -1: Input should be greater" in text
    assert "(did you mean 'full'?)" in fault_of(QUICKSTART, 'model={name="dcnv2", cross="ful"}')


@pytest.mark.parametrize(
    ("name", "width"), [("mmoe", 8), ("stem", 32), ("fm", 8 + 8 * 3), ("infnet", 8)], ids=lambda x: str(x)
)
def test_tables_are_as_wide_as_the_model_wants_them(name: str, width: int, small_store: Path) -> None:
    config = load_config(SMALL, [f"data.store='{small_store}'", f'model={{name = "{name}", width = 8}}'])
    data = open_data(config)
    assert table_width(config, data.schema) == width
    model = meta_model(config, data)
    tables = [*model.bags.embedding_bag_configs(), *model.events.embedding_configs()]
    assert {table.embedding_dim for table in tables} == {width}


def test_tasks_are_those_that_were_chosen_in_the_stores_order(small_store: Path) -> None:
    def tasks(*overrides: str) -> list[str]:
        return open_data(load_config(SMALL, [f"data.store='{small_store}'", *overrides])).task_names

    assert tasks() == ["click", "like", "long_view"]
    assert tasks('train.tasks=["long_view", "click"]') == ["click", "long_view"]
    for wrong, words in (
        ('train.tasks=["clik"]', ["train.tasks: 'clik'", "click, like, long_view", "did you mean 'click'?"]),
        ('train.tasks=["like", "like"]', ["'like' stands there 2 times"]),
        ("train.tasks=[]", ["train.tasks = []", "at least 1 item"]),
        ("train.tasks=click", ["train.tasks = 'click'", "array"]),
    ):
        with pytest.raises(UserError) as caught:
            tasks(wrong)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    with pytest.raises(UserError, match=r"task_weights\.like: the run's tasks are click;"):
        tasks('train.tasks=["click"]', "train.loss.task_weights.like=2")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['model={name = "hstu", num_heads = 3}'], ["hstu: num_heads is 3", "width 16"]),
        (['model={name = "hstu", num_heads = 3, transducer_width = 64}'], ["num_heads is 3", "transducer_width 64"]),
        (["model.attention=fused"], ['model.attention is "fused"']),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_the_run(
    overrides: list[str], words: list[str], small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = load_config(SMALL, [f"data.store='{small_store}'", *overrides])
    with pytest.raises(UserError) as caught:
        check_run(config, open_data(config), CPU)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("verb", [["step", SMALL], ["tower", SMALL], ["tower"]], ids=str)
def test_benchmarks_of_infnets_forms_refuse_other_models(verb: list[object]) -> None:
    answer = CliRunner().invoke(cli.app, ["bench", *map(str, verb), '--set=model={name = "ple"}'])
    assert isinstance(answer.exception, UserError)
    assert str(answer.exception).startswith('model.name is "ple": only "infnet" has several forms')


@pytest.mark.parametrize("name", NAMES)
def test_no_model_makes_tables_wider_than_the_kernels_take(name: str, small_store: Path) -> None:
    """Beyond it FBGEMM gives zeros on a GPU: the widest width that is taken, and the next one, which is refused."""
    loaded = load_config(SMALL, [f'data.store="{small_store}"', f'model={{name="{name}"}}'])
    data = open_data(loaded)

    def at(width: int) -> RunConfig:
        return loaded.model_copy(update={"model": loaded.model.model_copy(update={"width": width})})

    def width_of(width: int) -> int | None:
        try:
            return table_width(at(width), data.schema)
        except UserError as fault:
            assert "\n" not in str(fault) and str(fault).startswith(f"model.width = {width}: {name} ")
            return None

    widths = {width: width_of(width) for width in range(4, 1025, 4)}
    taken = [width for width, found in widths.items() if found is not None]
    assert taken == list(range(4, taken[-1] + 1, 4)) and all(
        found is None or found <= 1024 for found in widths.values()
    )
    if name not in ("fm", "stem"):
        assert taken[-1] == 1024
    else:
        with pytest.raises(
            UserError, match=f"for 3 tasks makes tables of .* zeros beyond 1,024; take at most {taken[-1]}$"
        ):
            check_run(at(1024), data, CPU)
    assert fault_of(SMALL, f'model={{name="{name}", width=1028}}').count("1024") == 1


def test_a_width_that_no_choice_saves_names_the_tasks(small_store: Path) -> None:
    loaded = load_config(SMALL, [f'data.store="{small_store}"', 'model={name="stem", width=8}'])
    schema = open_data(loaded).schema
    many = dataclasses.replace(
        schema, tasks=tuple(dataclasses.replace(schema.tasks[0], name=f"t{k}") for k in range(300))
    )
    with pytest.raises(UserError, match=r"train fewer tasks \(train.tasks\)"):
        table_width(loaded, many)
