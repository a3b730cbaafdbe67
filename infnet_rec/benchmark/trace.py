"""A Chrome trace of torch.profiler as spans, and what each of its ranges is a part of.

The pipeline of TorchRec, its sharded collections, DDP and the optimizers all leave ranges behind; `meter.py` adds those
of the step and the loader.

A stretch of time is (start, end); results of their arithmetic are in order and do not touch.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Part = Literal[
    "data",
    "input_all_to_all",
    "lookup",
    "output_all_to_all",
    "tower_forward",
    "tower_backward",
    "table_update",
    "dense_all_reduce",
    "optimizer",
    "rest",
]
PARTS: tuple[Part, ...] = get_args(Part)
COMMUNICATION: tuple[Part, ...] = ("input_all_to_all", "output_all_to_all", "dense_all_reduce")

STEP, NEXT_BATCH = "infnet_rec step", "infnet_rec next batch"
REDUCE_WAIT = "infnet_rec reduce wait"
BACKWARD = "## backward"
NODE = "autograd::engine::evaluate_function"

# The first that fits a range's name says which part it is; a range that fits none is of the same part as what is
# around it. So ranges within ranges may correct them: what of the forward pass is no lookup and no exchange is the
# tower.
RULES: tuple[tuple[str, Part], ...] = (
    (rf"{NEXT_BATCH}|## next_batch|## copy_batch_to_gpu|## inplace_copy_batch", "data"),
    (
        r"## (start|wait)_sparse_data_dist|## wait_for_batch|\[(splits|input)_dist(_wait)?\]"
        r"|## all2all_data|## dist_init|## (Fused)?KJT\w*Awaitable|## SplitsAllToAll|## runtime_forward_assemble",
        "input_all_to_all",
    ),
    (r"\[lookup\]_", "lookup"),
    (
        r"\[output_dist(_wait)?\]|## Embedding(Bag)?CollectionAwaitable|## (Pooled|Sequence)Embeddings\w*Awaitable"
        r"|## construct_jagged_tensors|## (All2All|ReduceScatter|AllGather)"
        rf"|({NODE}: )?_?(All2All|ReduceScatter|AllGather)\w*"
        rf"|({NODE}: )?torch::autograd::CppNode<fbgemm_gpu::PermutePooledEmbs",
        "output_all_to_all",
    ),
    (
        rf"({NODE}: )?torch::autograd::CppNode<Split(NoBag)?LookupFunction|fbgemm::split_embedding\w*_backward"
        r"|## \w*emb\w*_bwd",
        "table_update",
    ),
    (rf"c10d::allreduce|{REDUCE_WAIT}", "dense_all_reduce"),
    (r"## forward", "tower_forward"),
    (rf"{BACKWARD}|{NODE}", "tower_backward"),
    (r"## optimizer|## zero_grad|Optimizer\.", "optimizer"),
)
_RULES: tuple[tuple[re.Pattern[str], Part], ...] = tuple((re.compile(pattern), part) for pattern, part in RULES)
# In these a thread waits for other ranks, but for the operators in it.
_WAIT = re.compile(rf".*(wait\(\)|dist_wait\]|_Wait\b|ReqBackward\b)|{REDUCE_WAIT}")
_OPERATOR = re.compile(r"(aten|fbgemm|c10d|prims|mkldnn|mkl|torchrec|infnet_rec)::")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time.

    Attributes:
        name: as the profiler has it.
        start_s: seconds on the trace's clock.
        end_s: likewise.
        thread: of the host, or the stream of a device.
        category: "cpu_op", "user_annotation", "kernel", "cuda_runtime" and others of torch.profiler.
        correlation: what a kernel has in common with its launch; None where there is none.
    """

    name: str
    start_s: float
    end_s: float
    thread: int
    category: str = "cpu_op"
    correlation: int | None = None

    @property
    def stretch(self) -> tuple[float, float]:
        """When the span began and ended, in seconds."""
        return self.start_s, self.end_s


def read_trace(path: Path) -> list[Span]:
    """All spans of a trace that torch.profiler wrote."""
    return spans_of(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def spans_of(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Chrome's events that have a duration; the profiler's own are left out."""
    return [
        Span(
            event["name"],
            event["ts"] / 1e6,
            (event["ts"] + event["dur"]) / 1e6,
            event["tid"],
            event.get("cat", ""),
            event.get("args", {}).get("correlation"),
        )
        for event in events
        if event.get("ph") == "X" and isinstance(event.get("tid"), int)
    ]


def part_of(name: str) -> Part | None:
    """Which part a range of this name says it is; None where it says nothing."""
    return next((part for pattern, part in _RULES if pattern.match(name)), None)


def is_wait(name: str) -> bool:
    """Whether a thread is in this range until a collective is done."""
    return _WAIT.match(name) is not None


def is_operator(name: str) -> bool:
    """Whether a thread in this range computes, or hands work over."""
    return _OPERATOR.match(name) is not None


Stretch = tuple[float, float]


def union(stretches: Iterable[Stretch]) -> list[Stretch]:
    """What is in any of them."""
    joined: list[Stretch] = []
    for start, end in sorted(s for s in stretches if s[1] > s[0]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def intersection(these: Iterable[Stretch], those: Iterable[Stretch]) -> list[Stretch]:
    """What is in both."""
    left, right = union(these), union(those)
    found: list[Stretch] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def difference(these: Iterable[Stretch], those: Iterable[Stretch]) -> list[Stretch]:
    """What is in the first and not in the second."""
    left, right = union(these), union(those)
    found: list[Stretch] = []
    j = 0
    for start, end in left:
        at = start
        while j < len(right) and right[j][1] <= at:
            j += 1
        k = j
        while k < len(right) and right[k][0] < end:
            if right[k][0] > at:
                found.append((at, right[k][0]))
            at = max(at, right[k][1])
            k += 1
        if at < end:
            found.append((at, end))
    return found


def length(stretches: Iterable[Stretch]) -> float:
    """How long they are together; what is in two of them counts once."""
    return sum(end - start for start, end in union(stretches))


def shared_out(window: Sequence[Stretch], claims: Iterable[tuple[str, Sequence[Stretch]]]) -> dict[str, list[Stretch]]:
    """Gives every instant of the window to the first that claims it.

    Args:
        window: the time that is shared out.
        claims: by name, the first before the second; a name may come again.

    Returns:
        What each name got; they do not overlap, and "rest" is what nobody claimed.
    """
    left = union(window)
    given: dict[str, list[Stretch]] = {}
    for name, wanted in claims:
        given[name] = union([*given.get(name, []), *intersection(left, wanted)])
        left = difference(left, wanted)
    given["rest"] = union([*given.get("rest", []), *left])
    return given
