"""Where a step goes, from traces made up here: interval arithmetic, CPU threads, GPU streams."""

import random
from itertools import pairwise

import pytest

from infnet_rec.benchmark.trace import (
    COMMUNICATION,
    PARTS,
    STEP,
    Span,
    difference,
    intersection,
    length,
    part_of,
    shared_out,
    spans_of,
    union,
)
from infnet_rec.benchmark.trace_parts import StepParts, device_parts, host_parts, kind_of


def test_intervals_by_hand() -> None:
    assert union([(3, 4), (0, 1), (0.5, 2), (2, 2.5), (7, 7)]) == [(0, 2.5), (3, 4)]
    assert intersection([(0, 3), (5, 8)], [(2, 6), (7, 9)]) == [(2, 3), (5, 6), (7, 8)]
    assert difference([(0, 10), (12, 13)], [(-1, 1), (3, 4), (9, 11)]) == [(1, 3), (4, 9), (12, 13)]
    assert length([(0, 2), (1, 3)]) == 3


def test_intervals_are_sets_of_instants() -> None:
    """Against whole numbers as instants."""
    draw = random.Random(0)

    def stretches() -> list[tuple[float, float]]:
        starts = [draw.randrange(40) for _ in range(draw.randrange(6))]
        return [(start, start + draw.randrange(8)) for start in starts]

    def instants(found: list[tuple[float, float]]) -> set[int]:
        return {i for start, end in found for i in range(int(start), int(end))}

    for _ in range(500):
        a, b = stretches(), stretches()
        for operation, expected in (
            (union([*a, *b]), instants(a) | instants(b)),
            (intersection(a, b), instants(a) & instants(b)),
            (difference(a, b), instants(a) - instants(b)),
        ):
            assert instants(operation) == expected and length(operation) == len(expected)
            assert all(first[1] < second[0] for first, second in pairwise(operation))


def test_an_instant_goes_to_the_first_that_claims_it() -> None:
    given = shared_out([(0, 10)], [("a", [(1, 4)]), ("b", [(3, 6)]), ("a", [(5, 7)]), ("c", [(20, 30)])])
    assert given == {"a": [(1, 4), (6, 7)], "b": [(4, 6)], "c": [], "rest": [(0, 1), (7, 10)]}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("## copy_batch_to_gpu 8 ##", "data"),
        ("## start_sparse_data_dist 7 ##", "input_all_to_all"),
        ("## FusedKJTListSplitsAwaitable wait() ##", "input_all_to_all"),
        ("[lookup]_[bags]_[table_wise]", "lookup"),
        ("[output_dist_wait]_[events]_[row_wise]", "output_all_to_all"),
        ("autograd::engine::evaluate_function: All2All_Seq_ReqBackward", "output_all_to_all"),
        ("autograd::engine::evaluate_function: torch::autograd::CppNode<SplitLookupFunction_rowwise", "table_update"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "tower_backward"),
        ("c10d::allreduce_", "dense_all_reduce"),
        ("## forward 6 ##", "tower_forward"),
        ("Optimizer.step#CombinedOptimizer.step", "optimizer"),
        ("aten::mm", None),
        ("## Request wait() ##", None),
    ],
)
def test_ranges_have_their_parts(name: str, part: str | None) -> None:
    assert part_of(name) == part


def range_(name: str, start: float, end: float, thread: int = 1, category: str = "user_annotation") -> Span:
    return Span(name, start, end, thread, category)


NODE = "autograd::engine::evaluate_function: "
# A step of 100 s: what the training thread did, and gloo's threads 8 and 9.
CPU = [
    range_(STEP, 0, 100),
    range_("infnet_rec next batch", 0, 4),
    range_("## start_sparse_data_dist 1 ##", 5, 10),
    range_("c10d::alltoall_base_", 6, 7),
    range_("## SplitsAllToAllAwaitable wait() ##", 8, 10),
    range_("gloo:all_to_all", 7, 20, 8),
    range_("## forward 0 ##", 10, 50),
    range_("[lookup]_[bags]", 12, 18),
    range_("fbgemm::split_embedding_codegen_forward_cpu", 13, 17),
    range_("[output_dist]_[bags]", 18, 20),
    range_("c10d::alltoall_base_", 19, 19.5),
    range_("gloo:all_to_all", 21, 32, 9),
    range_("## EmbeddingBagCollectionAwaitable wait() ##", 25, 35),
    range_("## Request wait() ##", 26, 33),
    range_("All2All_Pooled_Wait", 27, 33),
    range_("aten::cat", 30, 31),
    range_("## backward 0 ##", 50, 90),
    range_(NODE + "AddmmBackward0", 50, 60),
    range_("c10d::allreduce_", 59, 60),
    range_("gloo:all_reduce", 60, 88, 8),
    range_(NODE + "torch::autograd::CppNode<SplitLookupFunction_x>", 60, 80),
    range_("## optimizer 0 ##", 90, 99),
]


def check(parts: StepParts) -> None:
    """What every step must keep to."""
    assert parts.spent_s.keys() == set(PARTS) and min(parts.spent_s.values()) >= 0
    assert sum(parts.spent_s.values()) == pytest.approx(parts.step_s)
    assert parts.exposed_s.keys() == parts.in_flight_s.keys() == set(COMMUNICATION)
    for part in COMMUNICATION:
        assert 0 <= parts.exposed_s[part] <= parts.in_flight_s[part] + 1e-12
        assert parts.exposed_s[part] <= parts.spent_s[part] + 1e-12


