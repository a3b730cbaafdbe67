"""Training without sharding, on the CPU, written out: what every sharding and fused optimizer must equal.

Tables are plain tensors and their updates are formulas; the dense optimizer is torch's. As in fbgemm, a step moves the
rows that its batch looks up, and no others: Adagrad and SGD would not notice, Adam does.

Shapes: V rows, D width.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from infnet_rec.batch import Batch
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.distributed.optimizers import TABLES
from infnet_rec.distributed.process_group import World
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import train_loader

EPS, BETA1, BETA2 = 1e-8, 0.9, 0.999

Weights = dict[str, Tensor]


def train_unsharded(
    config: RunConfig, data: RunData, world: World, weights: Mapping[str, Tensor], num_steps: int
) -> tuple[np.ndarray, Weights]:
    """Trains a model from given weights.

    Args:
        config: of the run.
        data: of the run.
        world: one CPU rank.
        weights: all initial weights, by the names of the unsharded model.
        num_steps: how many.

    Returns:
        Losses, float32 [steps, tasks], and the tables afterwards.
    """
    model = meta_model(config, data).to_empty(device="cpu")
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    tables = {n: p for n, p in model.named_parameters() if n.startswith(TABLES)}
    dense = [p for n, p in model.named_parameters() if n not in tables]
    optimizer = torch.optim.Adam(dense, lr=config.train.dense.lr)
    updates = {
        name: Update(config.train.sparse.optimizer, config.train.sparse.lr, table) for name, table in tables.items()
    }
    losses = []
    for batch in train_loader(config, data, world).batches(0, num_steps):
        model.zero_grad(set_to_none=True)
        loss, scores = model(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dense, config.train.dense.max_grad_norm)
        optimizer.step()
        looked_up = dict(_ids_of_tables(batch, data))
        for name, table in tables.items():
            assert table.grad is not None, name
            updates[name].step(table, table.grad, looked_up[name.split(".")[-2]])
        losses.append(scores.loss_T.numpy())
    return np.stack(losses), {name: table.detach().clone() for name, table in tables.items()}


def _ids_of_tables(batch: Batch, data: RunData) -> Iterator[tuple[str, Tensor]]:
    """Distinct ids that the batch looks up, by table."""
    table_of = {feature.name: feature.table for feature in data.schema.features}
    found: dict[str, list[Tensor]] = {}
    for keyed, names in ((batch.categorical, table_of), (batch.sequences, {})):
        for key in keyed.keys():  # noqa: SIM118 - a KeyedJaggedTensor is no mapping
            found.setdefault(names.get(key, key), []).append(keyed[key].values())
    for table, ids in found.items():
        yield table, torch.cat(ids).unique()


class Update:
    """One table's optimizer."""

    def __init__(self, name: str, lr: float, table: Tensor) -> None:
        """Makes its state.

        Args:
            name: as in `train.sparse.optimizer`.
            lr: the learning rate.
            table: [V, D].
        """
        self._name, self._lr, self._steps = name, lr, 0
        self._moment_VD, self._square_VD = torch.zeros_like(table), torch.zeros_like(table)

    @torch.no_grad()
    def step(self, table: Tensor, grad_VD: Tensor, ids_X: Tensor) -> None:
        """Moves the rows that were looked up.

        Args:
            table: [V, D], written.
            grad_VD: its gradient.
            ids_X: the rows, each once.
        """
        self._steps += 1
        grad_XD = grad_VD[ids_X]
        match self._name:
            case "sgd":
                step_XD = grad_XD
            case "adagrad":
                self._square_VD[ids_X] += grad_XD.square()
                step_XD = grad_XD / (self._square_VD[ids_X].sqrt() + EPS)
            case "rowwise_adagrad":
                self._square_VD[ids_X] += grad_XD.square().mean(1, keepdim=True)
                step_XD = grad_XD / (self._square_VD[ids_X].sqrt() + EPS)
            case "adam":
                self._moment_VD[ids_X] = BETA1 * self._moment_VD[ids_X] + (1 - BETA1) * grad_XD
                self._square_VD[ids_X] = BETA2 * self._square_VD[ids_X] + (1 - BETA2) * grad_XD.square()
                moment_XD = self._moment_VD[ids_X] / (1 - BETA1**self._steps)
                square_XD = self._square_VD[ids_X] / (1 - BETA2**self._steps)
                step_XD = moment_XD / (square_XD.sqrt() + EPS)
            case _:
                raise ValueError(self._name)
        table[ids_X] -= self._lr * step_XD
