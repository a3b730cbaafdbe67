"""A run, whole: what data, which model, how it is trained and sharded. No torch here.

`configs/quickstart.toml` is a small complete example. Every key can be set on the command line:
`--set train.dense.lr=3e-4`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.strict import StrictModel

Hidden = tuple[Annotated[int, Field(ge=1)], ...]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class DataConfig(StrictModel):
    """Which examples, and how much of each.

    Attributes:
        store: folder that `infnet-rec data build` made, or the URL of one (s3://, gs://, https://...), which is fetched
            once a machine.
        profile: which of the store's profiles (features and histories) to use; "all" is always there.
        sequence_length: newest events of each behaviour that an example sees.
        sequence_groups: which sequences share a proxy token: those of one behaviour, none (one proxy a sequence), all.
        read_ahead: batches gathered in advance.
        loader_threads: batches gathered at the same time.
        block_examples: neighbours in the store that stay together in the first shuffle, so that reads stay local on
            disk.
        buffer_blocks: blocks whose examples are then shuffled; 8 bytes an example, four buffers at a time.
    """

    store: str
    profile: str = "all"
    sequence_length: Count = 50
    sequence_groups: Literal["behaviour", "sequence", "all"] = "behaviour"
    read_ahead: Count = 4
    loader_threads: Count = 1
    block_examples: Count = 4_096
    buffer_blocks: Count = 512


class ModelConfig(StrictModel):
    """INFNet; see `infnet_rec.model.infnet.InfnetOptions` for what the options of the tower mean.

    Attributes:
        width: of every token, and so of every embedding table; FBGEMM's kernels want a multiple of 4.
        table_std: standard deviation of the initial embeddings.
        attention: how sequences are read: "fused" by a kernel on a GPU, "eager" in plain torch, "auto" by the kernel
            where it works. The first lines of a run say which.
        compile: the tower by torch.compile. The first steps, and the first evaluation, take a minute or more each time
            that nothing is in its cache; the steps after them are faster, and differ in the last bits.
    """

    name: Literal["infnet"] = "infnet"
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 16
    table_std: Positive = 0.01
    num_blocks: Count = 2
    num_categorical_proxies: Count = 4
    num_shared_tokens: Count = 2
    num_heads: Count = 1
    proxy_hidden: Hidden = (128,)
    gate_hidden: Hidden = (64,)
    head_hidden: Hidden = (64, 32)
    pooling: Literal["sum", "mean"] = "sum"
    residual: Literal["both", "proxy", "gate", "none"] = "both"
    proxy_norm: Literal["none", "layer"] = "none"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    ablation: Literal["none", "no_task_tokens", "no_gates", "no_cross_attention"] = "none"
    attention: Literal["auto", "eager", "fused"] = "auto"
    checkpoint_blocks: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} does not divide by num_heads = {self.num_heads}")
        return self


class ScheduleConfig(StrictModel):
    """How a learning rate moves: up in a line for `warmup_steps`, then level or down a cosine.

    Attributes:
        kind: after the warm-up.
        warmup_steps: steps until the full rate.
        final_fraction: of the full rate, at the end of a cosine.
    """

    kind: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_fraction: Fraction = 0.0


class SparseConfig(StrictModel):
    """The optimizer of the tables, fused into the backward pass: only rows of the batch move.

    Attributes:
        optimizer: Adam has no kernel on CPU.
        lr: learning rate after the warm-up.
        schedule: of that rate. Adagrad slows down by itself, row by row; on top of it a cosine forgets late examples.
        each_epoch: "keep" the tables, or start each epoch with "fresh" ones and fresh optimizer state while the dense
            part goes on learning. Id tables overfit in their second epoch; this lets the rest have several.
    """

    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    lr: Positive = 0.02
    schedule: ScheduleConfig = ScheduleConfig()
    each_epoch: Literal["keep", "fresh"] = "keep"


class DenseConfig(StrictModel):
    """The optimizer of everything but the tables.

    Attributes:
        optimizer: decay is L2 for Adam and Adagrad, decoupled for AdamW.
        lr: learning rate after the warm-up.
        weight_decay: strength of the decay.
        schedule: of the learning rate.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them alone.
    """

    optimizer: Literal["adam", "adamw", "adagrad"] = "adam"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    schedule: ScheduleConfig = ScheduleConfig()
    max_grad_norm: NotNegative = 10.0


class LossConfig(StrictModel):
    """sum_i lambda_i BCE_i.

    Attributes:
        weighting: "fixed" uses `task_weights`; "uncertainty" learns a factor for each task on top of them.
        task_weights: lambda by task; tasks that are not named weigh 1.
        embedding_l2: strength of the penalty that holds rare ids back, in examples (see `MultiTaskLoss`).
    """

    weighting: Literal["fixed", "uncertainty"] = "fixed"
    task_weights: dict[str, Positive] = Field(default_factory=dict)
    embedding_l2: NotNegative = 0.0


class TrainConfig(StrictModel):
    """The loop.

    Attributes:
        global_batch_size: examples a step, over all ranks.
        num_epochs: passes over the training split; may be a fraction.
        order: "shuffled" anew each epoch, or by "time", oldest first, as a model in service would have met them.
        eval_every_steps: steps between two evaluations on valid; 0 evaluates at the end of each epoch.
        patience: evaluations without a better mean AUC before training stops; 0 never stops early.
        log_every_steps: steps between two progress lines.
        eval_batch_size: examples a step in evaluation, over all ranks; rounded up to a multiple of their number.
        seed: of initial weights, order and dropout.
        num_threads: CPU threads a rank; 0 shares the cores among the ranks of a machine.
        precision: of the matrix products of the tower, in training and evaluation; tables, dense parameters, optimizers
            and losses are in fp32 whatever it is. A CPU without instructions for bf16 is several times slower with it.
    """

    global_batch_size: Count = 1024
    num_epochs: Positive = 1.0
    order: Literal["shuffled", "time"] = "shuffled"
    eval_every_steps: Annotated[int, Field(ge=0)] = 0
    patience: Annotated[int, Field(ge=0)] = 5
    log_every_steps: Count = 20
    eval_batch_size: Count = 4096
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    num_threads: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    sparse: SparseConfig = SparseConfig()
    dense: DenseConfig = DenseConfig()
    loss: LossConfig = LossConfig()


class ShardingConfig(StrictModel):
    """Where tables live.

    Attributes:
        row_wise_min_rows: tables of at least so many rows are spread over all ranks by row; smaller ones live whole on
            one rank. On CPU only sequence tables can be spread.
    """

    row_wise_min_rows: Count = 100_000


class RunConfig(StrictModel):
    """A complete run; see the sections' own classes."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
