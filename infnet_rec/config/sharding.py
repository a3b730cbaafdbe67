"""Where a run keeps its tables."""

from infnet_rec.config.ranges import Count
from infnet_rec.strict import StrictModel


class ShardingConfig(StrictModel):
    """Where tables live.

    Attributes:
        row_wise_min_rows: tables of at least so many rows are spread over all ranks by row; smaller ones live whole on
            one rank. On CPU only sequence tables can be spread.
    """

    row_wise_min_rows: Count = 100_000
