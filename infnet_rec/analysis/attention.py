"""`attention`: what a trained INFNet's tasks attend to, and how wide its gates are open, as pictures and tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnet_rec.analysis import files
from infnet_rec.analysis.sums import Names, Sums, as_arrays, rounded
from infnet_rec.batch import Batch
from infnet_rec.checkpoint.loader import load_weights
from infnet_rec.checkpoint.locate import find_checkpoint
from infnet_rec.checkpoint.store import CheckpointManifest, checkpoint_name
from infnet_rec.config.load import load_config, validate_run
from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.plugins import check_plugin
from infnet_rec.config.run import RunConfig
from infnet_rec.console import aligned, amount_bar
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.data.store import Store
from infnet_rec.distributed.process_group import (
    check_gpus,
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.infnet.recorder import Recorded, recording
from infnet_rec.models.ranking_model import Scores
from infnet_rec.synthetic.files import fresh_folder
from infnet_rec.trainer.build import Sharded, shard_model
from infnet_rec.trainer.eval import check_split, for_scoring
from infnet_rec.trainer.resume import MAY_CHANGE, config_differences

BATCH_SIZE = 128  # a sequence token is copied for its slot: more would only take more memory
# Weights fit whatever these are, and mean something else.
MUST_AGREE = ("model.", "data.profile", "data.sequence_groups", "data.sequence_length", "train.tasks")
WITHOUT_TASK_ATTENTION = {
    "no_task_tokens": "it has no task tokens",
    "no_cross_attention": "its task tokens read nothing",
}

JSON = dict[str, Any]

LONG = 0.9  # of all examples have shorter histories


@dataclass(slots=True)
class Candidates:
    """What is known of the examples that two are chosen from."""

    row: list[np.ndarray] = field(default_factory=list)
    user: list[np.ndarray] = field(default_factory=list)
    num_events: list[np.ndarray] = field(default_factory=list)
    num_positive: list[np.ndarray] = field(default_factory=list)

    def add(self, recorded: Recorded, scores: Scores, rows_B: np.ndarray) -> None:
        """The examples of a batch, without its padding."""
        num_examples = len(rows_B)
        self.row.append(rows_B)
        self.user.append(scores.user_B[:num_examples].cpu().numpy())
        self.num_events.append(recorded.lengths_FB[:, :num_examples].sum(dim=0).cpu().numpy())
        self.num_positive.append(scores.labels_BT[:num_examples].sum(dim=1).cpu().numpy())


def chosen(candidates: Candidates) -> list[int]:
    """Rows of two examples with long histories: one that is positive for most tasks, and another user's for fewest."""
    row_N, user_N, num_events_N, num_positive_N = (
        np.concatenate(parts)
        for parts in (candidates.row, candidates.user, candidates.num_events, candidates.num_positive)
    )
    is_long_N = num_events_N >= np.quantile(num_events_N, LONG)
    # The last key counts first; of examples that are alike the earliest is taken.
    first = int(np.lexsort((row_N, -num_events_N, -num_positive_N, ~is_long_N))[0])
    second = int(np.lexsort((row_N, -num_events_N, num_positive_N, ~is_long_N, user_N == user_N[first]))[0])
    return [int(row_N[first]), int(row_N[second])] if second != first else [int(row_N[first])]


def example_identity(store: Store, split: str, row: int) -> JSON:
    """Whose example it is, in the dataset's own words."""
    examples = store.examples(split)
    user, item = int(examples.user_N[row]), int(examples.item_N[row])
    return {"row": row, "user": store.user_keys[user].as_py(), "item": store.item_keys[item].as_py()}


def one_example(recorded: Recorded, scores: Scores, place: int, names: Names) -> JSON:
    """Labels, predictions and attention of one example of a batch."""
    field_BQM, event_BQFS, lengths_BF = as_arrays(recorded, place + 1)
    field_QM, event_QFS, length_F = field_BQM[place], event_BQFS[place], lengths_BF[place]
    tasks = names.queries[: names.num_tasks]
    predicted_T = torch.sigmoid(scores.logits_BT[place].double()).tolist()
    by_behaviour = groupby(zip(names.sequences, length_F, strict=True), key=lambda pair: pair[0][0])
    return {
        "labels": dict(zip(tasks, scores.labels_BT[place].int().tolist(), strict=True)),
        "predicted": dict(zip(tasks, map(rounded, predicted_T), strict=True)),
        # All sequences of a behaviour list the same events.
        "events": {behaviour: int(next(pairs)[1]) for behaviour, pairs in by_behaviour},
        "num_tokens": int(length_F.sum()),
        "fields": {query: [rounded(float(share)) for share in field_QM[q]] for q, query in enumerate(names.queries)},
        # From each sequence's oldest event to its newest.
        "positions": {
            query: [
                [rounded(float(share)) for share in event_QFS[q, f][event_QFS.shape[-1] - length :]]
                for f, length in enumerate(length_F)
            ]
            for q, query in enumerate(names.queries)
        },
    }


