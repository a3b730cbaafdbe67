"""Cost of a training step of the tower against the length of histories and the width of tokens.

Shapes: F sequences, B examples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from infnet_rec.benchmark.forms.forms import TowerShape, full_lengths
from infnet_rec.benchmark.forms.tower import measure_tower
from infnet_rec.config.model import InfnetConfig

LENGTHS = (5, 10, 20, 40)
WIDTHS = (16, 64)
# A smaller batch than in training: the longest history in the literal form is to fit.
MAX_EXAMPLES = 256


def sweep(
    shape: TowerShape,
    config: InfnetConfig,
    device: torch.device,
    limits: Mapping[str, Any],
    *,
    num_rounds: int,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measures every length at every width; yields as `measure_tower` returns, one point at a time."""
    num_sequences, batch_size = len(shape.group_of_sequence), min(MAX_EXAMPLES, shape.batch_size)
    for width in sorted({*WIDTHS, shape.width}):
        for length in LENGTHS:
            say(f"width {width}, {num_sequences} sequences of {length} events")
            lengths_FB = full_lengths(num_sequences, batch_size, length)
            point = replace(shape, width=width, lengths_FB=lengths_FB)
            yield measure_tower(point, config, device, limits, num_rounds=num_rounds, passes=("forward_backward",))


def slopes(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Straight lines through cost against events, for each width and form.

    Returns:
        Microseconds an example and event, microseconds an example whatever its events, and R squared: near 1 where the
        cost is linear.
    """
    lines = []
    for width in sorted({point["shape"]["width"] for point in points}):
        of_width = [point for point in points if point["shape"]["width"] == width]
        for form in ("literal", "eager", "fused"):
            found = [
                (
                    p["shape"]["events_per_example"],
                    1e6 / p["passes"]["forward_backward"]["forms"][form]["examples_per_s"],
                )
                for p in of_width
                if form in p["passes"]["forward_backward"]["forms"]
            ]
            if len(found) > 2:
                lines.append({"width": width, "form": form, **fit(found)})
    return lines


def fit(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Least squares."""
    xs, ys = zip(*points, strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread_x = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return {
        "us_per_event": slope,
        "us_per_example": mean_y - slope * mean_x,
        "r_squared": 1 - rest / sum((y - mean_y) ** 2 for y in ys),
    }
