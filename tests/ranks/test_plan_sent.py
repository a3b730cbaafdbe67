"""Bytes between ranks: what a plan says against what two ranks hand to their collectives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infnet_rec.benchmark.exchange import Exchange
from infnet_rec.config.load import load_config
from infnet_rec.data.run_data import open_data
from infnet_rec.planner.plan import TablePlan
from infnet_rec.planner.run_plan import open_source, plan_request, run_cluster
from infnet_rec.planner.step_time import traffic_bytes
from infnet_rec.trainer.build import shard_model, train_loader
from rank_pair import RankPair
from sharded_runs import world_of

SMALL = Path(__file__).parents[1] / "small.toml"


def exchanged(rank: int, world_size: int, store: str, overrides: list[str]) -> Any:
    """Bytes that this rank sends for one batch: of bags and events, in the forward and in the backward pass."""
    config = load_config(SMALL, [f"data.store={store}", *overrides])
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    batch = next(train_loader(config, data, world).batches(0, 1))
    module: Any = sharded.model.module
    found = {}
    for name, ids in (("bags", batch.categorical), ("events", batch.sequences)):
        with Exchange(rank, world_size) as there:
            out = getattr(module, name)(ids)
            out = out.wait() if hasattr(out, "wait") else out
            values = [out.values()] if name == "bags" else [part.values() for part in out.values()]
        with Exchange(rank, world_size) as back:
            sum(value.sum() for value in values).backward()
        found[name] = (there.sent_bytes, back.sent_bytes)
    distinct = dict(zip(batch.sequences.keys(), batch.sequences.length_per_key(), strict=True))
    return found, distinct, sharded.plan.tables if rank == 0 else None, run_cluster(config, world)


@pytest.mark.parametrize("way", ["row_wise", "table_wise"])
def test_two_ranks_send_what_a_plan_says(way: str, ranks: RankPair, small_store: Path) -> None:
    rules = f'[{{match = "*", sharding = "table_wise"}}, {{match = "*_id", sharding = "{way}"}}]'
    overrides = [f"sharding.tables={rules}", "train.global_batch_size=128"]
    answers = ranks(exchanged, str(small_store), overrides)
    (_, _, planned, cluster), _ = answers
    config = load_config(SMALL, [f"data.store={small_store}", *overrides])
    request = plan_request(config, open_source(config).data(config), cluster)
    tables = [TablePlan(*(getattr(t, k) for k in TablePlan.__dataclass_fields__)) for t in planned]
    traffic = dict(request.workload.traffic)
    for name in request.shape.distinct:
        # Of this batch, not of the usual one.
        mean = sum(distinct[name] for _, distinct, _, _ in answers) / 2 / 64
        traffic[name] = replace(traffic[name], mean_lookups=(mean,))
    for collection in ("bags", "events"):
        mine = [table for table in tables if table.collection == collection]
        sent = traffic_bytes(mine, traffic, cluster, local_batch_size=64, dense_gradient_bytes=0, value_bytes=4)
        forward = sum(found[collection][0] for found, *_ in answers)
        backward = sum(found[collection][1] for found, *_ in answers)
        # Ids go before the embeddings come back; splits of a few numbers each are not in the plan.
        assert sent.id_bytes + sent.embedding_bytes == pytest.approx(forward, rel=0.05), collection
        # Of an all-gather, which row-wise bags do, `Exchange` counts half of what two ranks send.
        assert sent.gradient_bytes == pytest.approx(backward, rel=0.03), collection
