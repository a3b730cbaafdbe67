"""What is said of ranks that differ, and of hosts that have too little: functions of what ranks said, without ranks."""

from pathlib import Path

import pytest

from infnet_rec.data.store import Store
from infnet_rec.diagnostics.agreement import NOTHING, Place, code, digest, disagreements, ranks_in_words, store_fault
from infnet_rec.diagnostics.doctor import Check
from infnet_rec.diagnostics.doctor_ranks import merged, same
from infnet_rec.diagnostics.exchange import ExchangeTimes, offset_s
from infnet_rec.diagnostics.memory import Space, check_memory, size_in_words
from infnet_rec.diagnostics.preflight import facts_json, read, refuse_preflight, sum_up, written
from infnet_rec.diagnostics.rank_checks import (
    RankFacts,
    check_all,
    check_clocks,
    check_exchange,
    check_files,
    check_gpus_alike,
    check_locked_memory,
    check_shared_memory,
    clock_bound_s,
    spaces_of,
    times_of,
)
from infnet_rec.errors import UserError
from infnet_rec.planner.plan import RankLoad, RankMemory, Times
from infnet_rec.planner.plan_file import Fingerprint, PlanFile, WorldPrint
from sharded_runs import world_of

GIB = 2**30
A, B = Place(0, "a"), Place(1, "b")
ALIKE = {
    "config": {"train.seed": "1", "model.width": "16"},
    "code": {"infnet_rec/batch.py": "0a", "infnet_rec/schema.py": "0b"},
    "store": {"manifest": "f0"},
    "versions": {"torch": "2.13.0", "python": "3.11"},
}


def rank_of(rank: int, **changes: object) -> RankFacts:
    """A sound CPU rank on host a."""
    sound = RankFacts(
        rank=rank,
        host="a",
        host_key="a",
        gpu=None,
        host_free_bytes=16 * GIB,
        gpu_free_bytes=0,
        num_files=20,
        max_files=1024,
        locked_bytes=None,
        shared_memory_bytes=2 * GIB,
        network="gloo over eth0",
        infiniband=False,
        meetings=((10.0, 10.002), (11.0, 11.004)),
        sent=(ExchangeTimes(1024, (2e-4, 3e-4)), ExchangeTimes(4 << 20, (4e-3, 2e-3))),
    )
    return sound.model_copy(update=changes)


@pytest.mark.parametrize(
    ("aspect", "key", "value", "words"),
    [
        ("config", "train.seed", "2", "train.seed is 1 on rank 0 (host a) and 2 on rank 1 (host b)"),
        ("code", "infnet_rec/batch.py", "1c", "infnet_rec/batch.py is 0a on rank 0 (host a) and 1c on rank 1 (host b)"),
        ("store", "manifest", "f1", "manifest is f0 on rank 0 (host a) and f1 on rank 1 (host b)"),
        ("versions", "torch", "2.11.0", "torch is 2.13.0 on rank 0 (host a) and 2.11.0 on rank 1 (host b)"),
        ("code", "new.py", "1c", f"new.py is {NOTHING} on rank 0 (host a) and 1c on rank 1 (host b)"),
    ],
)
def test_a_disagreement_names_key_ranks_hosts_and_both_values(aspect: str, key: str, value: str, words: str) -> None:
    other = ALIKE | {aspect: ALIKE[aspect] | {key: value}}
    (check,) = disagreements([A, B], [ALIKE, other])
    assert (check.name, check.found, check.sound) == (aspect, words, False)
    with pytest.raises(UserError) as caught:
        refuse_preflight([check])
    assert str(caught.value) == f"{aspect}: {words}; {check.remedy}" and check.remedy


def test_equal_ranks_do_not_disagree() -> None:
    assert disagreements([A, B], [ALIKE, ALIKE]) == []
    refuse_preflight([])


def test_of_many_differences_the_first_are_named_and_all_aspects_are_said_at_once() -> None:
    other = {aspect: dict.fromkeys(values, "x") for aspect, values in ALIKE.items()}
    other["code"] |= {f"infnet_rec/{letter}.py": "y" for letter in "cdef"}
    checks = disagreements([A, B], [ALIKE, other])
    assert [check.name for check in checks] == list(ALIKE)
    assert checks[1].found.count(" is ") == 3 and checks[1].found.endswith("; and 3 more")
    with pytest.raises(UserError, match=r"4 faults before the start\n  config: model\.width is 16 on rank 0"):
        refuse_preflight(checks)


