"""Tokens of several ids: the mean of their embeddings, for features that share a sequence's table and within sequences.

Against plain loops over the ids, sharded and not, in every model; and examples that weigh.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

import sharded_runs
from data_fixtures import QUIET, Dataset, build_shop
from infnet_rec.batch import Batch
from infnet_rec.benchmark.forms.every_token import make_token_events
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.data.store import Store, as_numpy, read_arrow
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.models.embeddings import TokenAssembly
from infnet_rec.planner.tables import meta_model
from infnet_rec.planner.workload import batch_shape, traffic_of
from infnet_rec.schema import EMPTY_SLOT, Schema
from kiosk import Edit, kiosk
from rank_pair import RankPair
from rich_shop import RICH
from test_every_model import MODELS, section

WIDTH = 4
# Tables are shared, so features of several values are looked up where sequences are.
SHARED = (*RICH, ("share_tables = false", "share_tables = true"))
RUN = ["data.profile=all", "data.sequence_length=6", "model.width=4", "train.global_batch_size=32"]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(sharded_runs.world_of(0, 1)):
        yield


@pytest.fixture(scope="module", params=["own tables", "shared tables"])
def averaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A shop whose histories are read for attributes of several values, of the item and of the log's row."""
    changes = SHARED if request.param == "shared tables" else RICH
    return build_shop(tmp_path_factory.mktemp("averaged"), *changes)


def ids_of_tokens(
    store: Store, schema: Schema, split: str, rows: list[int], length: int
) -> Iterator[tuple[str, list[int]]]:
    """Table and ids of each unpooled token, in the order of `spread_K`, one example and event at a time."""
    examples = store.examples(split)
    columns = {side: store.columns_of(side) for side in ("user", "item")}

    def of_side(side: str, table: np.ndarray, row: int, name: str) -> list[int]:
        mine = [c for c, column in enumerate(columns[side]) if column == name]
        return [int(id_) for id_ in table[row][mine] if id_ != EMPTY_SLOT]

    for feature in schema.shared_features:
        for row in rows:
            if feature.side == "context":
                given = np.atleast_1d(examples.context[feature.name][row])
                yield feature.table, [int(id_) for id_ in given if id_ != EMPTY_SLOT]
            else:
                table, numbers = (
                    (store.user_ids, examples.user_N) if feature.side == "user" else (store.item_ids, examples.item_N)
                )
                yield feature.table, of_side(feature.side, table, int(numbers[row]), feature.name)
    behaviours = list(store.manifest["behaviours"])
    for sequence in schema.sequences:
        events = store.events(sequence.behaviour)
        for row in rows:
            start = int(store.starts[examples.user_N[row], behaviours.index(sequence.behaviour)])
            seen = int(examples.seen[sequence.behaviour][row])
            for position in range(start + max(0, seen - length), start + seen):
                if sequence.attribute in columns["item"]:
                    yield (
                        sequence.table,
                        of_side("item", store.item_ids, int(events.item_E[position]), sequence.attribute),
                    )
                else:
                    given = np.atleast_1d(events.context[sequence.attribute][position])
                    yield sequence.table, [int(id_) for id_ in given if id_ != EMPTY_SLOT]


def assembled(batch: Batch, schema: Schema, weights: dict[str, Tensor]) -> Tensor:
    """The unpooled tokens as the model has them, [K, D]: shared features feature-major, then the sequences."""
    num_examples = len(batch.user_B)
    bags = KeyedTensor(
        [f.name for f in schema.bag_features],
        [WIDTH] * len(schema.bag_features),
        torch.zeros(num_examples, WIDTH * len(schema.bag_features)),
    )
    distinct = {
        name: JaggedTensor(weights[name][ids.values()], lengths=ids.lengths())
        for name, ids in batch.sequences.to_dict().items()
    }
    assembly = TokenAssembly(schema, WIDTH)
    means = batch.mean_row_Q, batch.mean_start_P
    tokens = assembly(bags, distinct, batch.spread_K, batch.lengths_FB, None, *means)
    shared_BMD = tokens.categorical_BMD[:, len(schema.bag_features) :]
    return torch.cat([shared_BMD.transpose(0, 1).reshape(-1, WIDTH), tokens.sequence_LD])


