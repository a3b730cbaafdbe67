"""What every model in this room consumes.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens of the whole batch, D width.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Tokens:
    """Looked-up embeddings of one batch.

    Attributes:
        categorical_BMD: one token a feature: the schema's bag features, then its shared features.
        sequence_LD: one token a (sequence, event), feature-major: all events of sequence 0 (example 0, then 1, ...),
            then all of sequence 1, and so on; oldest event first. This is TorchRec's own layout.
        lengths_FB: number of events of each sequence in each example, int64; sums to L.
    """

    categorical_BMD: Tensor
    sequence_LD: Tensor
    lengths_FB: Tensor
