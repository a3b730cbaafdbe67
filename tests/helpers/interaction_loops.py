"""The feature-interaction and sequence models as their papers write them, one example and one number at a time.

The oracle of test_interaction_models.py. It shares no code with the package: there is no batch, no padding and nothing
is moved out of a sum. Weights go by the package's names. An example is what one row of `Tokens` says.

Shapes: M categorical tokens, F sequences, N fields, D width, X = attributes * D.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infnet_rec.models.tokens import TokenLayout

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Example:
    """`features` are M vectors; `sequences` are F lists of vectors, oldest event first."""

    features: list[Tensor]
    sequences: list[list[Tensor]]
    layout: TokenLayout


def total(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    result = torch.zeros_like(like)
    for vector in vectors:
        result = result + vector
    return result


def mean(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    return total(vectors, like) / max(1, len(vectors))


def fields(x: Example) -> list[Tensor]:
    return [*x.features, *(mean(events, x.features[0]) for events in x.sequences)]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = w[f"{name}.weight"] @ x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def batch_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """As in evaluation."""
    y = (x - w[f"{name}.running_mean"]) / torch.sqrt(w[f"{name}.running_var"] + eps)
    return y * w[f"{name}.weight"] + w[f"{name}.bias"] if f"{name}.weight" in w else y


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    return centred / torch.sqrt((centred**2).sum() / len(x) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def body(w: Weights, x: Tensor, name: str = "deep") -> Tensor:
    i = 0
    while f"{name}.layers.{i}.weight" in w:
        x = linear(w, f"{name}.layers.{i}", x)
        if f"{name}.norms.{i}.running_mean" in w:
            x = batch_norm(w, f"{name}.norms.{i}", x, 1e-5)
        x, i = torch.clamp(x, min=0), i + 1
    return x


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    i = 0
    while f"{name}.layers.{i + 1}.weight" in w:
        x, i = torch.clamp(linear(w, f"{name}.layers.{i}", x), min=0), i + 1
    return linear(w, f"{name}.layers.{i}", x)


def heads(w: Weights, x: Tensor, layout: TokenLayout) -> Tensor:
    return torch.cat([mlp(w, f"heads.towers.{t}", x) for t in range(layout.num_tasks)])


def fm(w: Weights, x: Example, width: int) -> Tensor:
    """Column width + role * T + task of a token is a linear weight."""
    num_tasks = x.layout.num_tasks
    embeddings = [field[:width] for field in fields(x)]
    scores = []
    for t in range(num_tasks):
        y = w["bias_T"][t]
        for token in x.features:
            y = y + token[width + t]
        for behaviour, events in zip(x.layout.behaviour_of_sequence, x.sequences, strict=True):
            for event in events:
                y = y + event[width + (1 + behaviour) * num_tasks + t]
        for i in range(len(embeddings)):
            for j in range(i):
                product = embeddings[i] * embeddings[j]
                y = y + (product if num_tasks == 1 else product * w["product_TD"][t]).sum()
        scores.append(y)
    return torch.stack(scores)


def dcn_mixture(w: Weights, x: Example) -> Tensor:
    x_0 = torch.cat(fields(x))
    x_l, num = x_0, 0
    while f"cross.layers.{num}.bias_X" in w:
        layer = f"cross.layers.{num}"
        gate = torch.softmax(linear(w, "cross.gate", x_l), dim=0)
        change = torch.zeros_like(x_0)
        for e in range(len(gate)):
            down, inner, up = (w[f"{layer}.{name}"][e] for name in ("down_EKX", "inner_EKK", "up_EXK"))
            expert = up @ torch.tanh(inner @ torch.tanh(down @ x_l)) + w[f"{layer}.bias_X"]
            change = change + gate[e] * (x_0 * expert)
        x_l, num = x_l + change, num + 1
    return heads(w, torch.cat([x_l, body(w, x_0)]), x.layout)


def dcn_full(w: Weights, x: Example) -> Tensor:
    x_0 = torch.cat(fields(x))
    x_l, num = x_0, 0
    while f"cross.layers.{num}.weight" in w:
        x_l, num = x_l + x_0 * linear(w, f"cross.layers.{num}", x_l), num + 1
    return heads(w, torch.cat([x_l, body(w, x_0)]), x.layout)


def gdcn(w: Weights, x: Example, structure: str) -> Tensor:
    x_0 = torch.cat(fields(x))
    x_l, num = x_0, 0
    while f"cross.{num}.bias_X" in w:
        made = linear(w, f"cross.{num}.weight", x_l) + w[f"cross.{num}.bias_X"]
        x_l, num = x_l + x_0 * made / (1 + torch.exp(-linear(w, f"cross.{num}.gate", x_l))), num + 1
    read = body(w, x_l) if structure == "stacked" else torch.cat([x_l, body(w, x_0)])
    return heads(w, read, x.layout)


def wukong(w: Weights, x: Example) -> Tensor:
    vectors, num = fields(x), 0
    width = len(vectors[0])
    while f"layers.{num}.norm.weight" in w:
        layer, X = f"layers.{num}", torch.stack(vectors)
        products = torch.stack([torch.stack([(a * b).sum() for b in vectors]) for a in vectors])
        flat = (products @ w[f"{layer}.products.rank_NK"]).reshape(-1)
        made = mlp(w, f"{layer}.products.mlp", layer_norm(w, f"{layer}.products.norm", flat))
        rows = [made[i : i + width] for i in range(0, len(made), width)]
        rows += list(w[f"{layer}.linear.weight"] @ X)
        if f"{layer}.shortcut.weight" in w:
            X = w[f"{layer}.shortcut.weight"] @ X + w[f"{layer}.shortcut.bias"][:, None]
        vectors = [layer_norm(w, f"{layer}.norm", row + kept) for row, kept in zip(rows, X, strict=True)]
        num += 1
    return heads(w, body(w, torch.cat(vectors)), x.layout)


def candidate_and_events(x: Example, behaviour: int) -> tuple[list[int], Tensor, list[Tensor]]:
    """The sequences of a behaviour that have a target; the targets side by side; each event's attributes likewise."""
    target = x.layout.target_of_sequence
    mine = [f for f, b in enumerate(x.layout.behaviour_of_sequence) if b == behaviour and target[f] is not None]
    if not mine:
        return [], torch.empty(0), []
    query = torch.cat([x.features[m] for f in mine if (m := target[f]) is not None])
    num_events = len(x.sequences[mine[0]])
    return mine, query, [torch.cat([x.sequences[f][t] for f in mine]) for t in range(num_events)]


