"""Managed tables: rows are given to ids as they come, on two ranks as hand-written rules say."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

import managed_runs
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.models.dynamic_tables import EVICTION, CountingTable
from infnet_rec.planner.run_plan import check_run
from infnet_rec.schema import Eviction
from infnet_rec.trainer.build import train_loader
from managed_runs import NUM_IDS, managed
from rank_pair import RankPair
from sharded_runs import small_config, world_of

TABLE = "video_hash"
WEIGHT = "managed._embedding_module.embedding_bags.video_hash.weight"
PLAIN_WEIGHT = "bags.embedding_bags.video_hash.weight"


@pytest.fixture(scope="module")
def store(small_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small store with hashed ids."""
    out = tmp_path_factory.mktemp("hashed") / "store"
    managed_runs.build_hashed(small_raw, out)
    return str(out)


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(world_of(0, 1)):
        yield


def ids_of_steps(store: str, overrides: list[str], num_steps: int) -> list[list[int]]:
    """The videos' hashes in each global batch."""
    config = small_config(store, overrides)
    batches = train_loader(config, open_data(config), world_of(0, 1)).batches(0, num_steps)
    return [batch.managed[TABLE].values().tolist() for batch in batches if batch.managed is not None]


def keepers(steps: list[list[int]], num_rows: int, interval: int, eviction: str) -> set[int]:
    """Ids that have a row in the end, by the documented rules; the last row is nobody's."""
    count: Counter[int] = Counter()
    last: dict[int, int] = {}
    kept: list[int] = []
    for start in range(0, len(steps) - interval + 1, interval):
        now, seen = start + interval, Counter[int]()
        for step in range(start, now):
            seen.update(steps[step])
            last |= dict.fromkeys(steps[step], step + 1)
        # An id that has no row starts to count anew each time.
        count = Counter({i: count[i] for i in kept}) + seen

        age = {i: now - last[i] + 1 for i in last}
        score = {i: {"lfu": n, "lru": -age[i], "distance_lfu": n / age[i]}[eviction] for i, n in count.items()}
        # Of equals those stay that have a row, then those seen more often lately, then small ids.
        new = sorted(set(seen) - set(kept), key=lambda i: (-seen[i], i))
        kept = sorted([*sorted(kept), *new], key=score.__getitem__, reverse=True)[: num_rows - 1]
    return set(kept)


@pytest.mark.slow(smoke=["lru"])
@pytest.mark.parametrize("eviction", ["lfu", "lru", "distance_lfu"])
def test_a_full_table_keeps_whom_the_rules_say(eviction: str, ranks: RankPair, store: str) -> None:
    """Each rank manages its range of hashes; ids that come in later intervals displace others."""
    overrides, num_steps = managed(64, eviction=eviction, interval=3), 12
    both = ranks(managed_runs.train_managed, store, overrides, num_steps)
    steps = ids_of_steps(store, overrides, num_steps)
    early = {i for step in steps[:3] for i in step}
    for rank, result in enumerate(both):
        low, high = rank * NUM_IDS // 2, (rank + 1) * NUM_IDS // 2
        mine = [[i for i in step if low <= i < high] for step in steps]
        rows_of_ids = result["kept"][TABLE]
        assert len({i for step in mine for i in step}) > 2 * 32, "the table must be too small"
        assert set(rows_of_ids) == keepers(mine, 32, 3, eviction)
        assert set(rows_of_ids) - early, "nobody who came later has a row"
        rows = list(rows_of_ids.values())
        assert len(set(rows)) == len(rows) and set(rows) <= set(range(32 * rank, 32 * rank + 31))


