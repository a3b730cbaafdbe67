"""What holds for the options of every model."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from infnet_rec.errors import did_you_mean


def option_faults(options: Any) -> list[str]:
    """What is wrong with each field of an options dataclass, taken alone.

    A field of type Literal takes one of its choices; `num_...` is at least 1; the layers of `..._hidden` have units;
    `dropout` is a probability below 1.
    """
    faults = []
    for field in fields(options):
        name, value, choices = field.name, getattr(options, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            faults.append(f"{name} is {value!r}; it must be one of {choices}{did_you_mean(value, choices)}")
        if name.startswith("num_") and value < 1:
            faults.append(f"{name} is {value}; it must be at least 1")
        if name.endswith("_hidden") and min(value, default=1) < 1:
            faults.append(f"{name} is {value}; a hidden layer has at least 1 unit: leave it out")
        if name == "dropout" and not 0 <= value < 1:
            faults.append(f"dropout is {value}; it must be at least 0 and below 1")
    return faults
