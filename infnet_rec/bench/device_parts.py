"""Where the steps of a GPU rank go, by its trace: every instant of the device belongs to one part.

The host only says what is to be done, so what counts is when kernels ran. A kernel is a part of what the host was in
when it launched it. Communication is exposed while a kernel of nccl runs and no other; the device idles while none
runs.
Not yet run on hardware: tested with made-up traces.
"""

import re
from collections.abc import Mapping, Sequence

from infnet_rec.bench.host_parts import Piece, StepParts, calls_of, each, pieces_of
from infnet_rec.bench.intervals import Stretch, difference, intersection, length, shared_out, union
from infnet_rec.bench.spans import COMMUNICATION, PARTS, STEP, Part, Span

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
_NCCL = re.compile(r"nccl", re.IGNORECASE)
# Of kernels that run at the same time on several streams, the first named gets the time.
ORDER: tuple[Part, ...] = (
    "tower_forward",
    "tower_backward",
    "lookup",
    "table_update",
    "optimizer",
    "output_all_to_all",
    "dense_all_reduce",
    "rest",
    "input_all_to_all",
    "data",
)


def device_parts(spans: Sequence[Span]) -> StepParts:
    """Shares the steps of a GPU rank out; the device must have done them all when the last of the ranges `STEP` ends.

    Time in which the device idles is "data" while the host waits for a batch, else "rest": the host was too slow.
    """
    steps = sorted((s for s in spans if s.name == STEP and s.category not in ON_DEVICE), key=lambda s: s.start_s)
    assert steps, "the trace holds no step"
    window, count = [(steps[0].start_s, steps[-1].end_s)], len(steps)
    host = _host_pieces(spans)
    computing, talking = kernels_by_part(spans, host)
    claims: list[tuple[str, Sequence[Stretch]]] = [(part, computing[part]) for part in ORDER]
    claims += [(part, talking[part]) for part in ORDER]
    main = host.get(steps[0].thread, [])
    claims.append(("data", [piece.stretch for piece in main if piece.part == "data"]))
    given = shared_out(window, claims)
    all_computing = union(stretch for found in computing.values() for stretch in found)
    spent, exposed, in_flight = (dict.fromkeys(PARTS, 0.0) for _ in range(3))
    for part in PARTS:
        spent[part] = length(given.get(part, []))
    for part in COMMUNICATION:
        there = intersection(window, talking[part])
        in_flight[part] = length(there)
        # Two collectives at once are exposed once, so a part's share of the step is never exceeded.
        exposed[part] = length(intersection(given[part], difference(there, all_computing)))
    last = steps[-1]
    calls = [
        call
        for thread, pieces in host.items()
        for call in calls_of([s for s in spans if s.thread == thread and s.category not in ON_DEVICE], pieces)
        if last.start_s <= call[0] < last.end_s
    ]
    return StepParts(
        length(window) / count,
        each(spent, count),
        {part: s for part, s in each(exposed, count).items() if part in COMMUNICATION},
        {part: s for part, s in each(in_flight, count).items() if part in COMMUNICATION},
        [(kind, part) for _, kind, part in sorted(calls)],
    )


def kernels_by_part(
    spans: Sequence[Span], host: Mapping[int, Sequence[Piece]]
) -> tuple[dict[Part, list[Stretch]], dict[Part, list[Stretch]]]:
    """When kernels that compute (or copy) ran, and those of nccl, by the part that launched them."""
    launched = {s.correlation: s for s in spans if s.category in LAUNCHES and s.correlation is not None}
    computing: dict[Part, list[Stretch]] = {part: [] for part in PARTS}
    talking: dict[Part, list[Stretch]] = {part: [] for part in PARTS}
    for kernel in (s for s in spans if s.category in ON_DEVICE):
        launch = None if kernel.correlation is None else launched.get(kernel.correlation)
        part: Part = "rest" if launch is None else _part_at(host.get(launch.thread, ()), launch.start_s)
        kind = talking if _NCCL.search(kernel.name) else computing
        kind[part].append(kernel.stretch)
    return computing, talking


def _host_pieces(spans: Sequence[Span]) -> dict[int, list[Piece]]:
    """Of every thread of the host."""
    by_thread: dict[int, list[Span]] = {}
    for span in spans:
        if span.category not in (*ON_DEVICE, "gpu_user_annotation"):
            by_thread.setdefault(span.thread, []).append(span)
    return {thread: list(pieces_of(own)) for thread, own in by_thread.items()}


def _part_at(pieces: Sequence[Piece], at_s: float) -> Part:
    """What a thread was in; pieces are in order."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high) // 2
        if pieces[middle].stretch[1] <= at_s:
            low = middle + 1
        else:
            high = middle
    inside = low < len(pieces) and pieces[low].stretch[0] <= at_s
    return pieces[low].part if inside else "rest"