@pytest.mark.parametrize("length", [1, 3, 1000])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_is_the_mean_of_its_rows_and_so_is_its_gradient(averaged: Dataset, split: str, length: int) -> None:
    """Against loops that share no code with the loader, in float64."""
    store = averaged.store
    schema, random = store.schema, torch.Generator().manual_seed(length)
    assert schema.averages_tokens
    rows = list(range(0, store.num_examples(split), 3))[:40]
    batch = BatchReader(store, split, schema, length).read(np.array(rows))
    weights = {
        t.name: torch.randn(t.num_rows, WIDTH, generator=random, dtype=torch.float64).requires_grad_()
        for t in schema.sequence_tables
    }
    found_KD = assembled(batch, schema, weights)
    expected = list(ids_of_tokens(store, schema, split, rows, length))
    assert any(len(ids) > 1 for _, ids in expected) and all(ids for _, ids in expected)
    mean_KD = torch.stack([torch.stack([weights[table][i] for i in ids]).mean(0) for table, ids in expected])
    torch.testing.assert_close(found_KD, mean_KD, atol=1e-12, rtol=0)
    grad_KD = torch.randn(mean_KD.shape, generator=random, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * grad_KD).sum(), list(weights.values())) for x in (found_KD, mean_KD))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_a_batch_may_have_no_event_at_all(averaged: Dataset) -> None:
    """The first examples of users: nothing was seen, and means are of shared features alone, or none."""
    store = averaged.store
    examples = store.examples("train")
    rows = np.flatnonzero(sum(seen.astype(np.int64) for seen in examples.seen.values()) == 0)[:5]
    assert len(rows)
    batch = BatchReader(store, "train", store.schema, 5).read(rows)
    weights = {t.name: torch.randn(t.num_rows, WIDTH) for t in store.schema.sequence_tables}
    assert len(assembled(batch, store.schema, weights)) == len(store.schema.shared_features) * len(rows)


def both_ways(rank: int, world_size: int, store: str) -> np.ndarray:
    """Losses of a few steps on a rank."""
    return sharded_runs.train_steps(rank, world_size, store, RUN, 4)["losses"]


@pytest.mark.slow
def test_two_ranks_lose_what_an_unsharded_model_loses(ranks: RankPair, alone: None, averaged: Dataset) -> None:
    """INFNet, over four steps."""
    store = str(averaged.store.path)
    weights = sharded_runs.initial_weights(store, RUN)
    expected = sharded_runs.unsharded_losses(store, RUN, weights, 4)
    for losses in ranks(both_ways, store):
        np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_every_model_learns_from_averaged_tokens(alone: None, averaged: Dataset) -> None:
    """One step of each changes the loss of the same batch."""
    for name in MODELS:
        overrides = [section(name), *(o for o in RUN if not o.startswith("model.")), "train.sparse.lr=0.5"]
        config = sharded_runs.small_config(str(averaged.store.path), overrides)
        data, world = open_data(config), sharded_runs.world_of(0, 1)
        losses = sharded_runs.run_steps(config, data, world, sharded_runs.shard_model(config, data, world), 3)
        assert np.isfinite(losses).all() and len({*losses[:, 0].tolist()}) == 3, name


def test_the_planner_counts_every_id_of_a_token(averaged: Dataset) -> None:
    """Ids are at most as many as the planner foretells, and distinct ids at most as many as rows."""
    store, schema = averaged.store, averaged.store.schema
    shape = batch_shape(store.manifest, schema, sequence_length=50, local_batch_size=64)
    batch = BatchReader(store, "train", schema, 50).read(np.arange(64))
    several = {p.table for p in (*schema.shared_features, *schema.sequences) if p.max_values > 1}
    one = {p.table for p in (*schema.shared_features, *schema.sequences) if p.max_values == 1}
    assert several
    for name in several - one:
        assert shape.tokens[name] > 2 * sum(
            64 * events for s, events in zip(schema.sequences, shape.events_F, strict=True) if s.table == name
        )
    traffic = traffic_of(store.manifest, schema, width=4, sequence_length=50, local_batch_size=64, world_size=2)
    rows = {t.name: t.num_rows for t in schema.sequence_tables}
    for name, ids in batch.sequences.to_dict().items():
        assert 0 < traffic[name].mean_lookups[0] * 64 <= rows[name]
        assert len(ids.values()) <= rows[name]


def test_what_looks_up_every_token_by_itself_refuses_averages(averaged: Dataset) -> None:
    with pytest.raises(UserError, match="has up to 3 values, which are averaged"):
        make_token_events(averaged.store.schema, 4)


def test_an_event_is_shown_with_all_its_values(averaged: Dataset) -> None:
    store = averaged.store
    shown = [describe_example(store, "test", row, 50)["histories"] for row in range(20)]
    tags = [e["attributes"]["tags"] for h in shown for b in h.values() for e in b["shown"]]
    assert any(len(t["id"]) > 1 and t["value"].count(", ") == len(t["id"]) - 1 for t in tags)


