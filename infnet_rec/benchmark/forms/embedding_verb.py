"""`bench embedding`: lookups of a real batch, each distinct id once and every token on its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch
from infnet_rec.benchmark.exchange import Exchange
from infnet_rec.benchmark.forms.every_token import TokenByTokenAssembly, every_token, make_token_events
from infnet_rec.benchmark.machine import describe_machine
from infnet_rec.benchmark.samples import alternate_together, middle
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.data.run_schema import refuse_managed
from infnet_rec.distributed.process_group import (
    World,
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.metrics import mean_over_ranks
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.models.registry import table_width
from infnet_rec.planner.run_plan import check_run, plan_model
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import shard, train_loader

Dedup = Literal["distinct", "every_token"]
TITLES = {
    "distinct": "sequences: each distinct id once",
    "every_token": "sequences: every token",
    "bags": "features of their own tables",
}
MEASURED = ("ids", "tokens", "forward_s", "forward_backward_s", "forward_sent_bytes", "backward_sent_bytes")

JSON = dict[str, Any]

REPEATS = 3


@dataclass(frozen=True, slots=True)
class Lookup:
    """One way from ids to embeddings.

    Attributes:
        collection: sharded, with its optimizer fused into the backward pass.
        ids: its input on this rank.
        spread_K: for each token its row among what is looked up; None where they are the same.
        num_tokens: embeddings that come out on this rank.
    """

    collection: nn.Module
    ids: KeyedJaggedTensor
    spread_K: Tensor | None
    num_tokens: int

    def forward(self) -> Tensor:
        """All embeddings of this rank's batch, in one tensor."""
        found: Any = self.collection(self.ids)
        found = found.wait() if hasattr(found, "wait") else found
        if not isinstance(found, Mapping):
            return found.values()
        rows_XD = torch.cat([value.values() for value in found.values()])
        return rows_XD if self.spread_K is None else functional.embedding(self.spread_K, rows_XD)


def measure_lookups(
    lookups: Mapping[str, Lookup], device: torch.device, rank: int, world_size: int, *, num_rounds: int
) -> dict[str, dict[str, Any]]:
    """Times them side by side; on several ranks all call it together.

    Returns:
        By name: `ids` looked up, `tokens` that come out, seconds of the forward pass and of forward and backward with
        the update of the tables (those of each round in `samples_s`), bytes sent to other ranks in each pass; of this
        rank.
    """
    facts: dict[str, dict[str, Any]] = {}
    forwards: dict[str, Callable[[], object]] = {}
    trainings: dict[str, Callable[[], object]] = {}
    for name, lookup in lookups.items():
        with Exchange(rank, world_size) as there:
            out = lookup.forward()
        gradient = torch.full_like(out, 1e-3)
        with Exchange(rank, world_size) as back:
            out.backward(gradient)
        facts[name] = {
            "ids": lookup.ids.values().numel(),
            "tokens": lookup.num_tokens,
            "forward_sent_bytes": there.sent_bytes,
            "backward_sent_bytes": back.sent_bytes,
        }
        forwards[name] = lookup.forward
        trainings[name] = lambda lookup=lookup, gradient=gradient: lookup.forward().backward(gradient)
    with torch.no_grad():
        forward = alternate_together(forwards, device, num_rounds=num_rounds, repeats=REPEATS)
    training = alternate_together(trainings, device, num_rounds=num_rounds, repeats=REPEATS)
    for name, fact in facts.items():
        fact |= {"forward_s": middle(forward[name]).wall_s, "forward_backward_s": middle(training[name]).wall_s}
        fact["samples_s"] = [one.wall_s for one in training[name]]
    return facts


def bench_embedding(config_path: Path, overrides: Sequence[str], *, num_rounds: int) -> JSON | None:
    """Measures on this rank's share of the first training batch; under torchrun, as one of its ranks.

    Returns:
        The measurements, on rank 0.

    Raises:
        UserError: the configuration or its store is at fault.
    """
    config = load_config(config_path, overrides)
    world, data = world_from_env(), open_data(config)
    check_run(config, data, world)
    refuse_managed(data.schema, "bench embedding")
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    with process_group(world):
        facts = _measure(config, data, world, num_rounds)
    if not world.is_first:
        return None
    return {
        "bench": "embedding",
        "machine": describe_machine(world.device),
        "num_ranks": world.world_size,
        "global_batch_size": config.train.global_batch_size,
        "width": table_width(config, data.schema),
        "tokens_per_distinct_id": facts["distinct"]["tokens"] / facts["distinct"]["ids"],
        "lookups": facts,
    }