def test_with_room_for_all_it_trains_as_a_plain_table(ranks: RankPair, alone: None, store: str) -> None:
    """Two ranks with a managed table, and one with a plain table of all hashes: the same losses and weights.

    An id has its row from its first step on (an interval of one step), and initial weights hardly differ from zero.
    """
    common, num_steps = ["data.profile='all'", "model.table_std=1e-9"], 10
    both = ranks(managed_runs.train_managed, store, [*common, *managed(NUM_IDS, interval=1)], num_steps)
    plain = managed_runs.train_managed(0, 1, store, common, num_steps)
    np.testing.assert_allclose(both[0]["losses"], plain["losses"], atol=1e-5, rtol=0)
    whole = plain["tables"][PLAIN_WEIGHT][2]
    num_kept = 0
    for result in both:
        first_row, _, values = result["tables"][WEIGHT]
        kept = result["kept"][TABLE]
        num_kept += len(kept)
        mine = np.stack([values[row - first_row] for row in kept.values()])
        np.testing.assert_allclose(mine, whole[list(kept)], atol=2e-5, rtol=0)
        assert np.abs(mine).max() > 1e-3
    assert num_kept == len({i for step in ids_of_steps(store, managed(8), num_steps) for i in step})


@pytest.mark.slow
def test_rows_that_change_hands_begin_anew(alone: None, store: str) -> None:
    """Their weights are new draws and their optimizer's state is zero; others are left alone."""
    config, data, world, sharded = managed_runs.open_run(0, 1, store, managed(16, interval=2))
    managed_runs.steps(config, data, world, sharded, 0, 3)
    collection: Any = sharded.model.module.managed
    kernel, _ = collection._table_to_tbe_and_index[TABLE]
    (state,) = kernel.split_optimizer_states()[0]
    before, momentum = managed_runs.tables_of(sharded)[WEIGHT][2], state.numpy().copy()
    assert (momentum > 0).sum() > 8 and np.abs(before).max() > 0.05
    collection._evict({TABLE: torch.tensor([3, 5])})
    after = managed_runs.tables_of(sharded)[WEIGHT][2]
    assert not state.numpy()[[3, 5]].any() and 0 < np.abs(after[[3, 5]]).max() < 5 * config.model.table_std
    others = [row for row in range(16) if row not in (3, 5)]
    assert np.array_equal(after[others], before[others]) and np.array_equal(state.numpy()[others], momentum[others])


