"""A run in the process that you are in: for a notebook, a script, an idea.

    from infnet_rec.notebook import Run

    run = Run("configs/quickstart.toml", ["train.num_epochs=1"])
    batch = run.batch("train", range(32))
    result = run.train()
    predicted = run.predict("test")

One process is one rank, on a GPU if there is one. The run's folder is what `infnet-rec train` leaves, so everything
else that reads runs goes on from there: `infnet-rec eval`, `attention`, `checkpoint`, and `train` on many ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infnet_rec.batch import Batch
from infnet_rec.config.load import load_config
from infnet_rec.config.plugins import use_plugins
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import world_from_env
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.trainer.eval import check_split, score_run
from infnet_rec.trainer.resume import inspect_run_dir
from infnet_rec.trainer.run_dir import default_run_dir
from infnet_rec.trainer.train import train


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the best weights of a run say of every example of a split, in the split's order.

    Shapes: N examples, T tasks.

    Attributes:
        tasks: T names, in the order of the columns.
        probability_NT: float32, that the label is 1.
        label_NT: float32, 0 or 1.
        user_N: int64, the row of the store's users.
    """

    tasks: tuple[str, ...]
    probability_NT: np.ndarray
    label_NT: np.ndarray
    user_N: np.ndarray

    def of(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and labels of one task, each of shape [N].

        Raises:
            UserError: the run has no such task.
        """
        if task not in self.tasks:
            raise UserError(f"task {task!r}: is one of {', '.join(self.tasks)}{did_you_mean(task, self.tasks)}")
        t = self.tasks.index(task)
        return self.probability_NT[:, t], self.label_NT[:, t]


class Run:
    """A configuration with its opened store, and what comes of it.

    Attributes:
        config: checked, with the overrides laid on it.
        data: the opened store, `data.store`, with the features and tasks that the run reads, `data.schema`.
        run_dir: the run's folder; `train` makes it.
    """

    def __init__(
        self,
        config: Path | str,
        overrides: Sequence[str] | str = (),
        *,
        run_dir: Path | str | None = None,
        plugins: Sequence[Path | str] | Path | str = (),
    ) -> None:
        """Reads the configuration and opens the store; nothing is trained or written yet.

        Args:
            config: a run's TOML file.
            overrides: "train.dense.lr=3e-4" each, as after `--set`.
            run_dir: where to write, or what an earlier `train` left; None is `runs/<config>-<time>`.
            plugins: files with models of your own, as after `--plugin`.

        Raises:
            UserError: anything in the files that a person can mend; or this process is one of several ranks.
        """
        if world_from_env().world_size > 1:
            raise UserError("infnet_rec.notebook: is for one process; start many ranks by infnet-rec train --ranks N")
        self._plugins = [str(plugin) for plugin in ([plugins] if isinstance(plugins, str | Path) else plugins)]
        self._path, self._overrides = Path(config), [overrides] if isinstance(overrides, str) else list(overrides)
        use_plugins(self._plugins)
        self.config = load_config(self._path, self._overrides)
        self.data = open_data(self.config)
        self.run_dir = default_run_dir(self._path) if run_dir is None else Path(run_dir)

    def __repr__(self) -> str:
        return f"Run({str(self._path)!r}, {self._overrides!r}, run_dir={str(self.run_dir)!r})"

    def batch(self, split: str, rows: Sequence[int] | np.ndarray) -> Batch:
        """The batch of some examples of a split, as the model gets it.

        Args:
            split: train, valid, test or a further test of the store.
            rows: whole numbers, of the split from 0.

        Raises:
            UserError: no such split, or no such row.
        """
        check_split(split, self.data.store)
        rows_B, num_examples = np.asarray(rows), self.data.store.num_examples(split)
        if rows_B.ndim != 1 or rows_B.dtype.kind not in "iu" or len(rows_B) == 0:
            raise UserError(f"rows of {split}: must be a list of whole numbers, such as range(32)")
        if rows_B.min() < 0 or rows_B.max() >= num_examples:
            raise UserError(f"rows of {split}: must be from 0 to {num_examples - 1:,}")
        length = self.config.data.sequence_length
        return BatchReader(self.data.store, split, self.data.schema, length).read(rows_B.astype(np.int64))

    def train(self) -> dict[str, Any]:
        """Trains to the end, or goes on where an interrupted `train` in `run_dir` was saved last.

        Returns:
            What stands in `result.json`: `metrics` by split and task, `best_step`, `examples_per_s` and more.

        Raises:
            UserError: anything a person can mend; the folder is of another run.
            Interrupted: the kernel was interrupted, and the run is saved; call it again to go on.
        """
        use_plugins(self._plugins)
        result = train(self._path, self._overrides, self.run_dir)
        assert result is not None, "the only rank is the first"
        return result

    def predict(self, split: str) -> Predicted:
        """Scores every example of a split with the run's best weights.

        Raises:
            UserError: nothing is trained in `run_dir` yet, what is there has other settings, or no such split.
        """
        if not (self.run_dir / "config.json").exists():
            raise UserError(f"{self.run_dir}: holds no run yet; train it first")
        use_plugins(self._plugins)
        # Another run's weights would be scored in silence.
        inspect_run_dir(self.run_dir, self.config, self.data)
        scored = score_run(self.run_dir, split)
        found = scored.predictions
        assert found is not None, "the only rank is the first"
        probability_NT = 1 / (1 + np.exp(-found.logits_NT.astype(np.float64)))
        return Predicted(tuple(scored.task_names), probability_NT.astype(np.float32), found.labels_NT, found.user_N)
