"""The files: made in a folder beside the wanted one, which takes its name only when all is written."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infnet_rec.data.generate.facts import kuairand_facts
from infnet_rec.data.generate.plan import Plan
from infnet_rec.faults import Fault


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` on success and is removed on any failure, Ctrl-C included.

    Raises:
        Fault: `out` is a file or a folder that is not empty, or cannot be made.
    """
    remedy = "name a folder that does not exist, or empty this one first"
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Fault(f"cannot generate into {out}: it is not a folder; {remedy}")
    if out.exists() and any(out.iterdir()):
        raise Fault(f"cannot generate into {out}: it is not empty, and nothing is overwritten; {remedy}")
    partial = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise Fault(f"cannot generate into {out}: {partial} cannot be made ({error.strerror}); {remedy}") from error
    try:
        yield partial
        # Refused by the system, like above, if somebody has filled `out` in the meantime.
        partial.rename(out.absolute())
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_notes(folder: Path, plan: Plan) -> None:
    """README.md and generated.json: that no row is real, and what it takes to make the same rows again."""
    facts = kuairand_facts()
    parameters: dict[str, Any] = {
        "generated": True,
        "dataset": plan.dataset.name,
        "seed": plan.seed,
        "num_examples": plan.num_examples,
        "num_random_log_rows": plan.num_random,
        "num_users": plan.num_users,
        "num_items": plan.num_videos,
        "statistics_from": facts.provenance,
        "statistics_licence": facts.licence,
    }
    (folder / "generated.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        f"""# Generated rows in the format of {plan.dataset.name}

None of these rows was observed. They were made by `infnet_rec.data.generate` from a seed, in the public file format of
KuaiRand and with its published rates, so that the software can be tried, tested and timed without a download. Do not
report a metric on them as a result on KuaiRand.

Seed {plan.seed}, {plan.num_examples:,} rows in the standard logs, {plan.num_random:,} in the random log,
{plan.num_users:,} users, {plan.num_videos:,} videos. The same numbers give the same bytes; `generated.json` holds them.
The random log is smaller than the real one (0.83 of the standard logs), because training does not read it. A user's
taste, which the user's history shows, decides more here than in the real log.

The statistics that the rows follow are derived from KuaiRand (Gao et al., CIKM 2022), licence CC BY-SA 4.0.
""",
        encoding="utf-8",
    )
