"""INFNet as the paper writes it: every key, value and gated token is formed, padded to the longest, and masked.

The oracle of test_infnet.py and test_attention.py. It shares no code with the package and saves no work: the last
block computes everything, also what nothing reads. Weights go by the paper's names: "phi_cat", "phi_seq", "T", "T~",
"1 CA(C~,S) Wq", "1 PGU(C)", "1 LN(C~)", "head 0"; blocks count from 1.

Shapes: B examples, M categorical tokens, F sequences, E events of the longest sequence, T tasks, P queries, X tokens,
D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# "(C~,S)" is the flow in which C~ reads S; the value is its name in the package.
FLOWS = {
    "(C~,S)": "readings.sequence.categorical_proxy",
    "(T~,S)": "readings.sequence.task_proxy",
    "(T,S)": "readings.sequence.task",
    "(S~,C)": "readings.categorical.sequence_proxy",
    "(T~,C)": "readings.categorical.task_proxy",
    "(T,C)": "readings.categorical.task",
    "(C~,T)": "readings.task.categorical_proxy",
    "(S~,T)": "readings.task.sequence_proxy",
}
QUERIES = {"C~": "categorical_proxy", "S~": "sequence_proxy", "T~": "task_proxy", "T": "task"}
GATES = {"C": "categorical", "S": "sequence", "T": "task"}


@dataclass(frozen=True)
class Sizes:
    """The numbers that shape the weights; names as in the paper: m, F, Ns, N."""

    num_features: int
    num_tasks: int
    width: int
    group_of_sequence: tuple[int, ...]
    m: int = 4
    Ns: int = 2
    N: int = 2
    proxy_hidden: tuple[int, ...] = (128,)
    gate_hidden: tuple[int, ...] = (64,)
    head_hidden: tuple[int, ...] = (64, 32)
    norms: bool = False
    tokens_a_head_reads: int = 1

    @property
    def F(self) -> int:
        return len(set(self.group_of_sequence))


@dataclass(frozen=True)
class Variant:
    """The choices that leave the weights' shapes alone."""

    heads: int = 1
    pooling: str = "sum"
    residual: str = "both"
    ablation: str = "none"
    ablation_head: str = "pool"
    readout: str = "task"


def package_names(sizes: Sizes) -> dict[str, str]:
    """The paper's name of every weight, and the package's."""
    names = {"T": "start.task.token_PD", "T~": "start.task_proxy.token_PD"}
    networks = {"phi_seq": "start.sequence_proxy.projection"}
    for i in range(len(sizes.proxy_hidden) + 1):
        networks[f"phi_cat {i}"] = f"start.categorical_proxy.mlp.layers.{i}"
    for n in range(1, sizes.N + 1):
        block = f"blocks.{n - 1}"
        for flow, where in FLOWS.items():
            for paper, package in (("Wq", "query_DD"), ("Wk", "key_DD"), ("Wv", "value_DD")):
                names[f"{n} CA{flow} {paper}"] = f"{block}.{where}.{package}"
        for kind, where in GATES.items():
            for i in range(len(sizes.gate_hidden) + 1):
                networks[f"{n} PGU({kind}) {i}"] = f"{block}.gates.{where}.layers.{i}"
        if sizes.norms:
            for query, where in QUERIES.items():
                networks[f"{n} LN({query})"] = f"{block}.norms.{where}"
    for t in range(sizes.num_tasks):
        for i in range(len(sizes.head_hidden) + 1):
            networks[f"head {t} {i}"] = f"heads.towers.{t}.layers.{i}"
    for paper, package in networks.items():
        for part in ("weight", "bias"):
            names[f"{paper} {part}"] = f"{package}.{part}"
    return names


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that the paper's equations mention."""
    d = sizes.width
    found: dict[str, tuple[int, ...]] = {"T": (sizes.num_tasks, d), "T~": (sizes.Ns, d)}

    def mlp(name: str, *units: int) -> None:
        for i in range(len(units) - 1):
            found[f"{name} {i} weight"] = (units[i + 1], units[i])
            found[f"{name} {i} bias"] = (units[i + 1],)

    mlp("phi_cat", sizes.num_features * d, *sizes.proxy_hidden, sizes.m * d)
    found |= {"phi_seq weight": (d, d), "phi_seq bias": (d,)}
    for n in range(1, sizes.N + 1):
        found |= {f"{n} CA{flow} {w}": (d, d) for flow in FLOWS for w in ("Wq", "Wk", "Wv")}
        for kind, num_proxies in (("C", sizes.m), ("S", sizes.F), ("T", sizes.Ns)):
            mlp(f"{n} PGU({kind})", num_proxies * d, *sizes.gate_hidden, d)
        if sizes.norms:
            found |= {f"{n} LN({query}) {part}": (d,) for query in QUERIES for part in ("weight", "bias")}
    for t in range(sizes.num_tasks):
        mlp(f"head {t}", sizes.tokens_a_head_reads * d, *sizes.head_hidden, 1)
    return found


