"""Kinds of numbers that settings are."""

from typing import Annotated

from pydantic import Field

Hidden = tuple[Annotated[int, Field(ge=1)], ...]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
