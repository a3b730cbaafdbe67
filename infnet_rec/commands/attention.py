"""`attention`: what a trained INFNet's tasks attend to, and how wide its gates are open, as pictures and tables."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from infnet_rec.batch import Batch
from infnet_rec.commands import attention_files
from infnet_rec.commands.assemble import Data, Sharded, open_data, shard_model
from infnet_rec.commands.attention_examples import Candidates, chosen, identity, one_example
from infnet_rec.commands.attention_sums import Names, Sums
from infnet_rec.commands.eval import check_split, for_scoring
from infnet_rec.commands.resume import MAY_CHANGE, differences
from infnet_rec.commands.shelves import find
from infnet_rec.commands.train import quieten, use_threads
from infnet_rec.config.load import load_config
from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.data.generate.files import fresh_folder
from infnet_rec.data.loader import BatchReader
from infnet_rec.faults import Fault
from infnet_rec.model.infnet import Infnet
from infnet_rec.model.ranking import Scores
from infnet_rec.model.recording import Recorded, recording
from infnet_rec.shard.world import check_gpus, joined, place
from infnet_rec.strict import check
from infnet_rec.train.checkpoint.restore import load_weights
from infnet_rec.train.checkpoint.shelf import Commit, name_of

BATCH_SIZE = 128  # a sequence token is copied for its slot: more would only take more memory
# Weights fit whatever these are, and mean something else.
MUST_AGREE = ("model.", "data.profile", "data.sequence_groups", "data.sequence_length", "train.tasks")
WITHOUT_TASK_ATTENTION = {
    "no_task_tokens": "it has no task tokens",
    "no_cross_attention": "its task tokens read nothing",
}

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted.

    Attributes:
        checkpoint: a run directory (its best checkpoint), a folder of checkpoints or one checkpoint, or a URL of these.
        split: train, valid or test.
        num_examples: of the split, evenly spread, to average over; all where there are fewer.
        examples: rows of the split to draw one by one; None for two with long histories, one of them positive.
    """

    checkpoint: str
    split: str
    num_examples: int
    examples: tuple[int, ...] | None = None


def attention(config_path: Path, overrides: Sequence[str], asked: Asked, out: Path) -> JSON:
    """Records some of a split's examples and writes what was found.

    Args:
        config_path: the TOML file of the run that the checkpoint is of.
        overrides: laid on it, as when it was trained.
        asked: what is wanted.
        out: a new folder.

    Raises:
        Fault: the model is not INFNet, or has no task token that attends to anything; the checkpoint is not there, or
            of another model or store; no such split or example; `out` is taken; or there are several ranks.
    """
    config, world = load_config(config_path, overrides), place()
    _check_model(config)
    if world.world_size > 1:
        raise Fault(f"attention: works on one rank, and torchrun started {world.world_size}; start it alone")
    check_gpus(world)
    data = open_data(config)
    check_split(asked.split, data.store)
    shelf, commit = find(asked.checkpoint)
    where = f"checkpoint {name_of(commit.step)} in {shelf.where}"
    _check_checkpoint(config, data, commit, where)
    reader = BatchReader(data.store, asked.split, data.schema, config.data.sequence_length)
    rows_N = np.unique(np.linspace(0, len(reader) - 1, min(asked.num_examples, len(reader))).astype(np.int64))
    _check_rows(asked.examples or (), len(reader), asked.split)
    quieten()
    use_threads(config.train.num_threads, world)
    with fresh_folder(out) as folder:
        with joined(world):
            sharded = shard_model(_without_compiling(for_scoring(config)), data, world)
            load_weights(shelf, commit, sharded.model)
            found = _look(sharded, config, data, reader, asked, rows_N)
        result = {
            "checkpoint": {"where": shelf.where, "step": commit.step},
            "config": str(config_path),
            "dataset": {"name": data.store.manifest["name"], "fingerprint": data.store.fingerprint},
            "split": asked.split,
            "num_examples_of_split": len(reader),
            "model": config.model.model_dump(mode="json"),
            "tasks": data.task_names,
            **found,
        }
        attention_files.write(result, folder)
    return {"out": str(out), **result}


