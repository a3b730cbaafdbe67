"""What a gradient-boosted model makes of the same rows: how much is in counts of past events, and in which.

    python benchmarks/gbdt_reference.py STORE [--profile ctx89] [--quick]

STORE is built by `configs/datasets/kuairand_pure_late.toml`. Three models a task, on the ids of the profile's features
(without user, video, author and music): no history; with the number of past events of the seven behaviours; with the
number of past exposures too. AUC / gAUC on valid and test, as in `infnet-rec eval`. Models of `--quick` have 3 trees in
the place of 80.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from infnet_rec.data.store import Examples, Store
from infnet_rec.metrics import auc, auc_by_user

WITHOUT = ("user_id", "video_id", "author_id", "music_id")


def main() -> None:
    """Prints one line a model and task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--profile", default="ctx89")
    parser.add_argument("--quick", action="store_true", help="3 trees a model, to see that all runs")
    arguments = parser.parse_args()
    store, num_trees = Store(arguments.store), 3 if arguments.quick else 80
    behaviours = list(store.manifest["behaviours"])
    positives = [name for name in behaviours if name != "exposure"]
    for title, counted in (("no history", []), ("positives", positives), ("positives and exposures", behaviours)):
        splits = {split: store.examples(split) for split in ("train", "valid", "test")}
        inputs = {split: inputs_of(store, arguments.profile, e, counted) for split, e in splits.items()}
        for task in store.schema.tasks:
            off: Any = False  # scikit-learn takes it, its stubs do not
            model = HistGradientBoostingClassifier(max_iter=num_trees, max_leaf_nodes=31, early_stopping=off)
            model.fit(inputs["train"], splits["train"].labels[task.name])
            texts = []
            for split in ("valid", "test"):
                scores, labels = model.decision_function(inputs[split]), splits[split].labels[task.name].astype(float)
                gauc = auc_by_user(scores, labels, splits[split].user_N.astype(np.int64)).gauc
                texts.append(f"{split} {auc(scores, labels):.4f} / {gauc:.4f}")
            print(f"{title:<26}{task.name:<12}{'   '.join(texts)}", flush=True)


def inputs_of(store: Store, profile: str, examples: Examples, counted: list[str]) -> np.ndarray:
    """Feature ids and counts of past events, float32 [N, features]."""
    columns = []
    for feature in store.profile_schema(profile).features:
        if feature.name in WITHOUT:
            continue
        if feature.side == "context":
            columns.append(examples.context[feature.name])
            continue
        user = feature.side == "user"
        ids, rows = (store.user_ids, examples.user_N) if user else (store.item_ids, examples.item_N)
        columns.append(ids[rows, store.columns_of(feature.side).index(feature.name)])
    columns += [examples.seen[name] for name in counted]
    return np.stack(columns, axis=1).astype(np.float32)


if __name__ == "__main__":
    main()
