"""`model`: what a run's model is made of, and what an example costs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infnet_rec.benchmark.forms.forms import full_lengths
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.distributed.process_group import silence_third_party_warnings, world_from_env
from infnet_rec.models.registry import make_tower, table_width
from infnet_rec.models.tokens import Tokens
from infnet_rec.planner.run_plan import check_run

NUM_EXAMPLES = 32

JSON = dict[str, Any]

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


def describe_model(config_path: Path, overrides: Sequence[str], *, ragged: bool) -> JSON:
    """Counts parameters and FLOPs of the run's model, part by part.

    Args:
        config_path: a run's TOML file.
        overrides: laid on it, see `load_config`.
        ragged: whether histories are those of the first training examples, in the place of full ones.

    Raises:
        UserError: the configuration or its store is at fault.
    """
    silence_third_party_warnings()
    config = load_config(config_path, overrides)
    data = open_data(config)
    check_run(config, data, world_from_env())
    schema, width = data.schema, table_width(config, data.schema)
    lengths_FB = _lengths(config, data, ragged=ragged)
    parts = cost_of(make_tower(config, schema), len(schema.features), width, lengths_FB)
    tables = schema.bag_tables + schema.sequence_tables
    num_rows = sum(table.num_rows for table in tables)
    return {
        "model": config.model.model_dump(mode="json"),
        "num_features": len(schema.features),
        "num_sequences": len(schema.sequences),
        "tasks": data.task_names,
        "histories": "those of training examples" if ragged else "full",
        "sequence_length": config.data.sequence_length,
        "events_per_example": float(lengths_FB.sum()) / lengths_FB.shape[1],
        "parts": [asdict(part) for part in parts],
        "num_dense_parameters": sum(part.num_parameters for part in parts),
        "flops_per_example": sum(part.flops for part in parts),
        "tables": {"num_tables": len(tables), "num_rows": num_rows, "width": width, "num_parameters": num_rows * width},
    }


def _lengths(config: RunConfig, data: RunData, *, ragged: bool) -> Tensor:
    """Lengths of histories, int64 [F, B]: full ones, or those of training examples."""
    length = config.data.sequence_length
    if not ragged:
        return full_lengths(len(data.schema.sequences), NUM_EXAMPLES, length)
    reader = BatchReader(data.store, "train", data.schema, length)
    spread = np.linspace(0, len(reader) - 1, min(NUM_EXAMPLES, len(reader))).astype(np.int64)
    return reader.read(spread).lengths_FB


def model_lines(result: JSON) -> list[str]:
    """The counts for people."""
    tables, model = result["tables"], result["model"]
    text = [
        f"{model['name']} of width {model['width']}: {result['num_features']} features, {result['num_sequences']} "
        f"sequences with {result['events_per_example']:,.0f} events an example (at most {result['sequence_length']} "
        f"each), tasks {', '.join(result['tasks'])}",
        "",
        f"{'part':<36}{'parameters':>16}{'FLOPs an example':>20}",
    ]
    rows = [(part["name"], part["num_parameters"], part["flops"]) for part in result["parts"]]
    rows.append(("dense part", result["num_dense_parameters"], result["flops_per_example"]))
    text += [f"{name:<36}{num_parameters:>16,}{flops:>20,}" for name, num_parameters, flops in rows]
    title = f"{tables['num_tables']} tables, {tables['num_rows']:,} rows of {tables['width']}"
    return [
        *text,
        f"{title:<36}{tables['num_parameters']:>16,}",
        "",
        "FLOPs of matrix products in a forward pass, a multiplication and an addition being two; histories are "
        + result["histories"],
    ]
