"""How long a measurement lasts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Length:
    """How long to measure.

    Attributes:
        warm_up: steps before; the first ones allocate and connect.
        least: steps to time.
        most_s: seconds after which no further steps are timed, once there are `least`.
    """

    warm_up: int = 10
    least: int = 50
    most_s: float = 60.0