def pad(token_LD: Tensor, lengths_FB: Tensor) -> tuple[Tensor, Tensor]:
    """Feature-major tokens as event_BFED, and present_BFE: which of them are events rather than padding."""
    num_sequences, num_examples = lengths_FB.shape
    longest = max(1, int(lengths_FB.max()))
    event_BFED = token_LD.new_zeros(num_examples, num_sequences, longest, token_LD.shape[1])
    present_BFE = torch.zeros(num_examples, num_sequences, longest, dtype=torch.bool)
    start = 0
    for f in range(num_sequences):
        for b in range(num_examples):
            length = int(lengths_FB[f, b])
            event_BFED[b, f, :length] = token_LD[start : start + length]
            present_BFE[b, f, :length] = True
            start += length
    return event_BFED, present_BFE


def mlp(w: Mapping[str, Tensor], name: str, x_BX: Tensor) -> Tensor:
    i = 0
    while f"{name} {i + 1} weight" in w:
        x_BX = torch.relu(x_BX @ w[f"{name} {i} weight"].T + w[f"{name} {i} bias"])
        i += 1
    return x_BX @ w[f"{name} {i} weight"].T + w[f"{name} {i} bias"]


def probabilities(
    w: Mapping[str, Tensor], name: str, query_BPD: Tensor, token_BXD: Tensor, present_BX: Tensor, heads: int
) -> list[Tensor]:
    """softmax(Q Wq (X Wk)^T / sqrt(dk)), [B, P, X] for each head, which has its own slice of the projections."""
    query, key = query_BPD @ w[f"{name} Wq"], token_BXD @ w[f"{name} Wk"]
    d_k = query.shape[-1] // heads
    present_B1X = present_BX[:, None]
    found = []
    for h in range(heads):
        part = slice(h * d_k, (h + 1) * d_k)
        score_BPX = query[..., part] @ key[..., part].transpose(1, 2) / d_k**0.5
        found.append(torch.softmax(score_BPX.masked_fill(~present_B1X, -1e30), dim=-1) * present_B1X)
    return found


def cross_attention(
    w: Mapping[str, Tensor], name: str, query_BPD: Tensor, token_BXD: Tensor, present_BX: Tensor, heads: int
) -> Tensor:
    """softmax(Q Wq (X Wk)^T / sqrt(dk)) (X Wv), head by head."""
    value = token_BXD @ w[f"{name} Wv"]
    d_k = value.shape[-1] // heads
    found = probabilities(w, name, query_BPD, token_BXD, present_BX, heads)
    return torch.cat([p_BPX @ value[..., h * d_k : (h + 1) * d_k] for h, p_BPX in enumerate(found)], dim=-1)


