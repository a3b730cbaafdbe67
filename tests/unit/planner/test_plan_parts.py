"""What a plan rests on: ids and events of a batch, memory of the dense part, bytes between ranks; against real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from infnet_rec.batch import Batch, Repeats
from infnet_rec.config.load import load_config
from infnet_rec.config.model import model_sections
from infnet_rec.data.ingest.repeats import distinct_ids, measure_repeats
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import open_data
from infnet_rec.data.sampler import ShuffledOrder
from infnet_rec.data.store import Store
from infnet_rec.distributed.process_group import world_from_env
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.fused_attention import MAX_WIDTH, dry_run, why_eager
from infnet_rec.models.registry import table_width
from infnet_rec.planner.dense_cost import BATCHES_ON_DEVICE, TowerCost, dense_memory, planned_batch_bytes, tower_cost
from infnet_rec.planner.hardware import Cluster, load_hardware
from infnet_rec.planner.op_counter import OpCounter
from infnet_rec.planner.plan import Times
from infnet_rec.planner.step_time import all_reduce_bytes, step_time
from infnet_rec.planner.tables import meta_model
from infnet_rec.planner.workload import BatchShape, batch_shape, traffic_of, truncated_mean
from infnet_rec.trainer.build import train_loader

ROOT = Path(__file__).parents[3]
CONFIG = Path(__file__).parents[2] / "small.toml"
MANIFEST = ROOT / "configs" / "manifests" / "kuairand_27k.json"


def run(store: Path, *overrides: str) -> Any:
    config = load_config(CONFIG, [f"data.store={store}", *overrides])
    return config, open_data(config)


def shape_of(batch: Batch, schema: Any) -> BatchShape:
    """The shape that a manifest would have to give for exactly this batch."""
    num_examples = batch.lengths_FB.shape[1]
    events_F = tuple((batch.lengths_FB.sum(1) / num_examples).tolist())
    distinct = dict(zip(batch.sequences.keys(), map(float, batch.sequences.length_per_key()), strict=True))
    ids_M = tuple(n / num_examples for n in batch.categorical.length_per_key())
    assert batch.repeats is not None
    entries_per_token = batch.repeats.row_U.numel() / max(1, batch.repeats.by_row_L.numel())
    return BatchShape(
        num_examples, ids_M, events_F, events_F, {}, distinct, distinct, True, entries_per_token=entries_per_token
    )


def first_batch(config: Any, data: Any) -> Batch:
    return next(train_loader(config, data, world_from_env()).batches(0, 1))


def test_a_build_counts_what_a_batch_repeats(small_store: Path) -> None:
    store = Store(small_store)
    repeats = store.manifest["repeats"]
    assert repeats == measure_repeats(store), "counted again, it is the same"
    sample = next(s for s in repeats["samples"] if (s["num_examples"], s["sequence_length"]) == (256, 10))
    order = ShuffledOrder(store.num_examples("train"), 256, seed=0)
    batch = BatchReader(store, "train", store.schema, 10).read(order.global_batch(0))
    counts = dict.fromkeys(sample["tables"], 0)
    for feature in store.schema.shared_features:
        counts[feature.table] += 256
    for sequence, lengths_B in zip(store.schema.sequences, batch.lengths_FB, strict=True):
        counts[sequence.table] += int(lengths_B.sum())
    assert {name: table["num_tokens"] for name, table in sample["tables"].items()} == counts
    distinct = dict(zip(batch.sequences.keys(), batch.sequences.length_per_key(), strict=True))
    assert {name: table["num_distinct"] for name, table in sample["tables"].items()} == distinct
    assert sum(counts.values()) > 3 * sum(distinct.values())


def test_distinct_ids_are_those_of_the_samples_and_between_them() -> None:
    tables = [(100, 60), (400, 150), (1600, 300)]
    samples = [
        {"sequence_length": length, "tables": {"t": {"num_tokens": n * scale, "num_distinct": d * scale}}}
        for length, scale in ((10, 1), (200, 2))
        for n, d in tables
    ]
    repeats = {"samples": samples}
    for tokens, distinct in tables:
        assert distinct_ids(repeats, "t", tokens, 12) == pytest.approx(distinct)
        assert distinct_ids(repeats, "t", 2 * tokens, 150) == pytest.approx(2 * distinct)
    found = [distinct_ids(repeats, "t", n, 10) for n in (1, 5, 50, 100, 250, 900, 1600, 10_000, 1e9)]
    assert found == sorted(found) and found[0] == 1
    assert all(d <= n for d, n in zip(found, (1, 5, 50, 100, 250, 900, 1600, 10_000, 1e9), strict=True))
    # Four times the tokens, twice the ids: a root, which goes on.
    assert distinct_ids(repeats, "t", 6400, 10) == pytest.approx(600)
    assert distinct_ids(None, "t", 77, 10) == distinct_ids(repeats, "other", 77, 10) == 77


def test_truncated_means_come_from_the_manifest(small_store: Path) -> None:
    store = Store(small_store)
    for name, lengths in store.manifest["history_lengths"].items():
        seen_N = store.examples("train").seen[name].astype(np.int64)
        for length in (5, 50, 1000):
            assert truncated_mean(lengths, length) == pytest.approx(np.minimum(seen_N, length).mean())
        assert truncated_mean(lengths, 17) == pytest.approx(np.minimum(seen_N, 17).mean(), rel=0.03, abs=0.01)


def test_an_older_manifest_gives_truncated_means_by_its_percentiles() -> None:
    lengths = {"mean": 30.0, "p50": 20, "p95": 100, "max": 200}
    # By hand: half of the lengths lie evenly from 0 to 20, the next 45 % from there to 100, the rest up to 200.
    length_N = np.concatenate([np.linspace(0, 20, 50_000), np.linspace(20, 100, 45_000), np.linspace(100, 200, 5_000)])
    for most in (5, 20, 40):
        assert truncated_mean(lengths, most) == pytest.approx(np.minimum(length_N, most).mean(), rel=1e-3)
    assert truncated_mean(lengths, 1000) == 30.0, "never more than the whole mean"


def test_a_manifest_without_lengths_is_refused(small_store: Path) -> None:
    manifest = {key: value for key, value in Store(small_store).manifest.items() if key != "history_lengths"}
    with pytest.raises(UserError, match=r"history_lengths.click: missing"):
        batch_shape(manifest, Store(small_store).schema, sequence_length=10, local_batch_size=8)


def test_a_shape_is_that_of_real_batches(small_store: Path) -> None:
    config, data = run(small_store, "train.global_batch_size=512")
    loader = train_loader(config, data, world_from_env())
    batches = [batch for start in (0,) for batch in loader.batches(start, 4)]
    shape = batch_shape(data.store.manifest, data.schema, sequence_length=10, local_batch_size=512)
    tokens = np.mean([batch.spread_K.numel() for batch in batches])
    assert sum(shape.tokens.values()) == pytest.approx(tokens, rel=0.1)
    distinct = np.mean([batch.sequences.values().numel() for batch in batches])
    assert sum(shape.distinct.values()) == pytest.approx(distinct, rel=0.15)
    assert all(a <= b for a, b in zip(shape.events_F, shape.p95_events_F, strict=True))
    assert shape.repeats_are_measured
    traffic = traffic_of(
        data.store.manifest, data.schema, width=8, sequence_length=10, local_batch_size=256, world_size=2
    )
    assert traffic.keys() == {t.name for t in (*data.schema.bag_tables, *data.schema.sequence_tables)}
    assert traffic["video_id"].mean_lookups[0] * 256 < shape.distinct["video_id"]
    assert 0 < traffic["video_id"].distinct_fraction < 1


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_bytes_of_a_batch_are_exact(l2: float, small_store: Path) -> None:
    config, data = run(small_store, f"train.loss.embedding_l2={l2}" if l2 else "train.seed=0")
    batch = first_batch(config, data)
    tensors: list[Tensor] = []
    for value in (getattr(batch, name) for name in batch.__dataclass_fields__):
        if value is None:
            continue
        if isinstance(value, Repeats):
            tensors += value.tensors()
            continue
        whole = isinstance(value, KeyedJaggedTensor)
        # TorchRec works offsets out when it first needs them: one more than lengths.
        tensors += [value.values(), value.lengths(), value.offsets()[1:]] if whole else [value]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert planned_batch_bytes(data.schema, shape_of(batch, data.schema), with_rarity=l2 > 0) == pytest.approx(
        expected, abs=8
    )


def lookups_of(batch: Batch, schema: Any, width: int) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
    names = [feature.name for feature in schema.bag_features][::-1]
    bag_BX = torch.zeros(len(batch.weight_B), width * len(names), requires_grad=True)
    rows = {
        name: JaggedTensor(torch.zeros(number, width, requires_grad=True), lengths=torch.tensor([number]))
        for name, number in zip(batch.sequences.keys(), batch.sequences.length_per_key(), strict=True)
    }
    return KeyedTensor(names, [width] * len(names), bag_BX), rows


@pytest.mark.slow(smoke=["overrides2"])
@pytest.mark.parametrize(
    "overrides",
    [(), ("model.residual=none", "train.precision=bf16"), ("model.ablation=no_cross_attention",), ("model.width=32",)],
)
def test_a_few_examples_foretell_a_batch(overrides: tuple[str, ...], small_store: Path) -> None:
    config, data = run(small_store, "train.global_batch_size=512", *overrides)
    model, width = meta_model(config, data), config.model.width
    batch = first_batch(config, data)
    cost = tower_cost(model, data.schema, shape_of(batch, data.schema), width=width, on_gpu=False)
    assert next(model.tower.parameters()).is_meta
    tower, criterion = model.tower.to_empty(device="cpu"), model.criterion.to_empty(device="cpu")
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        parameter.grad = torch.zeros_like(parameter)
    bags, rows = lookups_of(batch, data.schema, width)
    with OpCounter() as ledger:
        tokens = model.assembly(bags, rows, batch.spread_K, batch.lengths_FB, repeats=batch.repeats)
        loss, _ = criterion(tower(tokens), tokens, batch)
        loss.backward()
    assert cost.peak_bytes == pytest.approx(ledger.peak_bytes, rel=0.03)
    # Examples of unlike lengths that are read together are padded a little, which fake tensors do not know.
    assert cost.flops == pytest.approx(ledger.flops, rel=0.15)
    assert cost.moved_bytes == pytest.approx(ledger.moved_bytes, rel=0.15)
    # Nor do they know the masks of chunks that are padded, some operators each.
    assert cost.num_operators == pytest.approx(ledger.num_operators, rel=0.2)


@pytest.mark.slow(only=["hstu", "dien"])
@pytest.mark.parametrize("name", sorted({*model_sections()} - {"infnet"}))
def test_every_model_has_a_cost(name: str, small_store: Path) -> None:
    overrides = ("train.global_batch_size=128", f'model={{name = "{name}"}}')
    config, data = run(small_store, *overrides)
    model, shape = meta_model(config, data), shape_of(first_batch(config, data), data.schema)
    width = table_width(config, data.schema)
    cost, on_gpu = (tower_cost(model, data.schema, shape, width=width, on_gpu=on_gpu) for on_gpu in (False, True))
    assert min(cost.peak_bytes, cost.flops, cost.moved_bytes) > 0 and cost.num_operators > 10
    assert cost == on_gpu, "only INFNet has a kernel"


def test_the_kernel_is_counted_without_running_it(small_store: Path) -> None:
    config, data = run(small_store, "train.global_batch_size=512", "model.width=32")
    model, batch = meta_model(config, data), first_batch(config, data)
    shape = shape_of(batch, data.schema)
    eager, fused = (tower_cost(model, data.schema, shape, width=32, on_gpu=on_gpu) for on_gpu in (False, True))
    # The kernel multiplies scores twice, and no empty slots.
    assert 0.7 * eager.flops < fused.flops < 1.2 * eager.flops
    assert fused.peak_bytes < 1.05 * eager.peak_bytes and fused.moved_bytes < eager.moved_bytes
    tokens = shape.local_batch_size * sum(shape.p95_events_F) * 32 * 4
    assert fused.peak_bytes > 2 * tokens, "tokens and their gradients"
    cpu = torch.device("cpu")
    with dry_run():
        assert why_eager("auto", cpu, 16) is None
        assert why_eager("auto", cpu, MAX_WIDTH + 4) is not None
    assert why_eager("auto", cpu, 16) is not None


def test_dense_memory_adds_up(small_store: Path) -> None:
    config, data = run(small_store)
    model = meta_model(config, data)
    shape = batch_shape(data.store.manifest, data.schema, sequence_length=10, local_batch_size=64)
    cost = TowerCost(1e6, 0, 0, 0)
    memory = dense_memory(model, data.schema, shape, cost, width=8, optimizer="adam", on_gpu=True)
    num_parameters = sum(p.numel() for p in model.tower.parameters())
    assert memory.parameter_bytes == memory.gradient_bytes == 4 * num_parameters
    assert memory.optimizer_bytes == 8 * num_parameters + 4 * len(list(model.tower.parameters()))
    assert memory.input_bytes == 3 * planned_batch_bytes(data.schema, shape, with_rarity=False)
    assert (
        memory.total_bytes == memory.dense_bytes + memory.working_bytes + memory.allocator_bytes + memory.library_bytes
    )
    other = dense_memory(
        model, data.schema, shape, cost, width=8, optimizer="adagrad", on_gpu=True, pipeline="prefetch_sparse_dist"
    )
    assert other.optimizer_bytes < memory.optimizer_bytes and other.input_bytes * 3 == memory.input_bytes * 4
    assert BATCHES_ON_DEVICE["sparse_dist"] == 3


def test_a_step_is_held_up_by_the_slowest_of_three() -> None:
    cluster = Cluster(load_hardware("h100"), 2, 8)
    times = Times(1.0, 2.0, 3.0, 4.0, prefetch_ms=0.5, input_ms=100.0)
    memory: Any = type("Memory", (), {"parameter_bytes": 4e6, "gradient_bytes": 4e6})()
    for cost, bound in (
        (TowerCost(0, 1e13, 1, 1), "arithmetic"),
        (TowerCost(0, 1, 1e11, 1), "memory bandwidth"),
        (TowerCost(0, 1, 1, 1e5), "launches"),
    ):
        step = step_time(cluster, times, cost, memory, "bf16")
        assert step.tower_bound == bound and step.tower_ms > 10
        assert (step.lookup_ms, step.exchange_ms) == (4.5, 6.0)
        assert step.total_ms == pytest.approx(10.5 + step.tower_ms + step.all_reduce_ms + step.optimizer_ms)
    arithmetic = [step_time(cluster, times, TowerCost(0, 1e13, 1, 1), memory, p).tower_ms for p in ("fp32", "bf16")]
    assert arithmetic[0] > 10 * arithmetic[1]
    assert all_reduce_bytes(1, 100) == 0 and all_reduce_bytes(4, 100) == 150
    # Between nodes the network is the slowest link.
    assert step.all_reduce_ms == pytest.approx(all_reduce_bytes(16, 4_000_000) / (50 * 1e6))


def test_the_manifest_of_the_real_27k_says_where_it_is_from() -> None:
    store = Store(MANIFEST)
    schema = store.profile_schema("ctx89")
    assert (len(schema.features), len(schema.sequences)) == (89, 28)
    assert {t.name: t.num_rows for t in schema.tables}["video_id"] == 32_038_725 + 2
    assert "Not measured from a build" in store.manifest["stands_in"]["note"]
    assert len(store.manifest["stands_in"]["sources"]) > 5
    shape = batch_shape(store.manifest, schema, sequence_length=50, local_batch_size=2048)
    assert not shape.repeats_are_measured
    assert sum(shape.events_F) < 28 * 50
    assert shape.distinct["tag"] == 1921 < shape.tokens["tag"], "no more distinct ids than rows"
    config = load_config(ROOT / "configs" / "kuairand_27k_h100.toml")
    assert config.data.manifest == Path("configs/manifests/kuairand_27k.json")
