"""The multi-task models as their papers write them, one example, one expert and one weight at a time.

The oracle of test_multi_task_models.py; see `interaction_loops`, whose layers and examples it uses. Nothing is stacked:
every expert's output is multiplied by its own number and added.

Shapes: X values of all fields side by side, T tasks, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from interaction_loops import Example, Weights, body, fields, mlp


def side_by_side(x: Example, first: int, last: int) -> Tensor:
    """Columns `first` to `last` of every field."""
    return torch.cat([field[first:last] for field in fields(x)])


def experts(w: Weights, name: str, x: Tensor) -> list[Tensor]:
    found = []
    while any(key.startswith(f"{name}.experts.{len(found)}.") for key in w):
        found.append(body(w, x, f"{name}.experts.{len(found)}"))
    return found


def gated(w: Weights, name: str, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    score = mlp(w, f"{name}.mlp", x)
    assert len(score) == len(outputs)
    exponents = [torch.exp(score[i] - score.max()) for i in range(len(outputs))]
    result = torch.zeros_like(outputs[0])
    for exponent, output in zip(exponents, outputs, strict=True):
        result = result + exponent / sum(exponents) * output
    return result


def towers(w: Weights, reads: Sequence[Tensor]) -> Tensor:
    return torch.cat([mlp(w, f"heads.towers.{t}", read) for t, read in enumerate(reads)])


def shared_bottom(w: Weights, x: Example, width: int) -> Tensor:
    z = body(w, side_by_side(x, 0, width), "bottom")
    return towers(w, [z for _ in range(x.layout.num_tasks)])


def mmoe(w: Weights, x: Example, width: int) -> Tensor:
    x0 = side_by_side(x, 0, width)
    outputs = experts(w, "experts", x0)
    return towers(w, [gated(w, f"gates.{t}", x0, outputs) for t in range(x.layout.num_tasks)])


def omoe(w: Weights, x: Example, width: int) -> Tensor:
    x0 = side_by_side(x, 0, width)
    mixed = gated(w, "gates.0", x0, experts(w, "experts", x0))
    return towers(w, [mixed for _ in range(x.layout.num_tasks)])


def ple(w: Weights, x: Example, width: int, num_layers: int) -> Tensor:
    num_tasks = x.layout.num_tasks
    own, shared = [side_by_side(x, 0, width)] * num_tasks, side_by_side(x, 0, width)
    for i in range(num_layers):
        layer = f"layers.{i}"
        of_task = [experts(w, f"{layer}.task_experts.{t}", own[t]) for t in range(num_tasks)]
        of_all = experts(w, f"{layer}.shared_experts", shared)
        own = [gated(w, f"{layer}.task_gates.{t}", own[t], of_task[t] + of_all) for t in range(num_tasks)]
        if i < num_layers - 1:
            everyone = [output for outputs in of_task for output in outputs] + of_all
            shared = gated(w, f"{layer}.shared_gate", shared, everyone)
    return towers(w, own)


def stem(w: Weights, x: Example, width: int) -> Tensor:
    num_tasks = x.layout.num_tasks
    embeddings = [side_by_side(x, t * width, (t + 1) * width) for t in range(num_tasks + 1)]
    shared = embeddings[num_tasks]
    of_task = [experts(w, f"task_experts.{t}", embeddings[t]) for t in range(num_tasks)]
    of_all = experts(w, "shared_experts", shared)
    reads = []
    for t in range(num_tasks):
        outputs = []
        for s in range(num_tasks):
            outputs += of_task[s] if s == t else [output.detach() for output in of_task[s]]
        reads.append(gated(w, f"gates.{t}", embeddings[t] + shared, outputs + of_all))
    return towers(w, reads)
