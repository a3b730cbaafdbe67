"""Where the steps of a CPU rank go, by its trace: every instant of the thread that trains belongs to one part.

On a CPU that thread runs forward, backward and optimizers; gloo's threads talk to the other ranks. So communication is
exposed while the thread is in a range that waits for it, and overlapped while the thread does something else.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from infnet_rec.bench.intervals import Stretch, intersection, length, union
from infnet_rec.bench.spans import (
    BACKWARD,
    COMMUNICATION,
    NODE,
    PARTS,
    REDUCE_WAIT,
    STEP,
    Part,
    Span,
    is_operator,
    is_wait,
    part_of,
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
    """Of one step."""
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
