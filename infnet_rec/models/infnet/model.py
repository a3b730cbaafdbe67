"""INFNet: categorical, sequence and task tokens that exchange information through a few proxies.

Reference: INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems, arXiv 2508.11565.
The paper's names, used in comments: C, S, T are categorical, sequence and task tokens; C~, S~, T~ their proxies (T~ the
shared task tokens); CA is cross attention; PGU the proxy gated unit; X' what a block makes of X.

A block has two stages. First the heterogeneous one, in which proxies and task tokens read the other kinds' tokens:

    C~' = CA(C~, S) + CA(C~, T)      S~' = CA(S~, C) + CA(S~, T)
    T~' = CA(T~, C) + CA(T~, S)      T^  = CA(T, C)  + CA(T, S)

then the homogeneous one, in which each kind is gated by its updated proxies, X * sigmoid(MLP(flatten X~')):

    C' = PGU(C, C~')                 S' = PGU(S, S~')                 T' = PGU(T^, T~')

All flows of a block read its input. What nothing reads after the last block is neither computed nor has parameters.
Heads read T', and with `readout` "proxies" C~' and S~' too, which is ours and not the paper's.

Shapes: B examples, M categorical tokens, F sequences, G groups of sequences, L sequence tokens of the whole batch,
P tokens of one query set, T tasks, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infnet_rec.config.model import Ablation, Attention, InfnetConfig, Readout
from infnet_rec.config.run import RunConfig
from infnet_rec.config.train import Precision
from infnet_rec.errors import UserError
from infnet_rec.models.batched import stack_alike
from infnet_rec.models.infnet.attention import DenseTokens, Readings, TokenSet
from infnet_rec.models.infnet.fused_attention import lay_out_sequences
from infnet_rec.models.infnet.proxies import CategoricalProxies, SequenceProxies
from infnet_rec.models.layers import Gates, LearnedTokens, TaskHeads, read_everything, read_proxies, read_tokens
from infnet_rec.models.precision import computing_in, narrowed, widened
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens

Kind = Literal["categorical", "sequence", "task"]
Query = Literal["categorical_proxy", "sequence_proxy", "task_proxy", "task"]

# The eight flows: who reads each kind of token.
READERS: Mapping[Kind, tuple[Query, ...]] = {
    "sequence": ("categorical_proxy", "task_proxy", "task"),
    "categorical": ("sequence_proxy", "task_proxy", "task"),
    "task": ("categorical_proxy", "sequence_proxy"),
}
# In this order neighbours read the same, first and second (S S S C, then C C T T), so that each set is read once.
TOGETHER: tuple[Query, ...] = ("task_proxy", "task", "categorical_proxy", "sequence_proxy")


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """What one block computes: the kinds that are read, who is updated by reading them, the kinds that are gated."""

    reads: tuple[Kind, ...]
    updates: tuple[Query, ...]
    gates: tuple[Kind, ...]


def plan_blocks(
    ablation: Ablation, readout: Readout, num_blocks: int
) -> tuple[tuple[Query, ...], tuple[BlockPlan, ...]]:
    """Which queries exist, and what each block does: no more than something after it reads."""
    everyone = get_args(Query)
    match ablation:
        case "none":
            queries = everyone
            inner = BlockPlan(("sequence", "categorical", "task"), everyone, ("categorical", "sequence", "task"))
            if readout == "proxies":
                last = BlockPlan(inner.reads, everyone, ("task",))
            else:
                last = BlockPlan(("sequence", "categorical"), ("task_proxy", "task"), ("task",))
        case "no_task_tokens":
            queries = ("categorical_proxy", "sequence_proxy")
            inner = BlockPlan(("sequence", "categorical"), queries, ("categorical", "sequence"))
            last = BlockPlan(("sequence", "categorical"), queries, ())
        case "no_gates":
            queries = ("task",)
            inner = last = BlockPlan(("sequence", "categorical"), queries, ())
        case "no_cross_attention":
            queries = everyone
            inner = last = BlockPlan((), (), ("categorical", "sequence", "task"))
    return queries, (*[inner] * (num_blocks - 1), last)


class Block(nn.Module):
    """One block of the network, as far as its plan goes."""

    def __init__(self, plan: BlockPlan, num_tokens: Mapping[str, int], config: InfnetConfig) -> None:
        super().__init__()
        width = config.width
        self.adds_query = config.residual in ("both", "proxy")
        self.gate_offset = 1.0 if config.residual in ("both", "gate") else 0.0
        self.readings: Readings | None = None
        if plan.reads:
            readers = {kind: [name for name in READERS[kind] if name in plan.updates] for kind in plan.reads}
            queries = {name: num_tokens[name] for name in TOGETHER if name in plan.updates}
            self.readings = Readings(readers, queries, width, config.num_heads)
        self.norms = nn.ModuleDict()
        for name in plan.updates:
            self.norms[name] = nn.LayerNorm(width) if config.proxy_norm == "layer" else nn.Identity()
        num_inputs = {kind: num_tokens[f"{kind}_proxy"] * width for kind in plan.gates}
        self.gates = Gates(num_inputs, config.gate_hidden, width, config.dropout)

    def parts(self) -> tuple[Readings | Gates, ...]:
        """What has weights that are stacked; none of the two has to be there."""
        return tuple(part for part in (self.readings, self.gates) if part is not None and part.alike())

    def forward(
        self,
        query_BPD: Mapping[str, Tensor],
        sets: Mapping[str, TokenSet],
        stacked: Sequence[Sequence[Tensor]] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, TokenSet]]:
        """The next block's input.

        Args:
            query_BPD: proxies and task tokens, [B, P, D] each.
            sets: categorical and sequence tokens.
            stacked: what `stack_alike` makes of `parts`, where it has been called.
        """
        weights = dict(zip(self.parts(), stack_alike(*self.parts()) if stacked is None else stacked, strict=True))
        # Heterogeneous stage. Every flow reads the block's input: no update is seen before all have been made.
        updated_BPD, gated = dict(query_BPD), dict(sets)
        if self.readings is not None:
            names = self.readings.num_tokens
            together_BPD = torch.cat([query_BPD[name] for name in names], dim=1)
            narrow_BPD, keys = narrowed(together_BPD), dict(sets)
            if "task" in self.readings.kinds:
                keys["task"] = DenseTokens(self.readings.part(narrow_BPD, "task"))
            read_BPD, read_sets = self.readings(narrow_BPD, keys, weights[self.readings])
            gated = {kind: read_sets[kind] for kind in sets}
            sum_BPD = together_BPD + read_BPD if self.adds_query else read_BPD
            parts_BPD = sum_BPD.split(list(names.values()), dim=1)
            updated_BPD |= {name: self.norms[name](part) for name, part in zip(names, parts_BPD, strict=True)}

        # Homogeneous stage. Gates read the updated proxies.
        if len(self.gates):
            proxy_BPD = {kind: updated_BPD[f"{kind}_proxy"] for kind in self.gates}
            factor_GBD = self.gate_offset + torch.sigmoid(self.gates(proxy_BPD, weights[self.gates]))
            for kind, factor_BD in zip(self.gates, factor_GBD, strict=True):
                if kind == "task":
                    updated_BPD["task"] = updated_BPD["task"] * factor_BD[:, None]
                else:
                    gated[kind] = gated[kind].gated(factor_BD)
        return updated_BPD, gated


class Infnet(nn.Module):
    """Tokens in, one logit a task out."""

    def __init__(
        self,
        *,
        num_features: int,
        group_of_sequence: tuple[int, ...],
        num_tasks: int,
        config: InfnetConfig,
    ) -> None:
        """Builds the network; on the meta device too.

        Args:
            num_features: M, categorical tokens an example.
            group_of_sequence: for each sequence, the index of the proxy that pools it; 0 .. G - 1, each at least once.
            num_tasks: T, logits an example.
            config: everything else; its `width` is D, of every token.

        Raises:
            UserError: there is nothing to read or to predict, a group is empty, or the heads do not divide the width.
        """
        super().__init__()
        width = config.width
        sizes = {"num_features": num_features, "num_tasks": num_tasks}
        faults = [f"{name} is {value}; it must be at least 1" for name, value in sizes.items() if value < 1]
        if not group_of_sequence or set(group_of_sequence) != set(range(max(group_of_sequence) + 1)):
            faults.append(f"group_of_sequence is {group_of_sequence}; it must name each of 0 .. G - 1 at least once")
        if width % config.num_heads:
            divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
            faults.append(f"num_heads is {config.num_heads}; it must divide width {width}: take one of {divisors}")
        _raise(faults)
        self.num_tasks, self.config = num_tasks, config
        self.attention: Attention = config.attention
        # Of the matrix products. Parameters and logits are in float32 with "bf16" too.
        self.precision: Precision = "fp32"
        queries, plans = plan_blocks(config.ablation, config.readout, config.num_blocks)
        num_tokens = {
            "categorical_proxy": config.num_categorical_proxies,
            "sequence_proxy": max(group_of_sequence) + 1,
            "task_proxy": config.num_shared_tokens,
            "task": num_tasks,
        }
        start = {
            "categorical_proxy": lambda: CategoricalProxies(
                num_features, width, config.num_categorical_proxies, config.proxy_hidden, config.dropout
            ),
            "sequence_proxy": lambda: SequenceProxies(group_of_sequence, width, config.pooling),
            "task_proxy": lambda: LearnedTokens(config.num_shared_tokens, width),
            "task": lambda: LearnedTokens(num_tasks, width),
        }
        self.start = nn.ModuleDict({name: start[name]() for name in queries})
        self.blocks = nn.ModuleList(Block(plan, num_tokens, config) for plan in plans)
        num_read = _num_read(config, num_tokens["categorical_proxy"] + num_tokens["sequence_proxy"])
        self.heads = TaskHeads(num_tasks, num_read * width, config.head_hidden, config.dropout)

    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT.

        Raises:
            UserError: lengths and tokens do not fit, or the tokens are where "fused" attention does not work.
        """
        with computing_in(self.precision, tokens.lengths_FB.device):
            blocks = [cast(Block, block) for block in self.blocks]
            first = [start for start in self.start.values() if isinstance(start, CategoricalProxies)]
            parts = [first, *(block.parts() for block in blocks), [self.heads]]
            stacked = iter(stack_alike(*(part for group in parts for part in group)))
            of_start, *of_blocks, (of_heads,) = ([next(stacked) for _ in group] for group in parts)

            narrow = replace(tokens, categorical_BMD=narrowed(tokens.categorical_BMD))
            query_BPD, distinct_XD = self._begin(narrow, of_start)
            sequences = replace(tokens, distinct_XD=distinct_XD)
            sets: dict[str, TokenSet] = {
                "categorical": DenseTokens(narrow.categorical_BMD),
                "sequence": lay_out_sequences(sequences, self.attention),
            }
            for block, of_block in zip(blocks, of_blocks, strict=True):
                if self.config.checkpoint_blocks and torch.is_grad_enabled():
                    query_BPD, sets = checkpoint(block, query_BPD, sets, of_block, use_reentrant=False)
                else:
                    query_BPD, sets = block(query_BPD, sets, of_block)
            logits_BT = self.heads(self._read_out(query_BPD, sets), of_heads)
        return logits_BT if self.precision == "fp32" else widened(logits_BT)

    def _begin(self, tokens: Tokens, stacked: Sequence[Sequence[Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """The first proxies and task tokens, [B, P, D] each, and the distinct rows for whoever reads them next."""
        query_BPD, distinct_XD = {}, tokens.distinct_XD
        for name, start in self.start.items():
            if isinstance(start, SequenceProxies):
                query_BPD[name], distinct_XD = start(tokens)
            elif isinstance(start, CategoricalProxies):
                query_BPD[name] = widened(start(tokens, *stacked))
            else:
                query_BPD[name] = start(tokens)
        return query_BPD, distinct_XD

    def _read_out(self, query_BPD: Mapping[str, Tensor], sets: Mapping[str, TokenSet]) -> Tensor:
        """What each task's head reads, [B, T, D] or wider."""
        head = self.config.ablation_head
        match self.config.ablation:
            case "no_task_tokens":
                return read_proxies(*_proxies(query_BPD), self.num_tasks, head)
            case "no_cross_attention":
                # A query of zeros finds all tokens alike: it reads their mean.
                zero_B1D = torch.zeros_like(query_BPD["task"][:, :1])
                categorical_B1D, sequence_B1D = (sets[kind].attend(zero_B1D)[0] for kind in ("categorical", "sequence"))
                return read_tokens(query_BPD["task"], categorical_B1D, sequence_B1D, head)
            case _ if self.config.readout == "proxies":
                return read_everything(query_BPD["task"], *_proxies(query_BPD))
            case _:
                return query_BPD["task"]


def _num_read(config: InfnetConfig, num_proxies: int) -> int:
    """Tokens that a head reads side by side."""
    match config.ablation, config.ablation_head, config.readout:
        case "none", _, "proxies":
            return 1 + num_proxies
        case "no_task_tokens", "late", _:
            return num_proxies
        case "no_cross_attention", "late", _:
            return 3
        case _:
            return 1


def _proxies(query_BPD: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """C~ and S~."""
    return query_BPD["categorical_proxy"], query_BPD["sequence_proxy"]


def _raise(faults: list[str]) -> None:
    if faults:
        raise UserError("\n".join(f"infnet: {fault}" for fault in faults))


@register(InfnetConfig)
def infnet_of(layout: TokenLayout, config: InfnetConfig, form: type[Infnet] = Infnet) -> Infnet:
    """INFNet in one of its forms, which have the same parameters.

    Args:
        layout: of the tokens.
        config: its section.
        form: the class.
    """
    return form(
        num_features=len(layout.feature_names),
        group_of_sequence=layout.group_of_sequence,
        num_tasks=layout.num_tasks,
        config=config,
    )


def infnet_section(config: RunConfig) -> InfnetConfig:
    """The run's model, which must be INFNet.

    Raises:
        UserError: it is another one.
    """
    if not isinstance(config.model, InfnetConfig):
        raise UserError(f'model.name is "{config.model.name}": only "infnet" has several forms to compare; choose it')
    return config.model
