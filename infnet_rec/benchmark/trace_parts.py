"""Where the steps of a rank go, by its trace: every instant belongs to one part.

On a CPU it is an instant of the thread that trains, which runs forward, backward and optimizers; gloo's threads talk to
the other ranks. So communication is exposed while the thread is in a range that waits for it, and overlapped while the
thread does something else.

On a GPU every instant of the device belongs to one part. The host only says what is to be done, so what counts is when
kernels ran. A kernel is a part of what the host was in when it launched it. Communication is exposed while a kernel of
nccl runs and no other; the device idles while none runs. Not yet run on hardware: tested with made-up traces.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from infnet_rec.benchmark.trace import (
    BACKWARD,
    COMMUNICATION,
    NODE,
    PARTS,
    REDUCE_WAIT,
    STEP,
    Part,
    Span,
    Stretch,
    difference,
    intersection,
    is_operator,
    is_wait,
    length,
    part_of,
    shared_out,
    union,
)

_COLLECTIVE = re.compile(r"(?:c10d::|gloo:)(\w+)")


@dataclass(frozen=True, slots=True)
class StepParts:
    """A mean step, in seconds.

    Attributes:
        step_s: how long it took.
        spent_s: by part; they add up to the step.
        exposed_s: of that, by part that communicates, what was spent waiting for other ranks or the network.
        in_flight_s: by part that communicates, how long anything of it was under way; never less than exposed.
        collectives: kinds and parts of the collectives of a step, in their order.
    """

    step_s: float
    spent_s: dict[Part, float]
    exposed_s: dict[Part, float]
    in_flight_s: dict[Part, float]
    collectives: list[tuple[str, Part]]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a thread in which nothing begins or ends."""

    stretch: Stretch
    part: Part
    waits: bool


def host_parts(spans: Sequence[Span]) -> StepParts:
    """Shares the steps of a CPU rank out.

    Args:
        spans: of a trace that holds ranges named `STEP`, all of one thread.
    """
    steps = sorted((s for s in spans if s.name == STEP), key=lambda s: s.start_s)
    assert steps, "the trace holds no step"
    window, thread = union(s.stretch for s in steps), steps[0].thread
    own = [s for s in spans if s.thread == thread]
    pieces = list(pieces_of([*own, *_waits_for_reduce(own)]))
    flights = _flights(spans, pieces, thread)
    spent: dict[Part, float] = {}
    exposed: dict[Part, float] = {}
    in_flight: dict[Part, float] = {}
    for part in PARTS:
        spent[part] = length(intersection(window, [p.stretch for p in pieces if p.part == part]))
    spent["rest"] = max(0.0, length(window) - sum(s for part, s in spent.items() if part != "rest"))
    for part in COMMUNICATION:
        there = intersection(window, flights[part])
        exposed[part] = length(intersection(there, [p.stretch for p in pieces if p.part == part and p.waits]))
        in_flight[part] = length(there)
    count = len(steps)
    return StepParts(
        length(window) / count,
        each(spent, count),
        each(exposed, count),
        each(in_flight, count),
        [(kind, part) for at, kind, part in calls_of(own, pieces) if steps[-1].start_s <= at < steps[-1].end_s],
    )


def each(values: Mapping[Part, float], count: int) -> dict[Part, float]:
    """Divides what several steps took by their number."""
    return {part: value / count for part, value in values.items()}


def pieces_of(spans: Sequence[Span]) -> Iterator[Piece]:
    """Cuts a thread's time where its innermost range changes; time outside of all ranges is left out."""
    around: list[Piece] = []
    at = 0.0

    def upto(end_s: float) -> Iterator[Piece]:
        nonlocal at
        if around and end_s > at:
            yield replace(around[-1], stretch=(at, end_s))
        at = max(at, end_s)

    for span in sorted(spans, key=lambda s: (s.start_s, -s.end_s)):
        while around and around[-1].stretch[1] <= span.start_s:
            yield from upto(around[-1].stretch[1])
            around.pop()
        yield from upto(span.start_s)
        around.append(_inside(span, around[-1] if around else None))
    while around:
        yield from upto(around[-1].stretch[1])
        around.pop()


def _inside(span: Span, outer: Piece | None) -> Piece:
    """A range as what it is inside of another: what is of no part of its own goes on with what is around it."""
    part = part_of(span.name)
    waits = is_wait(span.name) or (outer is not None and outer.waits and part is None)
    return Piece(span.stretch, part or (outer.part if outer else "rest"), waits=waits and not is_operator(span.name))


def _waits_for_reduce(own: Sequence[Span]) -> Iterator[Span]:
    """DDP waits for its all-reduces after the last node of the backward pass, in C++ and without a range."""
    nodes = [s for s in own if s.name.startswith(NODE)]
    for backward in (s for s in own if s.name.startswith(BACKWARD)):
        ends = [s.end_s for s in nodes if backward.start_s <= s.start_s and s.end_s <= backward.end_s]
        if ends and max(ends) < backward.end_s:
            yield Span(REDUCE_WAIT, max(ends), backward.end_s, backward.thread, "user_annotation")


def calls_of(own: Sequence[Span], pieces: Sequence[Piece]) -> list[tuple[float, str, Part]]:
    """When this thread asked for a collective, which, and for what part."""
    calls = []
    starts = sorted((s for s in own if s.name.startswith("c10d::")), key=lambda s: s.start_s)
    i = 0
    for call in starts:
        while i < len(pieces) and pieces[i].stretch[1] <= call.start_s:
            i += 1
        part: Part = pieces[i].part if i < len(pieces) else "rest"
        calls.append((call.start_s, kind_of(call.name), part))
    return calls


def kind_of(name: str) -> str:
    """One word for a collective, whether torch's operator or gloo's work: "alltoall", "allreduce", ..."""
    found = _COLLECTIVE.match(name)
    assert found is not None, name
    return found[1].replace("_", "").removesuffix("base")


def _flights(spans: Sequence[Span], pieces: Sequence[Piece], thread: int) -> dict[Part, list[Stretch]]:
    """From the call of each collective to its end in a thread of gloo.

    Gloo takes works in the order of their calls. One without a call was asked for before the trace began, and only the
    input of a next step is.
    """
    calls = calls_of([s for s in spans if s.thread == thread], pieces)
    waiting: dict[str, list[tuple[float, Part]]] = {}
    for at, kind, part in calls:
        waiting.setdefault(kind, []).append((at, part))
    flights: dict[Part, list[Stretch]] = {part: [] for part in PARTS}
    for work in sorted((s for s in spans if s.name.startswith("gloo:")), key=lambda s: s.start_s):
        queue = waiting.get(kind_of(work.name), [])
        if queue and queue[0][0] <= work.start_s:
            at, part = queue.pop(0)
        else:
            at, part = work.start_s, "input_all_to_all"
        flights[part].append((at, work.end_s))
    return flights


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
