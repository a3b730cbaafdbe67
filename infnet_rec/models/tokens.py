"""What every model in this room consumes.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens of the whole batch, X distinct embeddings, D
width.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional

from infnet_rec.batch import Repeats
from infnet_rec.schema import Schema


@dataclass(slots=True)
class Tokens:
    """Looked-up embeddings of one batch.

    Sequence tokens are rows of what was looked up: a batch has far more tokens than distinct embeddings, so models read
    them by reference.

    Attributes:
        categorical_BMD: one token a feature: the schema's bag features, then its shared features.
        distinct_XD: the distinct embeddings that sequence tokens refer to.
        lengths_FB: number of events of each sequence in each example, int64; sums to L.
        row_L: the row of each sequence token, int64, one a (sequence, event), feature-major: all events of sequence 0
            (example 0, then 1, ...), then all of sequence 1, and so on; oldest event first. This is TorchRec's own
            layout. None where every row is one token, in this order.
        repeats: the same tokens counted; None where nobody counted.
    """

    categorical_BMD: Tensor
    distinct_XD: Tensor
    lengths_FB: Tensor
    row_L: Tensor | None = None
    repeats: Repeats | None = None

    @property
    def sequence_LD(self) -> Tensor:
        """Every sequence token, written out anew at each call, [L, D]; for models that cannot read by reference."""
        if self.row_L is None:
            return self.distinct_XD
        # functional.embedding, not indexing: its backward pass sums repeated rows many times faster on a CPU.
        return functional.embedding(self.row_L, self.distinct_XD)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """What stands where in `Tokens`: all that a model knows of the schema.

    Attributes:
        feature_names: of the M categorical tokens, in their order.
        sequence_names: of the F sequences.
        behaviour_of_sequence: for each sequence, the index of its behaviour. The sequences of one behaviour list the
            same events, so their lengths agree.
        group_of_sequence: for each sequence, the index of the proxy group that it belongs to.
        target_of_sequence: for each sequence, the index of the categorical token that says the same of the candidate
            item, such as its author for a sequence of authors; None where the profile has no such feature.
        num_tasks: T.
    """

    feature_names: tuple[str, ...]
    sequence_names: tuple[str, ...]
    behaviour_of_sequence: tuple[int, ...]
    group_of_sequence: tuple[int, ...]
    target_of_sequence: tuple[int | None, ...]
    num_tasks: int

    @property
    def num_fields(self) -> int:
        """Categorical tokens, and sequences of which a model makes one vector each."""
        return len(self.feature_names) + len(self.sequence_names)

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """The layout of the tokens that `TokenAssembly` makes for a schema."""
        names = tuple(f.name for f in (*schema.bag_features, *schema.shared_features))
        behaviours = schema.behaviours
        return cls(
            feature_names=names,
            sequence_names=tuple(s.name for s in schema.sequences),
            behaviour_of_sequence=tuple(behaviours.index(s.behaviour) for s in schema.sequences),
            group_of_sequence=schema.group_of_sequence,
            target_of_sequence=tuple(
                names.index(s.attribute) if s.attribute in names else None for s in schema.sequences
            ),
            num_tasks=len(schema.tasks),
        )
