"""What every model has, which models there are, and INFNet; `infnet_rec.config.baselines` has the others.

A model's section is what its tower is built from: `infnet_rec.models.registry` knows which tower belongs to which.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import Field, model_validator

from infnet_rec.config.ranges import Count, Dropout, Hidden, Positive
from infnet_rec.config.toml import StrictModel
from infnet_rec.errors import UserError

Eviction = Literal["lfu", "lru", "distance_lfu"]
Pooling = Literal["sum", "mean"]
Residual = Literal["both", "proxy", "gate", "none"]
ProxyNorm = Literal["none", "layer"]
Readout = Literal["task", "proxies"]
Ablation = Literal["none", "no_task_tokens", "no_gates", "no_cross_attention"]
AblationHead = Literal["pool", "late"]
Attention = Literal["auto", "eager", "fused"]

# FBGEMM's forward kernels for GPUs have returned zeros for wider rows (https://github.com/pytorch/FBGEMM/pull/5569),
# and its optimizers apart from the backward pass take none. A run must be able to move from a CPU to a GPU, so the
# limit holds on every device.
MAX_TABLE_WIDTH = 1024


class ManagedTable(StrictModel):
    """A table of fixed size for a feature with encoding "hash", whose rows are given to ids as they come.

    Any number of ids may arrive after the store was built; choose `buckets` of the recipe so large that they hardly
    ever collide. Every `interval_steps` training steps, the ids seen since the last time are ranked with those that
    have rows. As long as there are free rows every new id gets one. When the table is full, an id of a higher rank
    takes the row of the lowest: that row and its optimizer state begin anew. Ids without a row share one, the last of
    each rank's part: so do all until the first interval is over, those that rank too low, and in evaluation those that
    training never saw. The planner spreads such a table over all ranks by row, ids by ranges of hashes, and each rank
    manages its part alone.

    A checkpoint keeps which id has which row. It does not keep what was counted since the last interval, so a run goes
    on to the bit only from a step that `interval_steps` divides. It loads on a number of ranks that divides that of
    the run which wrote it, since TorchRec cannot split a part; on fewer ranks, ids without a row read the last row of
    the last of the parts that were joined.

    Attributes:
        kind: "managed".
        rows: of the table; the number of ranks must divide it.
        eviction: who keeps a row: "lfu" the ids seen most often, "lru" those seen last, "distance_lfu" the highest
            count divided by the steps since it was last seen.
        interval_steps: training steps from one ranking to the next.
    """

    kind: Literal["managed"]
    rows: Annotated[int, Field(ge=2)]
    eviction: Eviction = "lfu"
    interval_steps: Count


class ModelConfig(StrictModel):
    """What every model has; its other keys are its own.

    A model's own section is a subclass whose `name` is a `Literal` of the name, or names, that a file calls it by.

    Attributes:
        width: of every token, and so of every embedding table (FM's and STEM's are wider, see there); FBGEMM's kernels
            want a multiple of 4, and tables of at most 1,024 columns.
        table_std: standard deviation of the initial embeddings.
        tables: by name, those that are not simply one row an id.
        compile: the tower by torch.compile. The first steps, and the first evaluation, take a minute or more each time
            that nothing is in its cache; the steps after them are hardly faster on a CPU, and differ in the last bits.
        name: which model it is.
    """

    width: Annotated[int, Field(ge=4, le=MAX_TABLE_WIDTH, multiple_of=4)] = 16
    table_std: Positive = 0.01
    tables: dict[str, ManagedTable] = Field(default_factory=dict)
    compile: bool = False
    name: Any  # a Literal in every section of its own


Section = TypeVar("Section", bound=ModelConfig)
_SECTIONS: dict[str, type[ModelConfig]] = {}


def model_section(section: type[Section]) -> type[Section]:
    """Makes a class one of those that the section `model` of a run may be; a decorator.

    Raises:
        UserError: it is no `ModelConfig` with a `Literal` as its `name`, or another class has that name.
    """
    what = getattr(section, "__name__", repr(section))
    if not (isinstance(section, type) and issubclass(section, ModelConfig)):
        raise UserError(f"model section {what}: is no subclass of infnet_rec.config.model.ModelConfig; make it one")
    kind = section.model_fields["name"].annotation
    if get_origin(kind) is not Literal:
        raise UserError(f'model section {what}: has no name of its own; give it one: name: Literal["..."] = "..."')
    for name in get_args(kind):
        if _SECTIONS.get(name, section) is not section:
            raise UserError(
                f"model section {what}: its name {name!r} is that of {_SECTIONS[name].__name__} already; choose another"
            )
    _SECTIONS.update(dict.fromkeys(get_args(kind), section))
    return section


def model_sections() -> dict[str, type[ModelConfig]]:
    """The sections that there are now, by the names that a file calls them by."""
    return dict(_SECTIONS)


def replace_sections(sections: Mapping[str, type[ModelConfig]]) -> None:
    """Goes back to the sections that there were, where what registers others failed half-way."""
    _SECTIONS.clear()
    _SECTIONS.update(sections)


@model_section
class InfnetConfig(ModelConfig):
    """INFNet: everything that the data does not decide.

    Attributes:
        num_blocks: at least 2; an ablation, or heads that read proxies, can do with 1.
        num_categorical_proxies: tokens of C~.
        num_shared_tokens: tokens of T~.
        num_heads: heads of every cross attention; divides the width.
        proxy_hidden: hidden layers of the MLP that makes C~.
        gate_hidden: hidden layers of every gate.
        head_hidden: hidden layers of every task's head.
        pooling: how the events of a group become its proxy. A sum grows with the length of the history.
        residual: "proxy" adds each query to what it read (C~' = C~ + CA + CA, and so for S~, T~ and T^), "gate" makes
            the gate's factor 1 + sigmoid, "both" does both. "none" is the paper to the letter; it trains slowly.
        proxy_norm: "layer" normalises C~', S~', T~' and T^ before anything reads them.
        readout: what every task's head reads. "task": its token T', as in the paper. "proxies": T', all of C~' and all
            of S~' side by side. A task token reads all fields through one matrix; in C~ every field has weights of its
            own.
        dropout: on the hidden layers of proxies, gates and heads.
        ablation: the paper's w/o1, w/o2, w/o3. Keys of a part that is left out do nothing.
        ablation_head: what heads read where task tokens are missing (w/o1) or learn nothing (w/o3). "pool": mean C~ +
            mean S~, and T_i + mean C + mean S. "late": all of C~ and S~ side by side, and T_i, mean C, mean S side by
            side, which is more than the whole network's heads read.
        attention: how sequences are read: "fused" by a kernel on a GPU, "eager" in plain torch, "auto" by the kernel
            where it works. The first lines of a run say which.
        checkpoint_blocks: the backward pass computes every block again instead of storing what is inside: scores of
            categorical tokens, queries, gates. Scores of sequences are never stored.
    """

    name: Literal["infnet"] = "infnet"
    num_blocks: Count = 2
    num_categorical_proxies: Count = 4
    num_shared_tokens: Count = 2
    num_heads: Count = 1
    proxy_hidden: Hidden = (128,)
    gate_hidden: Hidden = (64,)
    head_hidden: Hidden = (64, 32)
    pooling: Pooling = "sum"
    residual: Residual = "both"
    proxy_norm: ProxyNorm = "none"
    readout: Readout = "task"
    dropout: Dropout = 0.0
    ablation: Ablation = "none"
    ablation_head: AblationHead = "pool"
    attention: Attention = "auto"
    checkpoint_blocks: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = []
        if self.width % self.num_heads:
            faults.append(f"width = {self.width} does not divide by num_heads = {self.num_heads}")
        if self.ablation != "none" and self.readout != "task":
            faults.append(
                f"readout is {self.readout!r}; it must be 'task' with ablation {self.ablation!r}, whose heads read what"
                " ablation_head says"
            )
        if self.ablation == "none" and self.readout == "task" and self.num_blocks == 1:
            faults.append(
                "num_blocks is 1; it must be at least 2: one block leaves the categorical and the sequence proxies"
                " untrained, because nothing reads what they become in the last block"
            )
        if faults:
            raise ValueError("; and ".join(faults))
        return self