def weighing(weights: list[str], *, in_predicate: bool = False) -> Edit:
    """The kiosk's log with a column of weights."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        place = 0
        for name in ("log_1.csv", "log_2.csv"):
            header, *rows = (raw / name).read_text().splitlines()
            lines = [f"{header},w"]
            for row in rows:
                lines.append(f"{row},{weights[place % len(weights)]}")
                place += 1
            (raw / name).write_text("\n".join(lines) + "\n")
        recipe["log"]["weight"] = "w"

    return edit


def kiosk_data(folder: Path, edit: Edit) -> RunData:
    recipe, raw = kiosk(folder, edit)
    build_store(recipe, raw, folder / "store", QUIET)
    return open_data(sharded_runs.small_config(str(folder / "store"), RUN))


def losses_of(data: RunData, rows: np.ndarray, overrides: list[str] | None = None) -> tuple[float, np.ndarray]:
    """The loss of a batch and the gradient of the first tower's last layer, of a model with fixed weights."""
    config = sharded_runs.small_config(str(data.store.path), [*RUN, *(overrides or [])])
    model = meta_model(config, data).to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    loss, _ = model.train()(BatchReader(data.store, "train", data.schema, 6).read(rows))
    loss.backward()
    return float(loss.detach()), np.concatenate(
        [p.grad.flatten().numpy() for p in model.parameters() if p.grad is not None]
    )


def test_a_weight_is_worth_as_many_copies_of_the_example(tmp_path: Path) -> None:
    """The gradient of a batch is that of its examples, each times its weight over the mean weight."""
    data = kiosk_data(tmp_path / "weighed", weighing(["1", "3", "0", "2"]))
    store = data.store
    weight_N = store.examples("train").weight_N
    assert weight_N is not None and weight_N.dtype == np.float32
    assert store.mean_weight == pytest.approx(weight_N.mean())
    assert set(weight_N.tolist()) == {0.0, 1.0, 2.0, 3.0}
    rows = np.arange(8)
    each = [losses_of(data, np.array([row])) for row in rows]
    loss, gradient = losses_of(data, rows)
    assert loss == pytest.approx(np.mean([one for one, _ in each]), rel=1e-5)
    np.testing.assert_allclose(gradient, np.mean([g for _, g in each], axis=0), atol=1e-6)
    plain = kiosk_data(tmp_path / "plain", lambda raw, recipe: None)
    unweighed = [losses_of(plain, np.array([row]))[0] for row in rows]
    for row in rows:
        assert each[row][0] == pytest.approx(unweighed[row] * weight_N[row] / weight_N.mean(), rel=1e-5, abs=1e-7)


def test_equal_weights_change_nothing(tmp_path: Path) -> None:
    """Whatever they are: the learning rate keeps its meaning. Scoring does not weigh at all."""
    equal = kiosk_data(tmp_path / "equal", weighing(["2.5"]))
    plain = kiosk_data(tmp_path / "plain", lambda raw, recipe: None)
    rows = np.arange(10)
    (a, gradient_a), (b, gradient_b) = losses_of(equal, rows), losses_of(plain, rows)
    assert a == pytest.approx(b, rel=1e-6)
    np.testing.assert_allclose(gradient_a, gradient_b, atol=1e-6)
    padded = BatchReader(equal.store, "valid", equal.schema, 5).read(np.array([0, 1, -1]))
    assert padded.weight_B.tolist() == [1, 1, 0]
    assert padded.loss_weight_B is not None and padded.loss_weight_B.tolist() == [1, 1, 0]


