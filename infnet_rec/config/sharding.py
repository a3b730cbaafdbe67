"""Where a run keeps its tables."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.config.ranges import Count
from infnet_rec.config.toml import StrictModel

ShardingType = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
TableKernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
TablePrecision = Literal["fp32", "fp16"]
Communication = Literal["fp32", "fp16", "bf16"]


class TableRule(StrictModel):
    """What the tables whose name fits a pattern must have. Of several rules that fit, the last that says a key counts.

    Attributes:
        match: a table's name, or a pattern with `*`, `?` and `[...]`; it must fit a table of the run.
        sharding: one of TorchRec's ways. "table_row_wise" spreads the rows over the ranks of one node; "data_parallel"
            gives every rank the whole table. "auto" leaves it to the search.
        kernel: where the weights stand: "fused" in the memory of the device, "fused_uvm" in that of the host,
            "fused_uvm_caching" in that of the host with a cache on the device. "auto" leaves it to the search.
        cache_load_factor: rows in the cache, as a part of all; for "fused_uvm_caching".
        precision: of the stored weights; what is looked up is fp32. The optimizer's state stays in fp32.
        min_columns: the narrowest column shard, for the ways that cut columns; a multiple of 4. A row-wise optimizer
            keeps one value a row and shard, so with it such a table trains differently.
    """

    match: Annotated[str, Field(min_length=1)]
    sharding: Literal["auto", ShardingType] | None = None
    kernel: Literal["auto", TableKernel] | None = None
    cache_load_factor: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    precision: TablePrecision | None = None
    min_columns: Annotated[int, Field(ge=4, multiple_of=4)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set - {"match"}:
            raise ValueError(f"match = {self.match!r} and nothing else; say what these tables must have, or drop it")
        return self


class ShardingConfig(StrictModel):
    """Where tables live.

    A batch names each distinct id of a sequence's table once (see `infnet_rec.batch.Batch`), on every device, so
    TorchRec's `use_index_dedup` would find nothing left to drop and is not an option here.

    Attributes:
        plan: a file that `infnet-rec plan --out` made. Training then follows it to the letter and refuses it if it was
            made for other tables, another number of ranks, other hardware or other versions. Its tables' rules must be
            those given here. Without one, training makes a plan and leaves it in the run directory.
        hardware: what to plan for, a name or a TOML file that `infnet-rec plan --hardware` knows; without it, this
            machine as it is found to be.
        row_wise_min_rows: tables of at least so many rows are spread over all ranks by row, smaller ones live whole on
            one rank; "auto" lets the search choose for each.
        data_parallel_max_rows: tables of at most so many rows stand whole on every rank, which spares their exchange;
            0 leaves that to the search. On CPU it takes tables of features only, since sequences' tables cannot be
            copied there. It counts before `row_wise_min_rows`, and a rule of `tables` before both.
        communication: precision in which embeddings, forward, and their gradients, backward, travel between ranks.
            On CPU TorchRec would quietly take fp16 for bf16, so bf16 is refused there.
        replica_groups: groups of ranks that each hold all tables, sharded within the group, and average them after
            every step (TorchRec's DMPCollection; GPUs only). It has not run on hardware yet.
        tables: rules for single tables.
    """

    plan: Path | None = None
    hardware: str | None = None
    row_wise_min_rows: Count | Literal["auto"] = "auto"
    data_parallel_max_rows: Annotated[int, Field(ge=0)] = 0
    communication: Communication = "fp32"
    replica_groups: Count = 1
    tables: tuple[TableRule, ...] = ()

    def for_scoring(self) -> Self:
        """What scoring a trained model keeps of it: the tables' precisions. It may run on other ranks and devices."""
        rules = [TableRule(match=rule.match, precision=rule.precision) for rule in self.tables if rule.precision]
        return type(self)(tables=tuple(rules))
