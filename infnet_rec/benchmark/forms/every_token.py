"""The same model without dedup: every token's id is looked up, as a plain TorchRec model does.

Shapes: F sequences, B examples, K unpooled tokens, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from infnet_rec.batch import Batch, Repeats
from infnet_rec.errors import UserError
from infnet_rec.models.embeddings import TokenAssembly
from infnet_rec.models.tokens import Tokens
from infnet_rec.schema import Schema


def make_token_events(schema: Schema, width: int) -> EmbeddingCollection:
    """The tables of `make_events` by the same names; their features are the shared features and the sequences.

    Raises:
        UserError: a token is the mean of several rows.
    """
    if schema.averages_tokens:
        part = next(p for p in (*schema.shared_features, *schema.sequences) if p.max_values > 1)
        raise UserError(
            f"{part.name}: has up to {part.max_values} values, which are averaged, and what looks up every token by "
            "itself cannot; drop the feature and its sequences from the profile"
        )
    readers = (*schema.shared_features, *schema.sequences)
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=table.name,
                embedding_dim=width,
                num_embeddings=table.num_rows,
                feature_names=[reader.name for reader in readers if reader.table == table.name],
            )
            for table in schema.sequence_tables
        ],
        device=torch.device("meta"),
    )


def every_token(batch: Batch, schema: Schema) -> Batch:
    """The batch with an id for every token; `spread_K` has nothing left to say and is empty; nothing is counted."""
    num_shared, batch_size = len(schema.shared_features), len(batch.labels_BT)
    lengths_FB = torch.cat([batch.lengths_FB.new_ones(num_shared, batch_size), batch.lengths_FB])
    ids = KeyedJaggedTensor(
        keys=[reader.name for reader in (*schema.shared_features, *schema.sequences)],
        values=batch.sequences.values()[batch.spread_K],
        lengths=lengths_FB.flatten(),
        length_per_key=lengths_FB.sum(dim=1).tolist(),
    )
    return replace(batch, sequences=ids, spread_K=batch.spread_K[:0], repeats=None)


class TokenByTokenAssembly(TokenAssembly):
    """In the place of `TokenAssembly`: what was looked up already stands in the order of the tokens."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__(schema, width)
        self._readers = [reader.name for reader in (*schema.shared_features, *schema.sequences)]

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
        """See `TokenAssembly.forward`; here an id is not distinct, `spread_K` is not read, and no table is managed."""
        assert managed is None and mean_row_Q is None and mean_start_P is None and repeats is None
        in_order = list(bags.keys()) == self._bag
        bag_BX: Tensor = bags.values() if in_order else KeyedTensor.regroup([bags], [self._bag])[0]
        bag_BMD = bag_BX.view(-1, len(self._bag), self._width)
        tokens_KD = torch.cat([distinct[name].values() for name in self._readers])
        batch_size = bag_BMD.shape[0]
        num_shared = self._num_shared * batch_size
        shared_BMD = tokens_KD[:num_shared].view(self._num_shared, batch_size, self._width).transpose(0, 1)
        return Tokens(torch.cat([bag_BMD, shared_BMD], dim=1), tokens_KD[num_shared:], lengths_FB)