def with_histories(w: Weights, x: Example, read: dict[int, Tensor]) -> Tensor:
    """Body and heads on the categorical tokens and one field a sequence."""
    width = len(x.features[0])
    field = [mean(events, x.features[0]) for events in x.sequences]
    for behaviour, vector in read.items():
        for place, f in enumerate(candidate_and_events(x, behaviour)[0]):
            field[f] = vector[place * width : (place + 1) * width]
    return heads(w, body(w, torch.cat([*x.features, *field])), x.layout)


def din(w: Weights, x: Example) -> Tensor:
    read = {}
    for behaviour in sorted(set(x.layout.behaviour_of_sequence)):
        mine, query, events = candidate_and_events(x, behaviour)
        if not mine:
            continue
        read[behaviour] = torch.zeros_like(query)
        for event in events:
            name, i = f"attention.{behaviour}", 0
            h = torch.cat([query, event, query - event, query * event])
            while f"{name}.dices.{i}.alpha_H" in w:
                h = linear(w, f"{name}.layers.{i}", h)
                p = torch.sigmoid(batch_norm(w, f"{name}.dices.{i}.norm", h, 1e-9))
                h, i = p * h + w[f"{name}.dices.{i}.alpha_H"] * (1 - p) * h, i + 1
            read[behaviour] = read[behaviour] + linear(w, f"{name}.layers.{i}", h) * event
    return with_histories(w, x, read)