@pytest.fixture(scope="module")
def saved(ranks: RankPair, store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """A checkpoint of two ranks after 8 steps, and how they went on."""
    folder = str(tmp_path_factory.mktemp("managed") / "checkpoints")
    return folder, ranks(managed_runs.save_managed, store, managed(64), folder, 8, 6)


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(ranks: RankPair, store: str, saved: tuple[str, list[dict[str, Any]]]) -> None:
    """Saved where an interval ends; the next one gives the same rows to the same ids, with the same weights."""
    folder, unbroken = saved
    again = ranks(managed_runs.go_on_managed, store, managed(64), folder, 8, 6)
    for rank in range(2):
        assert np.array_equal(again[rank]["losses"], unbroken[rank]["losses"])
        for when in ("saved", "end"):
            assert again[rank][when]["kept"] == unbroken[rank][when]["kept"]
            np.testing.assert_array_equal(again[rank][when]["logits"], unbroken[rank][when]["logits"])
        for name, (_, _, values) in unbroken[rank]["end"]["tables"].items():
            assert np.array_equal(again[rank]["end"]["tables"][name][2], values), name
        assert unbroken[rank]["saved"]["kept"] != unbroken[rank]["end"]["kept"]


def test_fewer_ranks_find_every_id_where_it_was(
    alone: None, store: str, saved: tuple[str, list[dict[str, Any]]]
) -> None:
    """One rank joins the parts of two."""
    folder, two = saved
    one = managed_runs.go_on_managed(0, 1, store, managed(64), folder, 8, 0)
    assert one["saved"]["kept"][TABLE] == {**two[0]["saved"]["kept"][TABLE], **two[1]["saved"]["kept"][TABLE]}


def test_more_ranks_are_refused(ranks: RankPair, alone: None, store: str, tmp_path: Path) -> None:
    """TorchRec would look for ids in parts that do not have them."""
    folder = str(tmp_path / "checkpoints")
    managed_runs.save_managed(0, 1, store, managed(64), folder, 4, 0)
    for result in ranks(managed_runs.go_on_managed, store, managed(64), folder, 4, 0):
        assert "managed tables in 1 parts, which 2 ranks cannot share" in result["fault"]


FAULTS = {
    "rows": (managed(0), "model.tables.video_hash.rows"),
    "interval": (managed(8, interval=0), "model.tables.video_hash.interval_steps"),
    "eviction": (managed(8, eviction="fifo"), "model.tables.video_hash.eviction"),
    "unknown": (
        managed(8, table="video_hsh"),
        "model.tables.video_hsh: the run reads no such table (did you mean 'video_hash'?)",
    ),
    "not hashed": (managed(8, table="user_id"), "model.tables.user_id: feature user_id has encoding 'index'"),
    "sequence": (managed(8, table="video_id"), "model.tables.video_id: sequence seq_click_video_id reads it"),
    "optimizer": (managed(8, "train.sparse.optimizer='adagrad'"), "train.sparse.optimizer = 'adagrad'"),
    "fresh": (managed(8, "train.sparse.each_epoch='fresh'"), 'train.sparse.each_epoch = "fresh"'),
    "ranks": (managed(9), "table 'video_hash': is managed and has 9 rows for 2 ranks"),
    "few rows": (managed(2), "table 'video_hash': is managed and has 2 rows for 2 ranks"),
    "sharding": (
        managed(8, "sharding.tables=[{match='video_hash', sharding='table_wise'}]"),
        "table 'video_hash': table_wise cannot shard a managed table on cpu; it can be row_wise",
    ),
    "precision": (
        managed(8, "sharding.tables=[{match='video_hash', precision='fp16'}]"),
        "sharding.tables: video_hash: precision = 'fp16': the table is managed",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, store: str) -> None:
    """What cannot be is refused before any process group, by name."""
    overrides, message = FAULTS[name]
    with pytest.raises(UserError) as caught:
        config = small_config(store, overrides)
        check_run(config, open_data(config), world_of(0, 2))
    assert message in str(caught.value)


def test_a_managed_table_gets_its_ids_of_the_batch_apart(store: str) -> None:
    """The same hashes as without it, and the plain features keep theirs."""
    found = []
    for overrides in (["data.profile='all'"], managed(8)):
        config = small_config(store, overrides)
        (batch,) = train_loader(config, open_data(config), world_of(0, 1)).batches(0, 1)
        found.append(batch)
    plain, apart = found
    assert apart.managed is not None and apart.managed.keys() == [TABLE] and plain.managed is None
    features = plain.categorical.to_dict() | {}
    assert torch.equal(apart.managed[TABLE].values(), features.pop(TABLE).values())
    assert apart.categorical.keys() == list(features)
    for name, ids in features.items():
        assert torch.equal(apart.categorical[name].values(), ids.values()), name


@pytest.mark.parametrize("eviction", EVICTION)
def test_no_id_is_missed_after_a_small_first_batch(eviction: Eviction) -> None:
    """A rank may have no id at all in its first batch, and many in the next ones."""
    cpu, ids = torch.device("cpu"), torch.arange(40) * 7
    table = CountingTable(64, cpu, EVICTION[eviction](), eviction_interval=3, input_hash_size=1000)
    for values in (ids[:0], ids[:30], ids[20:]):
        found = table({"t": JaggedTensor(values=values, lengths=torch.ones_like(values))})["t"].values()
    assert len(set(found.tolist())) == 20 and 63 not in found.tolist()
    table.eval()
    everyone = table({"t": JaggedTensor(values=ids, lengths=torch.ones_like(ids))})["t"].values().tolist()
    assert len(set(everyone)) == 40 and 63 not in everyone