def test_ranks_with_one_value_are_named_together() -> None:
    places = [Place(rank, "abcde"[rank // 2]) for rank in range(10)]
    other = ALIKE | {"store": {"manifest": "f1"}}
    (check,) = disagreements(places, [other if rank == 5 else ALIKE for rank in range(10)])
    assert check.found == "manifest is f0 on ranks 0-4, 6-9 (hosts a, b, c and 2 more) and f1 on rank 5 (host c)"
    assert ranks_in_words([Place(rank, "a") for rank in (0, 2, 4, 6)]) == "ranks 0, 2, 4, ... (host a)"


def test_the_hash_of_code_is_of_every_source_file(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "room").mkdir(parents=True)
    for name in ("__init__.py", "room/loop.py", "notes.txt"):
        (package / name).write_text("x = 1\n")
    before = code(package)
    assert set(before) == {"package/__init__.py", "package/room/loop.py"}
    (package / "room" / "loop.py").write_text("x = 2\n")
    after = code(package)
    assert after["package/__init__.py"] == before["package/__init__.py"]
    assert after["package/room/loop.py"] != before["package/room/loop.py"] and digest(after) != digest(before)


def test_a_store_that_was_cut_or_lacks_a_file_is_found_by_its_lengths(tmp_path: Path) -> None:
    (tmp_path / "users.arrow").write_bytes(b"12345678")
    manifest = {"files": {"users.arrow": {"bytes": 8}, "vocab/x.arrow": {"bytes": 1}}}
    store = Store.__new__(Store)
    store.path, store.manifest = tmp_path, manifest
    assert store_fault(store) == f"{tmp_path}/vocab/x.arrow is missing, and its manifest says 1 bytes"
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "x.arrow").write_bytes(b"1")
    assert store_fault(store) is None
    (tmp_path / "users.arrow").write_bytes(b"1234")
    assert store_fault(store) == f"{tmp_path}/users.arrow is 4 bytes long, and its manifest says 8 bytes"


def test_clocks_are_bounded_by_what_every_meeting_allows() -> None:
    ours = [(10.0, 10.5), (11.0, 11.25)]
    assert offset_s(ours, ours) == (-0.25, 0.25)
    # A clock that is 100 s ahead, of a rank that came last to the first meeting.
    theirs = [(110.25, 110.5), (111.0, 111.25)]
    least, most = offset_s(ours, theirs)
    assert least <= 100.0 <= most and (least, most) == (99.75, 100.25)
    ranks = [rank_of(0, meetings=ours), rank_of(1, host="b", meetings=theirs), rank_of(2, meetings=ours)]
    check = check_clocks(ranks)
    assert check.found == "rank 1 (host b): 100.0 s ahead of rank 0" and check.state == "warning" and check.sound
    behind = check_clocks([rank_of(0, meetings=theirs), rank_of(1, host="b", meetings=ours)])
    assert behind.found == "rank 1 (host b): 100.0 s behind rank 0"
    assert check_clocks([ranks[0], ranks[2]]) == Check("clocks", "within 250 ms")
    assert clock_bound_s([ranks[0], ranks[2]]) == 0.25


def test_an_exchange_takes_as_long_as_its_slowest_rank() -> None:
    slow = rank_of(1, sent=(ExchangeTimes(1024, (1e-4, 5e-4)), ExchangeTimes(4 << 20, (1e-3, 8e-3))))
    small, large = times_of([rank_of(0), slow])
    assert (small.best_s, large.best_s) == (2e-4, 4e-3)
    assert (large.rank_bytes, large.sent_bytes) == (4 << 20, 2 << 20)
    found = check_exchange([rank_of(0), slow]).found
    assert found == "gloo over eth0: 0.52 GB/s a rank, 4.0 ms at 4 MiB; 200 us at 1 KiB; measured"
    other = rank_of(1, network="gloo over ib0")
    assert check_exchange([rank_of(0), other]).found.startswith("gloo over eth0 and gloo over ib0: ")


def test_tables_beyond_what_is_free_are_a_fault_and_little_room_is_a_warning() -> None:
    roomy = Space("host", (A,), 100 * GIB, 10 * GIB, 5 * GIB)
    tight = Space("host", (B, Place(2, "b")), 20 * GIB, 16 * GIB, 2 * GIB)
    short = Space("GPU", (Place(3, "c"),), 10 * GIB, 11 * GIB, 0)
    assert check_memory([roomy], planned=True).found == (
        "10.0 GiB of tables by the plan, 100.0 GiB of host memory free on rank 0 (host a)"
    )
    warned = check_memory([roomy, tight], planned=True)
    assert warned.state == "warning" and "20.0 GiB of host memory free on ranks 1-2 (host b)" in warned.found
    refused = check_memory([roomy, tight, short], planned=True)
    assert refused.state == "fault"
    assert refused.found == "11.0 GiB of tables by the plan, 10.0 GiB of GPU memory free on rank 3 (host c)"
    free = check_memory([Space("host", (A,), 9 * GIB), Space("host", (B,), 8 * GIB)], planned=False)
    assert free == Check("memory", "8.0 GiB of host memory free on rank 1 (host b), the tightest")


def plan_of(loads: list[RankMemory], *, hbm: bool, replica_groups: int = 1) -> PlanFile:
    """As far as memory goes."""
    none = RankMemory()
    ranks = tuple(
        RankLoad(rank, 1, load if hbm else none, none if hbm else load, Times(), 0, 0)
        for rank, load in enumerate(loads)
    )
    world = WorldPrint(num_nodes=1, ranks_per_node=len(loads) * replica_groups, replica_groups=replica_groups)
    return PlanFile.model_construct(ranks=ranks, fingerprint=Fingerprint.model_construct(world=world))


def test_ranks_of_a_host_share_its_memory_and_a_gpu_is_its_rank_s_own() -> None:
    loads = [
        RankMemory(weight_bytes=6 * GIB, optimizer_bytes=GIB, buffer_bytes=2 * GIB),
        RankMemory(weight_bytes=3 * GIB),
    ]
    ranks = [rank_of(0), rank_of(1, host_free_bytes=9 * GIB)]
    (space,) = spaces_of(ranks, plan_of(loads, hbm=False))
    assert (space.table_bytes, space.buffer_bytes, space.free_bytes) == (10 * GIB, 2 * GIB, 9 * GIB)
    assert next(c for c in check_all(ranks, plan_of(loads, hbm=False)) if c.name == "memory").state == "fault"
    apart = [rank_of(0), rank_of(1, host="b", host_key="b", host_free_bytes=9 * GIB)]
    assert [s.table_bytes for s in spaces_of(apart, plan_of(loads, hbm=False))] == [7 * GIB, 3 * GIB]
    on_gpus = [rank_of(r, gpu="H100", gpu_free_bytes=(8 - r) * GIB) for r in (0, 1)]
    host, first, second = spaces_of(on_gpus, plan_of(loads, hbm=True))
    assert (host.what, host.table_bytes) == ("host", 0)
    assert [(s.what, s.table_bytes, s.free_bytes) for s in (first, second)] == [
        ("GPU", 7 * GIB, 8 * GIB),
        ("GPU", 3 * GIB, 7 * GIB),
    ]


def test_a_plan_with_replica_groups_is_that_of_each_group() -> None:
    plan = plan_of([RankMemory(weight_bytes=1), RankMemory(weight_bytes=2)], hbm=True, replica_groups=2)
    ranks = [rank_of(r, gpu="H100", gpu_free_bytes=GIB) for r in range(4)]
    assert [space.table_bytes for space in spaces_of(ranks, plan)[1:]] == [1, 1, 2, 2]


def test_too_few_open_files_for_so_many_ranks_are_a_fault() -> None:
    assert check_files([rank_of(0), rank_of(1)]) == Check("open files", "1,024 allowed")
    assert check_files([rank_of(0, max_files=None)]).found == "no limit"
    check = check_files([rank_of(r, host=f"h{r // 512}", max_files=512 if r == 700 else 4096) for r in range(1000)])
    assert check.found == "rank 700 (host h1): 512 allowed, and 1,000 ranks need 1,147"
    assert check.state == "fault" and check.remedy.startswith("ulimit -n 65536")


def test_shared_and_locked_memory_matter_to_gpus() -> None:
    little = {"shared_memory_bytes": 64 << 20, "locked_bytes": 8 << 20}
    on_cpu = [rank_of(0, **little), rank_of(1, **little)]
    assert check_shared_memory(on_cpu) == Check("shared memory", "64 MiB free")
    assert check_locked_memory(on_cpu).state == "ok" and "8 MiB allowed" in check_locked_memory(on_cpu).found
    assert check_locked_memory([rank_of(0)]).found == "no limit"
    on_gpu = [rank_of(0, gpu="H100"), rank_of(1, host="b", gpu="H100", infiniband=True, **little)]
    assert check_shared_memory(on_gpu).found == "rank 1 (host b): 64 MiB free"
    assert check_shared_memory(on_gpu).state == "warning"
    assert check_locked_memory(on_gpu).found == "rank 1 (host b): 8 MiB allowed"
    assert check_locked_memory(on_gpu).state == "warning"
    assert check_shared_memory([rank_of(0, shared_memory_bytes=None)]).found == "none on this system"
    assert check_gpus_alike(on_gpu) == Check("GPUs", "2 x H100")
    mixed = check_gpus_alike([on_gpu[0], rank_of(1, host="b", gpu="L20")])
    assert mixed.found == "H100 on rank 0 (host a); L20 on rank 1 (host b)" and mixed.state == "warning"


def test_one_line_and_one_object_sum_it_up() -> None:
    line = sum_up([rank_of(0), rank_of(1)], plan_of([RankMemory(weight_bytes=GIB), RankMemory()], hbm=False))
    assert line == (
        "2 ranks on 1 host agree; gloo over eth0, all-to-all 1.0 GB/s a rank; clocks within 2.0 ms; "
        "tables 1.0 GiB of 16.0 GiB free"
    )
    alone = sum_up([rank_of(0, meetings=(), sent=())], plan_of([RankMemory(weight_bytes=GIB)], hbm=False))
    assert alone == "1 rank; tables 1.0 GiB of 16.0 GiB free"
    facts = facts_json([rank_of(0), rank_of(1, host="b")])
    assert facts["ranks_by_host"] == {"a": 1, "b": 1} and facts["all_to_all"][1]["best_s"] == 2e-3


def test_checks_travel_between_ranks() -> None:
    checks = [Check("a", "b"), Check("c", "d", "e", "warning")]
    assert read(written(checks)) == checks
    assert [check.state for check in checks] == ["ok", "warning"]
    refuse_preflight(checks)


def test_machines_that_found_the_same_have_one_row_and_what_is_wrong_says_where() -> None:
    sound, wrong = Check("urllib3", "1.26"), Check("urllib3", "2.8", "pip install 'urllib3<1.27'")
    assert merged([A, B, Place(2, "b")], [[sound], [], [sound]]) == [sound]
    (row,) = merged([A, B], [[sound], [wrong]])
    assert row.found == "rank 1 (host b): 2.8" and row.remedy == wrong.remedy
    (row,) = merged([A, B], [[Check("disk", "9 GiB free")], [Check("disk", "5 GiB free")]])
    assert row == Check("disk", "9 GiB free on rank 0 (host a); 5 GiB free on rank 1 (host b)")


def test_what_ranks_agree_on_is_said_with_its_hash() -> None:
    fault = Check("config", "train.seed is 1 on rank 0 (host a) and 2 on rank 1 (host b)", "use one")
    rows = same(ALIKE, [fault], world_of(0, 2))
    assert Check("same store", f"2 ranks agree, {digest(ALIKE['store'])}") in rows
    assert [row.name for row in rows if not row.sound] == ["same config"] and len(rows) == 4
    assert same(ALIKE, [], world_of(0, 1)) == []


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(3, "3 bytes"), (1000, "1.0 KiB"), (4 << 20, "4 MiB"), (1.5 * 2**20, "1.5 MiB"), (1.5 * GIB, "1.5 GiB")],
)
def test_sizes_for_people(num_bytes: float, words: str) -> None:
    assert size_in_words(num_bytes) == words
