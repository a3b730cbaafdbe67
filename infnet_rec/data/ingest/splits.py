"""Which rows of the log are for training, validation and test, as a recipe says it."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, NaiveDatetime, Tag, model_validator

from infnet_rec.config.toml import StrictModel


class TimeSplits(StrictModel):
    """Where each split begins, in local time; rows before `train` are history only, rows from `end` on are dropped."""

    by: Literal["time"] = "time"
    train: NaiveDatetime
    valid: NaiveDatetime
    test: NaiveDatetime
    end: NaiveDatetime

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if not self.train < self.valid < self.test < self.end:
            raise ValueError("the boundaries must increase: train < valid < test < end")
        return self


Share = Annotated[float, Field(gt=0.0, lt=0.5)]


class ShareSplits(StrictModel):
    """Shares of the rows for valid and test; the others are for training.

    Attributes:
        by: "rows_of_each_user" takes the last rows of each user for test and those before them for valid, rounded
            down; "random" draws rows by a hash of user, item and time, for comparison with papers that split so.
        valid: share of valid.
        test: share of test.
        seed: random only.
    """

    by: Literal["rows_of_each_user", "random"]
    valid: Share
    test: Share
    seed: int = 0


def _kind_of_splits(value: object) -> str:
    by = value.get("by", "time") if isinstance(value, dict) else getattr(value, "by", "time")
    return "(time)" if by == "time" else "(share)"


SplitsRecipe = Annotated[
    Annotated[TimeSplits, Tag("(time)")] | Annotated[ShareSplits, Tag("(share)")], Discriminator(_kind_of_splits)
]
