"""Arithmetic of stretches of time. A stretch is (start, end); results are in order and do not touch."""

from collections.abc import Iterable, Sequence

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