def layer_norm(w: Mapping[str, Tensor], name: str, x_BPD: Tensor) -> Tensor:
    centred = x_BPD - x_BPD.mean(dim=-1, keepdim=True)
    spread = (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * w[f"{name} weight"] + w[f"{name} bias"]


def sequence_proxies(
    w: Mapping[str, Tensor], event_BFED: Tensor, present_BFE: Tensor, group_of_sequence: tuple[int, ...], pooling: str
) -> Tensor:
    projected_BFED = (event_BFED @ w["phi_seq weight"].T + w["phi_seq bias"]) * present_BFE[..., None]
    proxies = []
    for g in range(max(group_of_sequence) + 1):
        members = [f for f, group in enumerate(group_of_sequence) if group == g]
        total_BD = projected_BFED[:, members].sum(dim=(1, 2))
        if pooling == "mean":
            total_BD = total_BD / present_BFE[:, members].sum(dim=(1, 2)).clamp(min=1)[:, None]
        proxies.append(total_BD)
    return torch.stack(proxies, dim=1)


def logits(
    w: Mapping[str, Tensor],
    sizes: Sizes,
    variant: Variant,
    categorical_BMD: Tensor,
    event_BFED: Tensor,
    present_BFE: Tensor,
) -> Tensor:
    """logits_BT of the whole network."""
    num_examples = categorical_BMD.shape[0]
    C, S = categorical_BMD, event_BFED.flatten(1, 2)
    everywhere = {
        "C": torch.ones(C.shape[:2], dtype=torch.bool),
        "S": present_BFE.flatten(1),
        "T": torch.ones(num_examples, sizes.num_tasks, dtype=torch.bool),
    }
    C_ = mlp(w, "phi_cat", C.flatten(1)).reshape(num_examples, sizes.m, sizes.width)
    S_ = sequence_proxies(w, event_BFED, present_BFE, sizes.group_of_sequence, variant.pooling)
    T_ = w["T~"].expand(num_examples, -1, -1)
    T = w["T"].expand(num_examples, -1, -1)

    for n in range(1, sizes.N + 1):
        inputs = {"C~": C_, "S~": S_, "T~": T_, "T": T, "C": C, "S": S}

        def update(query: str, *kinds: str, n: int = n, inputs: dict[str, Tensor] = inputs) -> Tensor:
            result = inputs[query] if variant.residual in ("proxy", "both") else torch.zeros_like(inputs[query])
            for kind in kinds:
                flow = f"{n} CA({query},{kind})"
                result = result + cross_attention(w, flow, inputs[query], inputs[kind], everywhere[kind], variant.heads)
            return layer_norm(w, f"{n} LN({query})", result) if sizes.norms else result

        def gate(kind: str, x: Tensor, proxy: Tensor, n: int = n) -> Tensor:
            g_BD = torch.sigmoid(mlp(w, f"{n} PGU({kind})", proxy.flatten(1)))
            return x * (g_BD + 1 if variant.residual in ("gate", "both") else g_BD)[:, None]

        T_hat = T
        if variant.ablation == "no_task_tokens":
            C_, S_ = update("C~", "S"), update("S~", "C")
        elif variant.ablation != "no_cross_attention":
            C_, S_ = update("C~", "S", "T"), update("S~", "C", "T")
            T_, T_hat = update("T~", "C", "S"), update("T", "C", "S")
        T = T_hat
        if variant.ablation != "no_gates":
            C, S, T = gate("C", C, C_), gate("S", S, S_), gate("T", T_hat, T_)

    late, proxies = variant.ablation_head == "late", [*C_.unbind(dim=1), *S_.unbind(dim=1)]
    scores = []
    for t in range(sizes.num_tasks):
        token_BD = T[:, t]
        if variant.ablation == "no_task_tokens":
            token_BD = torch.cat(proxies, dim=1) if late else C_.mean(dim=1) + S_.mean(dim=1)
        if variant.readout == "proxies":
            token_BD = torch.cat([token_BD, *proxies], dim=1)
        if variant.ablation == "no_cross_attention":
            present_BX1 = everywhere["S"][..., None]
            mean_S = (S * present_BX1).sum(dim=1) / present_BX1.sum(dim=1).clamp(min=1)
            mean_C = C.sum(dim=1) / C.shape[1]
            token_BD = torch.cat([token_BD, mean_C, mean_S], dim=1) if late else token_BD + mean_C + mean_S
        scores.append(mlp(w, f"head {t}", token_BD))
    return torch.cat(scores, dim=1)
