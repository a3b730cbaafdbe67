"""One batch on one rank.

Shapes: B examples on this rank, F sequences, K unpooled tokens (one a shared feature and example, one a sequence and
event), L of them of sequences, U distinct ones of an example, Y = B + 1 places between examples, X distinct embeddings
(means among them), P means of Q rows, M features, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass(frozen=True, slots=True)
class Repeats:
    """The sequence tokens of a batch, counted: within an example and over the batch. All are int32.

    Behaviours share videos and videos share authors, tags and durations, so an example has about half as many distinct
    tokens as tokens. Equal ones have equal scores under every query, whichever sequence they come from.

    Attributes:
        row_U: the distinct tokens of each example, one example after the other, as rows of the distinct embeddings.
        count_U: how many tokens of the example each of them stands for; at least 1.
        start_Y: where each example's begin, then U.
        by_row_L: the sequence tokens, counted from the first of them, in the order of their rows.
        row_start_X: where the tokens of each distinct embedding begin in `by_row_L`.
    """

    row_U: Tensor
    count_U: Tensor
    start_Y: Tensor
    by_row_L: Tensor
    row_start_X: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:  # noqa: FBT001, FBT002 - as a tensor's
        """The same on another device."""
        return type(self)(*(value.to(device=device, non_blocking=non_blocking) for value in self.tensors()))

    def pin_memory(self) -> Self:
        """The same in page-locked host memory."""
        return type(self)(*(value.pin_memory() for value in self.tensors()))

    def record_stream(self, stream: torch.Stream) -> None:
        """See `Batch.record_stream`."""
        for value in self.tensors():
            value.record_stream(stream)

    def tensors(self) -> Iterator[Tensor]:
        """All of them, in their order."""
        return (getattr(self, f.name) for f in fields(self))


@dataclass(slots=True)
class Batch(Pipelineable):
    """What the loader makes and the model reads.

    Attributes:
        categorical: features of the EmbeddingBagCollection: one id an example and key, or up to `max_values` of a
            feature that has several, whose embeddings are averaged.
        sequences: the EmbeddingCollection's input, keyed by table: every distinct id of this batch once. Which example
            an id is counted to means nothing. A batch repeats most of its ids some ten to a hundred times, and the
            unpooled lookup, its backward pass and its all-to-all are the costliest part of a step.
        spread_K: for each unpooled token its row among the distinct embeddings (all tables of `sequences` one after
            the other), int64. First the features that share a sequence's table, feature-major, then the sequences,
            feature-major, oldest event first. Rows beyond the distinct embeddings are the means, in their order.
        lengths_FB: events of each sequence in each example, int64.
        labels_BT: 0 or 1, float32.
        user_B: the user's index in the store, int64; groups examples for gAUC.
        rarity_BM: for each categorical token, one over the number of training look-ups of its id, float32; 0 for ids
            that are never rare (ranges, hours) or never trained, the mean over the ids of a feature that has several.
            [B, 0] where nobody asked for it.
        weight_B: 1 for an example, 0 for the padding of a last short evaluation batch, float32.
        managed: features of managed tables, as `categorical`; None where there are none.
        mean_row_Q: where unpooled tokens have several ids, whose embeddings are averaged: the rows of each mean among
            the distinct embeddings, one mean after the other, int64; None where no token has several.
        mean_start_P: where each mean's rows begin in `mean_row_Q`, int64.
        loss_weight_B: of the examples in the training loss, float32: 0 for padding, and over all training examples 1 in
            the mean; None where the log has no weights, and `weight_B` is all there is.
        repeats: what models read in the place of every single sequence token; None where nobody counted.
    """

    categorical: KeyedJaggedTensor
    sequences: KeyedJaggedTensor
    spread_K: Tensor
    lengths_FB: Tensor
    labels_BT: Tensor
    user_B: Tensor
    rarity_BM: Tensor
    weight_B: Tensor
    managed: KeyedJaggedTensor | None = None
    mean_row_Q: Tensor | None = None
    mean_start_P: Tensor | None = None
    loss_weight_B: Tensor | None = None
    repeats: Repeats | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:  # noqa: FBT001, FBT002 - TorchRec's signature
        """The same batch on another device."""
        return type(self)(**{k: v.to(device=device, non_blocking=non_blocking) for k, v in self._given()})

    def pin_memory(self) -> Self:
        """The same batch in page-locked host memory, so that copies to a GPU overlap with compute."""
        return type(self)(**{k: v.pin_memory() for k, v in self._given()})

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory alive until the work queued on `stream` is done."""
        for _, value in self._given():
            value.record_stream(stream)

    def _given(self) -> Iterator[tuple[str, Any]]:
        return ((f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None)
