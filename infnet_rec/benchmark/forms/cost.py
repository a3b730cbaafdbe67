"""Parameters and FLOPs of a tower, part by part.

Shapes: B examples, M categorical tokens, F sequences, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infnet_rec.models.tokens import Tokens

OTHERS = "everything else"


@dataclass(frozen=True, slots=True)
class TowerPart:
    """One part of a tower.

    Attributes:
        name: of the module.
        num_parameters: of it and what is inside.
        flops: of one more example in a batch, forward: matrix products by torch's own formulas, a multiplication and an
            addition being two. What is done once a batch is not in it.
    """

    name: str
    num_parameters: int
    flops: int


def cost_of(tower: nn.Module, num_features: int, width: int, lengths_FB: Tensor) -> list[TowerPart]:
    """Every part of a tower; what belongs to none comes last, where there is any.

    Args:
        tower: on a CPU; its parameters will ask for no gradients any more.
        num_features: M.
        width: D, of tokens.
        lengths_FB: numbers of events; the FLOPs are a mean over these examples.
    """
    tower.eval().requires_grad_(requires_grad=False)
    num_examples = lengths_FB.shape[1]
    once = _flops(tower, num_features, width, lengths_FB)
    twice = _flops(tower, num_features, width, torch.cat([lengths_FB, lengths_FB], dim=1))
    root = type(tower).__name__

    def flops_of(module: nn.Module, name: str) -> int:
        if name in twice:
            return (twice[name] - once[name]) // num_examples
        return sum(flops_of(child, f"{name}.{key}") for key, child in module.named_children())

    parts = [TowerPart(n, _num_parameters(m), flops_of(m, f"{root}.{n}")) for n, m in _parts(tower)]
    num_parameters = _num_parameters(tower) - sum(part.num_parameters for part in parts)
    flops = flops_of(tower, root) - sum(part.flops for part in parts)
    return [*parts, TowerPart(OTHERS, num_parameters, flops)] if num_parameters or flops else parts


def _parts(tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The tower's own modules, and in the place of a mere list of modules what is in it."""
    for name, module in tower.named_children():
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and type(module).forward is nn.Module.forward:
            yield from ((f"{name}.{key}", child) for key, child in module.named_children())
        else:
            yield name, module


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(tower: nn.Module, num_features: int, width: int, lengths_FB: Tensor) -> dict[str, int]:
    """Of a batch, by module."""
    tokens = Tokens(
        torch.zeros(lengths_FB.shape[1], num_features, width),
        torch.zeros(int(lengths_FB.sum()), width),
        lengths_FB,
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(tokens)
    return {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
