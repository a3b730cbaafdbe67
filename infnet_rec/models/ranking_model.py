"""The whole model that the training pipeline calls: lookup, tokens, tower, loss.

Shapes: B examples, T tasks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from infnet_rec.batch import Batch
from infnet_rec.config.train import LossConfig
from infnet_rec.models.batched import Constant
from infnet_rec.models.embeddings import TokenAssembly
from infnet_rec.models.tokens import Tokens


class Scores(NamedTuple):
    """What one batch leaves behind; nothing in it carries a gradient.

    Attributes:
        logits_BT: before the sigmoid.
        labels_BT: 0 or 1.
        weight_B: 0 for padding.
        user_B: the users, for gAUC.
        loss_T: mean binary cross entropy of each task, as examples weigh.
    """

    logits_BT: Tensor
    labels_BT: Tensor
    weight_B: Tensor
    user_B: Tensor
    loss_T: Tensor


class MultiTaskLoss(nn.Module):
    """sum_i lambda_i BCE_i, with given lambdas or with learned ones.

    "uncertainty" learns s_i and minimises sum_i exp(-s_i) lambda_i BCE_i + s_i. The L2 penalty adds, for each
    categorical token, half its squared norm over the number of training look-ups of its id: in an epoch every row is
    held back once, so rare rows stay small and frequent ones hardly notice. Its strength is in units of examples,
    whatever the batch size.

    Examples weigh what the log's weight column says, over its mean in the whole training split: not in the batch, so
    that a gradient does not depend on which examples, or ranks, are together. The penalty does not weigh.

    Reference: INFNet, training objective; Kendall, Gal and Cipolla, CVPR 2018, for the learned weights; Zhou et al.,
    Deep Interest Network, KDD 2018, eq. (4) to (6), for the penalty.
    """

    def __init__(self, config: LossConfig, task_names: Sequence[str]) -> None:
        super().__init__()
        self._embedding_l2 = config.embedding_l2
        task_weights = tuple(config.task_weights.get(name, 1.0) for name in task_names)
        self.task_weight_T = Constant(task_weights, torch.get_default_dtype())
        self.log_variance_T: nn.Parameter | None = None
        if config.weighting == "uncertainty":
            self.log_variance_T = nn.Parameter(torch.zeros(len(task_weights)))

    def reset_parameters(self) -> None:
        """Starts from equal weights."""
        if self.log_variance_T is not None:
            nn.init.zeros_(self.log_variance_T)

    def forward(self, logits_BT: Tensor, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise (scalar) and the mean cross entropy of each task [T]."""
        weight_B = batch.weight_B
        loss_BT = functional.binary_cross_entropy_with_logits(logits_BT, batch.labels_BT, reduction="none")
        loss_weight_B = weight_B if batch.loss_weight_B is None else batch.loss_weight_B
        loss_T = (loss_BT * loss_weight_B[:, None]).sum(0) / weight_B.sum().clamp(min=1.0)
        weighted_T = loss_T * self.task_weight_T()
        if self.log_variance_T is not None:
            weighted_T = torch.exp(-self.log_variance_T) * weighted_T + self.log_variance_T
        loss = weighted_T.sum()
        if self._embedding_l2 and self.training:
            penalty_BM = tokens.categorical_BMD.square().sum(-1) * batch.rarity_BM
            loss = loss + self._embedding_l2 / 2 * penalty_BM.sum() / len(weight_B)
        return loss, loss_T.detach()


class RankingModel(nn.Module):
    """Batch to loss and scores.

    TorchRec's pipeline traces `forward` with fx to overlap input distribution with compute, so it is a straight line
    and the collections are called directly on the batch's fields.
    """

    def __init__(
        self,
        bags: EmbeddingBagCollection,
        events: EmbeddingCollection,
        assembly: TokenAssembly,
        tower: nn.Module,
        criterion: MultiTaskLoss,
        managed: ManagedCollisionEmbeddingBagCollection | None = None,
    ) -> None:
        """Joins built parts.

        Args:
            bags: looks up `Batch.categorical`.
            events: looks up `Batch.sequences`.
            assembly: makes `Tokens` of both.
            tower: `Tokens` to logits_BT.
            criterion: logits and labels to the loss.
            managed: looks up `Batch.managed`; None where no table is managed.
        """
        super().__init__()
        self.bags = bags
        self.events = events
        self.assembly = assembly
        self.tower = tower
        self.criterion = criterion
        self.managed = managed

    def forward(self, batch: Batch) -> tuple[Tensor, Scores]:
        """Returns the loss and what evaluation needs."""
        bags = self.bags(batch.categorical)
        events = self.events(batch.sequences)
        # What a collection of managed tables returns second is None.
        managed = None if self.managed is None else self.managed(batch.managed)[0]
        counted = batch.mean_row_Q, batch.mean_start_P, batch.repeats
        tokens: Tokens = self.assembly(bags, events, batch.spread_K, batch.lengths_FB, managed, *counted)
        logits_BT = self.tower(tokens)
        loss, loss_T = self.criterion(logits_BT, tokens, batch)
        return loss, Scores(logits_BT.detach(), batch.labels_BT, batch.weight_B, batch.user_B, loss_T)