def test_a_step_of_a_cpu_rank() -> None:
    parts = host_parts(CPU)
    check(parts)
    assert parts.spent_s == pytest.approx(
        {
            "data": 4,
            "input_all_to_all": 5,
            "lookup": 6,
            "output_all_to_all": 2 + 10,
            "tower_forward": 2 + 5 + 15,
            "tower_backward": 9,
            "table_update": 20,
            # The call, and the end of the backward pass, after its last node.
            "dense_all_reduce": 1 + 10,
            "optimizer": 9,
            "rest": 1 + 1,
        }
    )
    # In ranges that wait: of the second from 25 on, until the exchange was over at 32, but for one second of aten::cat.
    assert parts.exposed_s == pytest.approx({"input_all_to_all": 2, "output_all_to_all": 6, "dense_all_reduce": 8})
    # From the call to the end of the work.
    assert parts.in_flight_s == pytest.approx({"input_all_to_all": 14, "output_all_to_all": 13, "dense_all_reduce": 29})
    assert parts.collectives == [
        ("alltoall", "input_all_to_all"),
        ("alltoall", "output_all_to_all"),
        ("allreduce", "dense_all_reduce"),
    ]


def test_a_work_that_was_asked_for_before_the_trace_is_the_inputs() -> None:
    early = [range_("gloo:all_to_all", 1, 5.5, 9), *CPU]
    parts = host_parts(early)
    check(parts)
    assert parts.in_flight_s["input_all_to_all"] == pytest.approx((5.5 - 1) + 14)
    assert parts.in_flight_s["output_all_to_all"] == pytest.approx(13)


def test_two_steps_are_a_mean() -> None:
    later = [Span(s.name, s.start_s + 150, s.end_s + 150, s.thread, s.category) for s in CPU]
    once, twice = host_parts(CPU), host_parts([*CPU, *later])
    check(twice)
    assert twice.step_s == once.step_s and twice.spent_s == pytest.approx(once.spent_s)
    assert twice.exposed_s == pytest.approx(once.exposed_s) and twice.collectives == once.collectives


def kernel(
    name: str, start: float, end: float, stream: int, launched_at: float, number: int, thread: int = 1
) -> list[Span]:
    launch = Span("cudaLaunchKernel", launched_at, launched_at + 0.1, thread, "cuda_runtime", number)
    return [launch, Span(name, start, end, stream, "kernel", number)]


GPU = [
    range_(STEP, 0, 100),
    range_("infnet_rec next batch", 0, 20),
    range_("## start_sparse_data_dist 1 ##", 20, 22),
    range_("## forward 0 ##", 22, 30),
    range_("[lookup]_[bags]", 23, 24),
    range_("[output_dist]_[bags]", 24, 25),
    range_("## backward 0 ##", 30, 40),
    range_(NODE + "AddmmBackward0", 31, 33, 2),
    range_("c10d::allreduce_", 34, 35, 2),
    range_("## optimizer 0 ##", 40, 42),
    *kernel("ncclDevKernel_SendRecv", 22, 28, 20, 21, 1),
    *kernel("fbgemm_lookup", 24, 30, 7, 23.5, 2),
    *kernel("ncclDevKernel_SendRecv", 30, 40, 21, 24.5, 3),
    *kernel("gemm", 35, 60, 7, 26, 4),
    *kernel("gemm_backward", 60, 80, 7, 32, 5, thread=2),
    *kernel("ncclDevKernel_AllReduce", 70, 90, 22, 34.5, 6, thread=2),
    *kernel("adam", 90, 95, 7, 41, 7),
]


def test_a_step_of_a_gpu_rank() -> None:
    parts = device_parts(GPU)
    check(parts)
    assert parts.spent_s == pytest.approx(
        {
            # The device idles and the host waits for the loader; then it idles and the host is slow.
            "data": 20,
            "input_all_to_all": 2,
            "lookup": 6,
            "output_all_to_all": 5,
            "tower_forward": 25,
            "tower_backward": 20,
            "table_update": 0,
            "dense_all_reduce": 10,
            "optimizer": 5,
            "rest": 2 + 5,
        }
    )
    assert parts.exposed_s == pytest.approx({"input_all_to_all": 2, "output_all_to_all": 5, "dense_all_reduce": 10})
    assert parts.in_flight_s == pytest.approx({"input_all_to_all": 6, "output_all_to_all": 10, "dense_all_reduce": 20})
    assert parts.collectives == [("allreduce", "dense_all_reduce")]


def test_collectives_are_called_alike_by_torch_and_gloo() -> None:
    assert kind_of("c10d::alltoall_base_") == kind_of("gloo:all_to_all") == "alltoall"
    assert kind_of("c10d::allreduce_") == kind_of("gloo:all_reduce")
    assert kind_of("c10d::_reduce_scatter_base_") == kind_of("gloo:reduce_scatter") == "reducescatter"


def test_spans_of_chromes_events() -> None:
    events = [
        {"ph": "X", "name": "aten::mm", "ts": 2e6, "dur": 5e5, "tid": 3, "cat": "cpu_op", "args": {"correlation": 4}},
        {"ph": "X", "name": "PyTorch Profiler (0)", "ts": 0, "dur": 9, "tid": "PyTorch Profiler", "cat": "Trace"},
        {"ph": "i", "name": "mark", "ts": 1, "tid": 3},
    ]
    assert spans_of(events) == [Span("aten::mm", 2.0, 2.5, 3, "cpu_op", 4)]