@pytest.mark.parametrize("bad", ["", "-1", "nan", "inf", "heavy"])
def test_a_weight_that_is_none_makes_a_bad_row(tmp_path: Path, bad: str) -> None:
    recipe, raw = kiosk(tmp_path, weighing(["1", bad]))
    with pytest.raises(UserError, match="15 of 30 rows are bad"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_weights_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, weighing(["0"]))
    with pytest.raises(UserError, match=r"log\.weight = 'w': is 0 for every training example"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def further(name: str, lines: list[str], **keys: Any) -> Edit:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        (raw / f"{name}.csv").write_text("\n".join(["user,item,time,click,page,mark", *lines]) + "\n")
        recipe.setdefault("further_tests", []).append({"name": name, "files": [f"{name}.csv"], **keys})

    return edit


DAY_S = 86_400
RANDOM = [f"{k % 3},{(k * 5) % 4},{k * DAY_S // 7},{k % 2},{k % 3},b" for k in range(21)]


def test_a_further_test_sees_the_log_and_nothing_sees_it(tmp_path: Path) -> None:
    """All else of the store is what it is without it; its histories are counted by hand."""
    plain = kiosk_data(tmp_path / "plain", lambda raw, recipe: None).store
    store = kiosk_data(tmp_path / "further", further("test_random", RANDOM)).store
    assert store.splits == ("train", "valid", "test", "test_random") and plain.further_tests == ()
    hashes = [{n: f["sha256"] for n, f in s.manifest["files"].items()} for s in (plain, store)]
    assert hashes[1].pop("examples/test_random.arrow") and hashes[0] == hashes[1]
    examples, log = store.examples("test_random"), [(k % 3, k * DAY_S // 10, k % 2) for k in range(30)]
    assert len(examples) == 21 == store.num_examples("test_random")
    for row in range(21):
        user, time = int(examples.user_N[row]), int(examples.time_N[row])
        clicks = sum(click and u == user and t < time for u, t, click in log)
        assert examples.seen["click"][row] == clicks
    assert "weight" not in read_arrow(store.path / "examples" / "test_random.arrow").schema.names
    assert as_numpy(read_arrow(store.path / "examples" / "test_random.arrow"), "label_click").sum() == 10
    with pytest.raises(UserError, match="split 'test_randm': is one of train, valid, test, test_random"):
        store.examples("test_randm")


def test_a_further_test_may_keep_to_the_test_window(tmp_path: Path) -> None:
    store = kiosk_data(tmp_path, further("test_late", RANDOM, within_test=True)).store
    times = store.examples("test_late").time_N
    assert len(times) == sum(2 * DAY_S <= int(line.split(",")[2]) < 3 * DAY_S for line in RANDOM)


WRONG = {
    "a name": ({"name": "random"}, "test_"),
    "no such file": ({"files": ["nothing.csv"]}, "no such file"),
    "twice": ({}, "further test 'test_random' is declared 2 times"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_further_test_that_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    keys, said = WRONG[case]

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        further("test_random", RANDOM)(raw, recipe)
        recipe["further_tests"] += [recipe["further_tests"][0]] if not keys else []
        recipe["further_tests"][0] |= keys

    with pytest.raises(UserError, match=said):
        recipe, raw = kiosk(tmp_path, edit)
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_an_empty_further_test_is_refused(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, further("test_none", RANDOM[:1], within_test=True))
    with pytest.raises(UserError, match="falls into test_none"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def cli(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run([sys.executable, "-m", "infnet_rec.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_train_and_eval_report_further_tests(tmp_path: Path) -> None:
    """By hand from the predictions that were kept; examples that weigh, and tokens that are averaged, among them."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        weighing(["1", "2"])(raw, recipe)
        further("test_random", [f"{line},1" for line in RANDOM])(raw, recipe)
        (raw / "test_random.csv").write_text((raw / "test_random.csv").read_text().replace("page,mark", "page,mark,w"))
        recipe["features"] += [{"side": "context", "encoding": "multi", "columns": ["mark"], "name": "marks"}]
        recipe["sequences"]["attributes"] += ["marks"]

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    config, run = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(f'[data]\nstore = "{tmp_path / "store"}"\n[model]\nwidth = 4\n[train]\nglobal_batch_size = 4\n')
    said = cli("train", str(config), f"--run-dir={run}", "--set=train.test=keep")
    assert "test_random" in said
    result = json.loads((run / "result.json").read_text())
    with np.load(run / "predictions-test_random.npz") as kept:
        logits, labels = kept["logits"][:, 0].astype(np.float64), kept["labels"][:, 0]
    assert len(logits) == 21
    pairs = [(a > b) + (a == b) / 2 for a in logits[labels == 1] for b in logits[labels == 0]]
    assert result["metrics"]["test_random"]["click"]["auc"] == pytest.approx(np.mean(pairs), abs=1e-6)
    again = json.loads(cli("eval", str(run), "--split", "test_random", "--json"))
    for name in ("auc", "log_loss"):
        assert again["metrics"]["click"][name] == pytest.approx(
            result["metrics"]["test_random"]["click"][name], abs=1e-6
        )
    cli("data", "show", str(tmp_path / "store"), "--split", "test_random")
    cli("data", "stats", str(tmp_path / "store"))
    cli("plan", str(config), "-j", "1x2", "--hardware", "h100")