def _look(
    sharded: Sharded,
    config: RunConfig,
    data: Data,
    reader: BatchReader,
    asked: Asked,
    rows_N: np.ndarray,
) -> JSON:
    """Sums over the rows, and single examples."""
    assert isinstance(config.model, InfnetConfig)
    num_shared = 0 if config.model.ablation == "no_gates" else config.model.num_shared_tokens
    names = Names.of(data.schema, num_shared, config.data.sequence_length)
    sums, candidates = Sums(names), Candidates()
    with tqdm(total=len(rows_N), unit=" examples", file=sys.stderr, disable=None, leave=False) as bar:
        for recorded, scores, rows_B in _recorded(sharded, reader, rows_N):
            sums.add(recorded, len(rows_B))
            candidates.add(recorded, scores, rows_B)
            bar.update(len(rows_B))
    shown = np.array(chosen(candidates) if asked.examples is None else asked.examples, np.int64)
    pictured = [
        one_example(recorded, scores, place, names) | identity(data.store, asked.split, int(row))
        for recorded, scores, rows_B in _recorded(sharded, reader, shown)
        for place, row in enumerate(rows_B)
    ]
    return {
        "queries": list(names.queries),
        "num_positions": names.num_positions,
        **sums.to_json(),
        "examples": pictured,
    }


def _recorded(
    sharded: Sharded, reader: BatchReader, rows_N: np.ndarray
) -> Iterator[tuple[Recorded, Scores, np.ndarray]]:
    """Scores rows of the split batch by batch; the last batch is filled up, so that all are of one size."""
    parts = np.split(rows_N, range(BATCH_SIZE, len(rows_N), BATCH_SIZE))
    tower = next(module for module in sharded.model.modules() if isinstance(module, Infnet))
    batches: Iterator[Batch] = (
        reader.read(np.pad(part, (0, BATCH_SIZE - len(part)), constant_values=-1)) for part in parts
    )
    sharded.model.eval()
    found: list[Recorded] = []
    with recording(tower, found.append), torch.no_grad():
        for part in parts:
            scores = sharded.pipeline.progress(batches)
            yield found.pop(), scores, part


def _check_model(config: RunConfig) -> None:
    if not isinstance(config.model, InfnetConfig):
        raise Fault(f'model.name is "{config.model.name}": attention is drawn for "infnet" alone; name a run of it')
    if reason := WITHOUT_TASK_ATTENTION.get(config.model.ablation):
        raise Fault(
            f'model.ablation is "{config.model.ablation}": {reason}, so no attention of a task can be drawn; '
            'name a run with "none" or "no_gates"'
        )


def _check_checkpoint(config: RunConfig, data: Data, commit: Commit, where: str) -> None:
    """Refuses weights of another model, which might fit all the same."""
    lines = differences(check(RunConfig, commit.run["config"], where), config)
    other = [line for key, line in lines.items() if key.startswith(MUST_AGREE) and not key.startswith(MAY_CHANGE)]
    if other:
        text = "\n".join(f"  {line}" for line in other)
        raise Fault(f"{where}: is of a run with other settings\n{text}\nset them as they were, with --set")
    if data.store.fingerprint != commit.run["store"]:
        raise Fault(
            f"store {data.store.path}: is not the one that {where} was trained on (it has fingerprint "
            f"{data.store.fingerprint}, that one {commit.run['store']}); set data.store to the right one"
        )


def _check_rows(rows: Sequence[int], num_examples: int, split: str) -> None:
    for row in rows:
        if not 0 <= row < num_examples:
            raise Fault(f"--example {row}: {split} has {num_examples:,} examples; give 0 to {num_examples - 1}")


def _without_compiling(config: RunConfig) -> RunConfig:
    """Hooks see nothing of a compiled tower, and so few batches would not be worth it."""
    return config.model_copy(update={"model": config.model.model_copy(update={"compile": False})})


def lines(result: JSON) -> list[str]:
    """What was found, for people."""
    of = result["num_examples_of_split"]
    spread = "all" if result["num_examples"] == of else f"{result['num_examples']:,} evenly spread of {of:,}"
    text = [f"{spread} examples of {result['split']}; times its even share that each gets:"]
    width = max(map(len, result["queries"]))
    for query in result["queries"]:
        ranked = sorted(result["fields"], key=lambda f: -f["attention"][query]["share"])
        most = ", ".join(f"{f['name']} {f['attention'][query]['times_even']:.2f}" for f in ranked[:3])
        text.append(f"{query:<{width}}  {most}")
    return [*text, "", *(f"{result['out']}/{name}" for name in attention_files.names_of(result))]
