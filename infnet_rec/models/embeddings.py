"""Schema to embedding collections, and looked-up embeddings to tokens.

Shapes: B examples, M features, F sequences, K unpooled tokens, X distinct embeddings, D width.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.regroup import KTRegroupAsDict
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from infnet_rec.batch import Repeats
from infnet_rec.errors import UserError
from infnet_rec.models.tokens import Tokens
from infnet_rec.schema import Schema


def make_bags(schema: Schema, width: int, half: Collection[str] = ()) -> EmbeddingBagCollection:
    """One table a feature that shares none, on the meta device: nothing is allocated before sharding.

    Tables of features with several values average them; the others have one value an example, and sum it, which spares
    the division. Tables named in `half` keep their weights in fp16; what is looked up is fp32.

    Raises:
        UserError: every feature shares its table with a sequence, so there is nothing to hold.
    """
    if not schema.plain_bag_features:
        raise UserError(
            "schema: every feature shares a sequence's table or has a managed one; at least one must have a plain one "
            "of its own"
        )
    averaged = {f.table for f in schema.bag_features if f.max_values > 1}
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                embedding_dim=width,
                num_embeddings=table.num_rows,
                feature_names=[f.name for f in schema.bag_features if f.table == table.name],
                pooling=PoolingType.MEAN if table.name in averaged else PoolingType.SUM,
                data_type=DataType.FP16 if table.name in half else DataType.FP32,
            )
            for table in schema.bag_tables
            if not table.managed
        ],
        device=torch.device("meta"),
    )


def make_events(schema: Schema, width: int, half: Collection[str] = ()) -> EmbeddingCollection:
    """The tables that sequences read, on the meta device; a table is its own only feature (see `Batch.sequences`).

    Tables named in `half` keep their weights in fp16; what is looked up is fp32.

    Raises:
        UserError: the schema has no sequences.
    """
    if not schema.sequences:
        raise UserError("schema: has no sequences; declare [[behaviours]] and [sequences] in the recipe")
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=table.name,
                embedding_dim=width,
                num_embeddings=table.num_rows,
                feature_names=[table.name],
                data_type=DataType.FP16 if table.name in half else DataType.FP32,
            )
            for table in schema.sequence_tables
        ],
        device=torch.device("meta"),
    )


class TokenAssembly(nn.Module):
    """Puts what the two collections return into `Tokens`; owns no parameters."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self._bag = [f.name for f in schema.bag_features]
        self._tables = [t.name for t in schema.sequence_tables]
        self._num_shared = len(schema.shared_features)
        self._averages = schema.averages_tokens
        self._width = width
        # Finds out at the first batch where each feature is, and need not tell the device again.
        self._in_order = KTRegroupAsDict([self._bag], ["bags"])

    def forward(
        self,
        bags: KeyedTensor,
        distinct: dict[str, JaggedTensor],
        spread_K: Tensor,
        lengths_FB: Tensor,
        managed: KeyedTensor | None = None,
        mean_row_Q: Tensor | None = None,
        mean_start_P: Tensor | None = None,
        repeats: Repeats | None = None,
    ) -> Tokens:
        """Assembles the tokens of a batch.

        Args:
            bags: D values a bag feature and example; sharding may have reordered the keys.
            distinct: the embeddings of each table's distinct ids.
            spread_K: see `Batch`.
            lengths_FB: see `Batch`.
            managed: as `bags`, of managed tables.
            mean_row_Q: see `Batch`.
            mean_start_P: see `Batch`.
            repeats: see `Batch`.
        """
        pooled = [bags] if managed is None else [bags, managed]
        in_order = managed is None and list(bags.keys()) == self._bag
        bag_BX: Tensor = bags.values() if in_order else self._in_order(pooled)["bags"]
        bag_BMD = bag_BX.view(-1, len(self._bag), self._width)
        distinct_XD = torch.cat([distinct[name].values() for name in self._tables])
        if self._averages:
            # A token of several ids is the mean of their rows, and that is one row more.
            mean_PD = functional.embedding_bag(mean_row_Q, distinct_XD, mean_start_P, mode="mean")  # pyright: ignore[reportArgumentType]
            distinct_XD = torch.cat([distinct_XD, mean_PD])
        batch_size = bag_BMD.shape[0]
        shared_SB = spread_K[: self._num_shared * batch_size].view(self._num_shared, batch_size)
        # functional.embedding, not indexing: its backward pass sums repeated rows many times faster on a CPU.
        shared_BMD = functional.embedding(shared_SB.t(), distinct_XD)
        return Tokens(
            categorical_BMD=torch.cat([bag_BMD, shared_BMD], dim=1),
            distinct_XD=distinct_XD,
            lengths_FB=lengths_FB,
            row_L=spread_K[shared_SB.numel() :],
            repeats=repeats,
        )