def make_model(config: RunConfig, data: RunData, dedup: Dedup) -> RankingModel:
    """The whole model on the meta device, with or without dedup."""
    model = meta_model(config, data)
    if dedup == "every_token":
        width = table_width(config, data.schema)
        model.events = make_token_events(data.schema, width)
        model.assembly = TokenByTokenAssembly(data.schema, width)
    return model


def _measure(config: RunConfig, data: RunData, world: World, num_rounds: int) -> dict[str, JSON]:
    batch: Batch = next(train_loader(config, data, world).batches(0, 1)).to(world.device)
    plain = every_token(batch, data.schema)
    models = make_model(config, data, "distinct"), make_model(config, data, "every_token")
    plans = [plan_model(model, config, data, world) for model in models]
    distinct, tokens = (
        _parts(shard(model, plan, config, world).model.module) for model, plan in zip(models, plans, strict=True)
    )
    num_tokens = batch.spread_K.numel()
    lookups = {
        "distinct": Lookup(distinct.events, batch.sequences, batch.spread_K, num_tokens),
        "every_token": Lookup(tokens.events, plain.sequences, None, num_tokens),
        "bags": Lookup(distinct.bags, batch.categorical, None, batch.categorical.values().numel()),
    }
    own = measure_lookups(lookups, world.device, world.rank, world.world_size, num_rounds=num_rounds)
    # Collective: the ranks' shares of a batch differ in ids, and so in time and bytes.
    mean = mean_over_ranks(torch.tensor([[own[name][key] for key in MEASURED] for name in own], device=world.device))
    facts: dict[str, JSON] = {
        name: dict[str, Any](zip(MEASURED, row, strict=True)) for name, row in zip(own, mean.tolist(), strict=True)
    }
    return {
        name: {**_all_ranks(fact, world.world_size), "samples_s": own[name]["samples_s"]}
        for name, fact in facts.items()
    }


def _parts(module: object) -> RankingModel:
    assert isinstance(module, RankingModel)
    return module


def _all_ranks(mean: JSON, num_ranks: int) -> JSON:
    """What all ranks do together in the time that one needs."""
    ids, tokens = mean["ids"] * num_ranks, mean["tokens"] * num_ranks
    return {
        "ids": ids,
        "tokens": tokens,
        "forward_ms": mean["forward_s"] * 1e3,
        "forward_backward_ms": mean["forward_backward_s"] * 1e3,
        "forward_tokens_per_s": tokens / mean["forward_s"],
        "forward_backward_tokens_per_s": tokens / mean["forward_backward_s"],
        "forward_bytes_between_ranks": mean["forward_sent_bytes"] * num_ranks,
        "backward_bytes_between_ranks": mean["backward_sent_bytes"] * num_ranks,
    }


def embedding_lines(result: JSON) -> list[str]:
    """The measurements for people."""
    machine, ranks = result["machine"], result["num_ranks"]
    text = [
        f"global batch {result['global_batch_size']:,}, width {result['width']}, {ranks} rank{'s' * (ranks > 1)} on "
        f"{machine['name']} ({machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)} a rank)",
        f"sequences repeat an id {result['tokens_per_distinct_id']:.1f} times in a rank's batch",
        "",
        f"{'':<33}{'ids':>7}{'lookups':>10}{'forward':>11}{'and backward':>14}{'MiB sent':>10}{'and back':>10}",
    ]
    for name, fact in result["lookups"].items():
        sent = [fact[f"{kind}_bytes_between_ranks"] / 2**20 for kind in ("forward", "backward")]
        text.append(
            f"{TITLES[name]:<33}{fact['ids']:>7,.0f}{fact['tokens']:>10,.0f}"
            f"{fact['forward_tokens_per_s'] / 1e6:>9.2f} M{fact['forward_backward_tokens_per_s'] / 1e6:>12.2f} M"
            f"{sent[0]:>10.2f}{sent[1]:>10.2f}"
        )
    return [*text, "", "forward, and backward: lookups a second, with the update of the tables in the backward pass"]