@dataclass(frozen=True, slots=True)
class AttentionArgs:
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


def write_attention(config_path: Path, overrides: Sequence[str], asked: AttentionArgs, out: Path) -> JSON:
    """Records some of a split's examples and writes what was found.

    Args:
        config_path: the TOML file of the run that the checkpoint is of.
        overrides: laid on it, as when it was trained.
        asked: what is wanted.
        out: a new folder.

    Raises:
        UserError: the model is not INFNet, or has no task token that attends to anything; the checkpoint is not there,
            or of another model or store; no such split or example; `out` is taken; or there are several ranks.
    """
    config, world = load_config(config_path, overrides), world_from_env()
    _check_model(config)
    if world.world_size > 1:
        raise UserError(f"attention: works on one rank, and torchrun started {world.world_size}; start it alone")
    check_gpus(world)
    data = open_data(config)
    check_split(asked.split, data.store)
    shelf, commit = find_checkpoint(asked.checkpoint)
    where = f"checkpoint {checkpoint_name(commit.step)} in {shelf.where}"
    _check_checkpoint(config, data, commit, where)
    reader = BatchReader(data.store, asked.split, data.schema, config.data.sequence_length)
    rows_N = np.unique(np.linspace(0, len(reader) - 1, min(asked.num_examples, len(reader))).astype(np.int64))
    _check_rows(asked.examples or (), len(reader), asked.split)
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    with fresh_folder(out) as folder:
        with process_group(world):
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
        files.write_attention_files(result, folder)
    return {"out": str(out), **result}


def _look(
    sharded: Sharded,
    config: RunConfig,
    data: RunData,
    reader: BatchReader,
    asked: AttentionArgs,
    rows_N: np.ndarray,
) -> JSON:
    """Sums over the rows, and single examples."""
    assert isinstance(config.model, InfnetConfig)
    num_shared = 0 if config.model.ablation == "no_gates" else config.model.num_shared_tokens
    names = Names.of(data.schema, num_shared, config.data.sequence_length)
    sums, candidates = Sums(names), Candidates()
    with amount_bar(len(rows_N), " examples", unit_scale=False) as bar:
        for recorded, scores, rows_B in _recorded(sharded, reader, rows_N):
            sums.add(recorded, len(rows_B))
            candidates.add(recorded, scores, rows_B)
            bar.update(len(rows_B))
    shown = np.array(chosen(candidates) if asked.examples is None else asked.examples, np.int64)
    pictured = [
        one_example(recorded, scores, place, names) | example_identity(data.store, asked.split, int(row))
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
        raise UserError(f'model.name is "{config.model.name}": attention is drawn for "infnet" alone; name a run of it')
    if reason := WITHOUT_TASK_ATTENTION.get(config.model.ablation):
        raise UserError(
            f'model.ablation is "{config.model.ablation}": {reason}, so no attention of a task can be drawn; '
            'name a run with "none" or "no_gates"'
        )


def _check_checkpoint(config: RunConfig, data: RunData, commit: CheckpointManifest, where: str) -> None:
    """Refuses weights of another model, which might fit all the same."""
    check_plugin(commit.run.get("plugin"), where)
    lines = config_differences(validate_run(commit.run["config"], where), config)
    other = [line for key, line in lines.items() if key.startswith(MUST_AGREE) and not key.startswith(MAY_CHANGE)]
    if other:
        text = "\n".join(f"  {line}" for line in other)
        raise UserError(f"{where}: is of a run with other settings\n{text}\nset them as they were, with --set")
    if data.store.fingerprint != commit.run["store"]:
        raise UserError(
            f"store {data.store.path}: is not the one that {where} was trained on (it has fingerprint "
            f"{data.store.fingerprint}, that one {commit.run['store']}); set data.store to the right one"
        )


def _check_rows(rows: Sequence[int], num_examples: int, split: str) -> None:
    for row in rows:
        if not 0 <= row < num_examples:
            raise UserError(f"--example {row}: {split} has {num_examples:,} examples; give 0 to {num_examples - 1}")


def _without_compiling(config: RunConfig) -> RunConfig:
    """Hooks see nothing of a compiled tower, and so few batches would not be worth it."""
    return config.model_copy(update={"model": config.model.model_copy(update={"compile": False})})


def attention_lines(result: JSON) -> list[str]:
    """What was found, for people."""
    of = result["num_examples_of_split"]
    spread = "all" if result["num_examples"] == of else f"{result['num_examples']:,} evenly spread of {of:,}"
    text = [f"{spread} examples of {result['split']}; times its even share that each gets:"]
    rows = []
    for query in result["queries"]:
        ranked = sorted(result["fields"], key=lambda f: -f["attention"][query]["share"])
        most = ", ".join(f"{f['name']} {f['attention'][query]['times_even']:.2f}" for f in ranked[:3])
        rows.append((query, most))
    return [*text, *aligned(rows, range(2)), "", *(f"{result['out']}/{name}" for name in files.names_of(result))]
