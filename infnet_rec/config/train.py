"""How a run trains: loop, optimizers, loss."""

from typing import Annotated, Literal

from pydantic import Field

from infnet_rec.config.ranges import Count, Fraction, NotNegative, Positive
from infnet_rec.config.toml import StrictModel

ScheduleKind = Literal["constant", "cosine"]
SparseOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]
DenseOptimizer = Literal["adam", "adamw", "adagrad"]
TaskWeighting = Literal["fixed", "uncertainty"]
Precision = Literal["fp32", "bf16"]
OnNonFinite = Literal["stop", "skip"]


class ScheduleConfig(StrictModel):
    """How a learning rate moves: up in a line for `warmup_steps`, then level or down a cosine.

    Attributes:
        kind: after the warm-up.
        warmup_steps: steps until the full rate.
        final_fraction: of the full rate, at the end of a cosine.
    """

    kind: ScheduleKind = "constant"
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

    optimizer: SparseOptimizer = "rowwise_adagrad"
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

    optimizer: DenseOptimizer = "adam"
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

    weighting: TaskWeighting = "fixed"
    task_weights: dict[str, Positive] = Field(default_factory=dict)
    embedding_l2: NotNegative = 0.0


class TrainConfig(StrictModel):
    """The loop.

    Attributes:
        tasks: of the store's tasks, those to train and score; all by default. One alone makes "one model a task".
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
        on_nonfinite: what a loss that is NaN or infinite does. "stop" ends the run on all ranks and keeps the ids of
            the batch; it is noticed within about a second, at no cost. "skip" leaves the batch out as if it had never
            been there; for that all ranks wait for each other, and for the device, in every step.
        max_skipped: batches that a run may leave out before it stops all the same.
        collective_timeout_s: a rank from which nothing was heard for this long, or a step that takes this long, ends
            the run.
        deterministic: the same bits from the same numbers on the same machine; slower on a GPU.
        test: what is done with the test split at the end. "score" it; "keep" every example's prediction besides, in
            `predictions.npz`, for paired tests between models; or "skip" it, as a search for settings must.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    global_batch_size: Count = 1024
    num_epochs: Positive = 1.0
    order: Literal["shuffled", "time"] = "shuffled"
    eval_every_steps: Annotated[int, Field(ge=0)] = 0
    patience: Annotated[int, Field(ge=0)] = 5
    log_every_steps: Count = 20
    eval_batch_size: Count = 4096
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    num_threads: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "fp32"
    on_nonfinite: OnNonFinite = "stop"
    max_skipped: Annotated[int, Field(ge=0)] = 10
    collective_timeout_s: Positive = 300.0
    deterministic: bool = False
    test: Literal["score", "keep", "skip"] = "score"
    sparse: SparseConfig = SparseConfig()
    dense: DenseConfig = DenseConfig()
    loss: LossConfig = LossConfig()


def hasty_patience(settings: TrainConfig, num_examples: int) -> str | None:
    """Why early stopping may end a run just after its tables were drawn anew, in a line with the remedy; None if not.

    Args:
        settings: of the run.
        num_examples: of the training split.
    """
    steps_per_epoch = num_examples // settings.global_batch_size
    num_steps = settings.patience * settings.eval_every_steps
    has_second_epoch = settings.num_epochs * steps_per_epoch > steps_per_epoch
    if settings.sparse.each_epoch == "keep" or not has_second_epoch or not 0 < num_steps < steps_per_epoch:
        return None
    return (
        f"train.patience = {settings.patience}, evaluations of {settings.eval_every_steps} steps: are over in "
        f'{num_steps:,} steps, before tables that train.sparse.each_epoch = "fresh" draws anew catch up in an epoch of '
        f"{steps_per_epoch:,}, so training may stop just after a change of tables; evaluate once an epoch "
        '(train.eval_every_steps=0), or train.patience=0, or each_epoch "keep"'
    )
