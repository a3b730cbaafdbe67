"""The tower in its forms, with the same weights: literal, eager, and fused where there is a kernel and a GPU.

Shapes: B examples, M categorical tokens, F sequences, G groups of them, L sequence tokens of the whole batch, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from infnet_rec.benchmark.forms.reference_infnet import LiteralInfnet
from infnet_rec.config.model import Attention, InfnetConfig
from infnet_rec.errors import Failure
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.tokens import Tokens

Form = Literal["literal", "eager", "fused"]
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Sizes of the tower's input.

    Attributes:
        num_features: M.
        group_of_sequence: for each sequence, the proxy that pools it.
        num_tasks: logits an example.
        width: D.
        lengths_FB: events of each sequence in each example.
    """

    num_features: int
    group_of_sequence: tuple[int, ...]
    num_tasks: int
    width: int
    lengths_FB: Tensor

    @property
    def batch_size(self) -> int:
        """The number of examples B."""
        return self.lengths_FB.shape[1]

    @property
    def token_bytes(self) -> int:
        """All tokens of a batch, in float32."""
        num_tokens = self.num_features * self.batch_size + int(self.lengths_FB.sum())
        return 4 * self.width * num_tokens

    def first(self, num_examples: int) -> "TowerShape":
        """A smaller batch of the same kind."""
        return replace(self, lengths_FB=self.lengths_FB[:, :num_examples])

    def to_json(self) -> dict[str, Any]:
        """For people and scripts."""
        return {
            "batch_size": self.batch_size,
            "num_features": self.num_features,
            "num_sequences": len(self.group_of_sequence),
            "num_groups": max(self.group_of_sequence) + 1,
            "num_tasks": self.num_tasks,
            "width": self.width,
            "events_per_example": float(self.lengths_FB.sum()) / self.batch_size,
            "most_events_of_a_sequence": int(self.lengths_FB.max()),
        }


def full_lengths(num_sequences: int, batch_size: int, length: int) -> Tensor:
    """Lengths of sequences that are all full, [F, B]."""
    return torch.full((num_sequences, batch_size), length)


def ragged_lengths(group_of_sequence: tuple[int, ...], batch_size: int, longest: int) -> Tensor:
    """0 to `longest` events, each number as likely; sequences of a group are attributes of the same events."""
    generator = torch.Generator().manual_seed(0)
    length_GB = torch.randint(longest + 1, (max(group_of_sequence) + 1, batch_size), generator=generator)
    return length_GB[list(group_of_sequence)]


def make_tokens(shape: TowerShape, device: torch.device) -> Tokens:
    """Random tokens that ask for gradients, as looked-up embeddings do."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.batch_size, shape.num_features, shape.width), (int(shape.lengths_FB.sum()), shape.width)
    categorical_BMD, sequence_LD = (
        torch.randn(size, generator=generator).mul_(0.1).to(device).requires_grad_() for size in sizes
    )
    return Tokens(categorical_BMD, sequence_LD, shape.lengths_FB.to(device))


def make_forms(
    shape: TowerShape, config: InfnetConfig, device: torch.device, *, interpreted: bool = False
) -> tuple[dict[Form, Infnet], dict[Form, str]]:
    """The forms with the same weights, and why a form is missing.

    Args:
        shape: of the input.
        config: of the tower; the shape says how wide it is.
        device: where it will run.
        interpreted: whether Triton's interpreter may stand in for a GPU; it is thousands of times slower.
    """

    def form_of(kind: type[Infnet], attention: Attention) -> Infnet:
        own = config.model_copy(update={"width": shape.width, "attention": attention})
        return kind(
            num_features=shape.num_features,
            group_of_sequence=shape.group_of_sequence,
            num_tasks=shape.num_tasks,
            config=own,
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        forms: dict[Form, Infnet] = {"literal": form_of(LiteralInfnet, "eager"), "eager": form_of(Infnet, "eager")}
    missing: dict[Form, str] = {}
    if device.type != "cuda" and not interpreted:
        missing["fused"] = "its kernel needs a GPU"
    else:
        forms["fused"] = form_of(Infnet, "fused")
    for form in forms.values():
        form.load_state_dict(forms["literal"].state_dict())
        form.to(device)
    return forms, missing


def check_logits(forms: Mapping[Form, Infnet], tokens: Tokens) -> float:
    """The largest difference of any form's logits from the eager one's.

    Raises:
        Failure: it is more than rounding explains, so the forms are not the same function and a comparison is void.
    """
    with torch.no_grad():
        logits = {name: form.eval()(tokens) for name, form in forms.items()}
    for form in forms.values():
        form.train()
    differences = {name: float((logits_BT - logits["eager"]).abs().max()) for name, logits_BT in logits.items()}
    largest = max(differences, key=lambda name: differences[name])
    if not differences[largest] <= TOLERANCE * (1 + float(logits["eager"].abs().max())):
        raise Failure(f"the logits of {largest} differ from eager's by {differences[largest]:g}: not the same function")
    return differences[largest]