def gru_step(w: Weights, name: str, x: Tensor, h: Tensor, attention: Tensor | float) -> Tensor:
    size = len(h)
    part = [slice(k * size, (k + 1) * size) for k in range(3)]
    gate_in = [w[f"{name}.weight_ih"][s] @ x + w[f"{name}.bias_ih"][s] for s in part]
    gate_inner = [w[f"{name}.weight_hh"][s] @ h + w[f"{name}.bias_hh"][s] for s in part]
    reset = torch.sigmoid(gate_in[0] + gate_inner[0])
    update = attention * torch.sigmoid(gate_in[1] + gate_inner[1])
    new = torch.tanh(gate_in[2] + reset * gate_inner[2])
    return (1 - update) * h + update * new


def interests(w: Weights, name: str, events: Sequence[Tensor]) -> list[Tensor]:
    """The states of DIEN's first GRU."""
    states = []
    for event in events:
        states.append(gru_step(w, name, event, states[-1] if states else torch.zeros_like(event), 1.0))
    return states


def dien(w: Weights, x: Example) -> Tensor:
    read = {}
    for behaviour in sorted(set(x.layout.behaviour_of_sequence)):
        mine, query, events = candidate_and_events(x, behaviour)
        if not mine:
            continue
        name, state = f"evolutions.{behaviour}", torch.zeros_like(query)
        states = interests(w, f"{name}.gru", events)
        scores = [torch.exp((h @ w[f"{name}.attention_XX"]) @ query) for h in states]
        for h, score in zip(states, scores, strict=True):
            state = gru_step(w, f"{name}.augru", h, state, score / sum(scores))
        read[behaviour] = state
    return with_histories(w, x, read)


def hstu(w: Weights, x: Example, num_heads: int, max_tokens: int) -> Tensor:
    layout, sequences = x.layout, x.sequences
    targets = sorted({m for m in layout.target_of_sequence if m is not None})
    tokens = [token for m, token in enumerate(x.features) if m not in targets]
    if "context_layer.weight" in w:
        tokens = [linear(w, "context_layer", token) for token in tokens]
    kinds = ["context"] * len(tokens)
    for behaviour in sorted(set(layout.behaviour_of_sequence)):
        mine = [f for f, b in enumerate(layout.behaviour_of_sequence) if b == behaviour]
        for t in range(len(sequences[mine[0]])):
            tokens.append(linear(w, f"event.{behaviour}", torch.cat([sequences[f][t] for f in mine])))
            kinds.append("event")
    tokens.append(linear(w, "target", torch.cat([x.features[m] for m in targets])))
    kinds.append("target")

    def sees(i: int, j: int) -> bool:
        if kinds[j] == "target":
            return kinds[i] == "target"
        return kinds[i] != "event" or kinds[j] == "context" or j <= i

    width, num = len(tokens[0]), 0
    d_k = width // num_heads
    while f"layers.{num}.out.weight" in w:
        layer = f"layers.{num}"
        normed = [layer_norm(w, f"{layer}.norm_in", token) for token in tokens]
        U, Q = zip(*(silu(linear(w, f"{layer}.gate_and_query", x)).split(width) for x in normed), strict=True)
        K, V = zip(*(silu(linear(w, f"{layer}.key_and_value", x)).split(width) for x in normed), strict=True)
        updated = []
        for i in range(len(tokens)):
            read = []
            for h in range(num_heads):
                part = slice(h * d_k, (h + 1) * d_k)
                seen = [j for j in range(len(tokens)) if sees(i, j)]
                terms = [silu(Q[i][part] @ K[j][part] / math.sqrt(d_k)) / max_tokens * V[j][part] for j in seen]
                read.append(total(terms, V[0][part]))
            made = layer_norm(w, f"{layer}.norm_out", torch.cat(read)) * U[i]
            updated.append(linear(w, f"{layer}.out", made) + tokens[i])
        tokens, num = updated, num + 1
    return heads(w, layer_norm(w, "norm", tokens[-1]), layout)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))
