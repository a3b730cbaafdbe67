"""The tower, lookups and whole steps against the literal form: all of `infnet-rec bench`, written down.

    OMP_NUM_THREADS=1 python benchmarks/tower.py [--work DIR] [--rounds 5] [--only tower step embedding sweep]
    OMP_NUM_THREADS=1 python benchmarks/tower.py --quick        a small tower; written to runs/quick

Each part is a command of its own, whose JSON goes to `benchmarks/results/tower.json`; `tower.md` shows it as tables and
`tower.png` the sweep. Lookups and steps run on the quickstart's generated store, which is made in DIR if it is not
there. On a GPU the same command adds a column for the fused form.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from benchmarks.plan_check import made_store  # noqa: E402

RESULTS = HERE / "results" / "tower.json"
INFNET_REC = [sys.executable, "-m", "infnet_rec.cli"]
PARTS = ("tower", "step", "embedding", "sweep")
FORMS = ("literal", "eager", "fused")

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of what is measured: widths of the model, examples of a batch, events of a sequence."""

    widths: tuple[int, ...]
    batch_size: int
    length: int


FULL, QUICK = Shapes((16, 64), 1024, 20), Shapes((16,), 32, 4)

WHY = """# Why the tower is fast

The paper projects every token to a key and a value in every flow, and multiplies every token by a gate in every block.
With tokens X, queries Q, weights Wq, Wk, Wv and a gate G (one vector an example),

    softmax((Q Wq) (X Wk)^T) (X Wv)  =  (softmax((Q (Wq Wk^T)) X^T) X) Wv
    softmax(A (X * G)^T) (X * G)     =  (softmax((A * G) X^T) X) * G
    sum over events of (x W + b)     =  (sum over events of x) W + n b

So no token is ever projected or gated: a handful of absorbed queries read the raw tokens, and all queries of a set read
it together, once a block. A sequence token costs 4 R D FLOPs in a block (R queries in all: 9 in the first block and 5
in the last) in the place of 4 D^2 for each of three flows, or two. Sequences are jagged: what costs is the number of
events, not the longest history. And a batch looks up each distinct id of a sequence table once.

A few examples at a time are gathered, read while they are in the cache, and forgotten; the backward pass gathers them
again. So neither scores nor a second layout of the tokens is ever stored, and pooling and all blocks write into one
gradient of the tokens, which is nearly all that a step needs beside them.

"literal" is those equations token by token, padded to the longest sequence, on the same weights
([`reference_infnet.py`](../../infnet_rec/benchmark/forms/reference_infnet.py)); logits and gradients agree to 1e-5.
It leaves out, as ours does, what nothing reads after the last block. "eager" is ours in plain torch
([`jagged_attention.py`](../../infnet_rec/models/infnet/jagged_attention.py)); "fused" is ours with a kernel that reads
the tokens where they lie.
"""


def main() -> None:
    """Measures what is asked for and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_tower_benchmark")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=None, choices=PARTS)
    parser.add_argument("--store", type=Path, default=None, help="one that is there already")
    parser.add_argument(
        "--quick", action="store_true", help="a small batch, one round; the tower unless --only says more"
    )
    parser.add_argument("--out", type=Path, default=None, help="of tower.json, with .md and .png beside it")
    arguments = parser.parse_args()
    shapes = QUICK if arguments.quick else FULL
    out: Path = arguments.out or (ROOT / "runs" / "quick" / RESULTS.name if arguments.quick else RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    rounds = f"--rounds={1 if arguments.quick else arguments.rounds}"
    only = arguments.only or (PARTS[:1] if arguments.quick else PARTS)
    # A quick call looks whether all still runs, so nothing is taken from an earlier one.
    results: JSON = json.loads(out.read_text()) if out.exists() and not arguments.quick else {}
    if "tower" in only:
        results["tower"] = {str(width): ask("tower", *sizes(width, shapes), rounds) for width in shapes.widths}
        if not arguments.quick:
            results["tower"]["16, ragged"] = ask("tower", *sizes(16, shapes), rounds, "--ragged")
    if "step" in only or "embedding" in only:
        on_store = [
            str(ROOT / "configs" / "quickstart.toml"),
            f"--set=data.store={arguments.store or made_store(arguments.work)}",
        ]
        on_store.append(f"--set=train.global_batch_size={shapes.batch_size}")
        if "step" in only:
            results["step"] = ask("step", *on_store, rounds)
        if "embedding" in only:
            results["embedding"] = [ask("embedding", *on_store, rounds, f"--ranks={ranks}") for ranks in (1, 2)]
    if "sweep" in only:
        results["sweep"] = ask("tower", rounds, f"--sweep={out.with_suffix('.png')}")
        results["sweep"] |= {"plot": f"{out.stem}.png", "points": f"{out.stem}.jsonl"}
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(results, shapes), encoding="utf-8")
    print(out.with_suffix(".md").read_text())


def sizes(width: int, shapes: Shapes) -> list[str]:
    """The tower's input."""
    keys = {
        "model.width": width,
        "train.global_batch_size": shapes.batch_size,
        "data.sequence_length": shapes.length,
    }
    return [f"--set={key}={value}" for key, value in keys.items()]


def ask(*arguments: str) -> JSON:
    """One verb of `infnet-rec bench`, in a process of its own."""
    print("infnet-rec bench", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run([*INFNET_REC, "bench", *arguments, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(results: JSON, shapes: Shapes) -> str:
    """Everything that was measured, for people."""
    parts = [WHY]
    if "tower" in results:
        parts += [tower_table(results["tower"], shapes)]
    if "sweep" in results:
        parts += [sweep_table(results["sweep"])]
    if "step" in results:
        parts += [step_table(results["step"])]
    if "embedding" in results:
        parts += [embedding_table(results["embedding"])]
    return "\n".join(parts)


def machine(facts: JSON) -> str:
    """What it ran on."""
    it = facts["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in it["versions"].items())
    return (
        f"{it['name']}, {it['device']}, {it['threads']} of {it['cores']} cores' threads, load {it['load']:.1f}, "
        f"{it['memory_gib']} GiB; {versions}; {it['date']}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tower_table(towers: JSON, shapes: Shapes) -> str:
    """Forward and backward in every form."""
    first = next(iter(towers.values()))
    limits = first["ceilings"]
    text = f"""
## Tower, forward and backward

Batch {shapes.batch_size:,}, 89 features, 28 sequences of {shapes.length} events ({28 * shapes.length} an example),
3 tasks, 2 blocks, float32. Where it says ragged, sequences have 0 to {shapes.length} events. Medians of rounds in which
the forms take turns; peak memory is above weights and inputs.

{machine(first)} It copies {limits["copy_bytes_per_s"] / 1e9:.1f} GB/s and multiplies
{limits["matmul_flops_per_s"]["float32"] / 1e9:.0f} GFLOP/s.

"""
    rows = []
    for title, tower in towers.items():
        forms = tower["passes"]["forward_backward"]["forms"]
        for name in FORMS:
            if name in forms:
                rows.append([f"{title}, {name}", *cells(forms[name], forms["literal"])])
    header = ["width, form", "ms", "examples/s", "times", "by processor time", "peak MiB", "of literal", "GFLOP"]
    missing = "".join(f"\nNo {name}: {reason}.\n" for name, reason in first["missing"].items())
    return text + table([*header, "GB moved", "of roofline"], rows) + missing


def cells(facts: JSON, literal: JSON) -> list[str]:
    """One form's row."""
    return [
        f"{facts['ms']:,.0f}",
        f"{facts['examples_per_s']:,.0f}",
        f"**{literal['ms'] / facts['ms']:.2f}**",
        f"{literal['processor_ms'] / facts['processor_ms']:.2f}",
        f"{facts['peak_bytes'] / 2**20:,.0f}",
        f"**{facts['peak_bytes'] / literal['peak_bytes']:.2f}**",
        f"{facts['flops'] / 1e9:.1f}",
        f"{facts['moved_bytes'] / 1e9:.2f}",
        f"{facts['fraction_of_roofline']:.1%}",
    ]


def sweep_table(sweep: JSON) -> str:
    """Slopes."""
    rows = [
        [f"{line['width']}, {line['form']}", f"{line['us_per_event']:.3f}", f"{line['r_squared']:.4f}"]
        for line in sweep["slopes"]
    ]
    text = f"\n## Cost against length\n\n![cost against events]({sweep['plot']})\n\nBatch {sweep['batch_size']}.\n\n"
    return text + table(["width, form", "microseconds an example and event", "R squared of a line"], rows)


def step_table(step: JSON) -> str:
    """Whole training steps."""
    rows = [
        [
            name,
            f"{fact['step_s'] * 1e3:,.0f}",
            f"{fact['examples_per_s']:,.0f}",
            f"**{fact['times_plain']:.2f}**",
            f"{fact['times_plain_by_processor']:.2f}",
        ]
        for name, fact in step["steps"].items()
    ]
    text = (
        f"\n## Whole training steps\n\n`configs/quickstart.toml` with batch {step['batch_size']:,}, one rank: lookups,"
        f" tower, loss, backward, fused and dense optimizer; {step['events_per_example']:.0f} events an example of at"
        " most 560. The literal form pads every sequence to the longest of the batch.\n\n" + machine(step) + "\n\n"
    )
    rest = (
        f"\nReading a batch with its distinct ids takes {step['read_s'] * 1e3:.0f} ms in another thread; charged in"
        f" full to ours and not at all to the literal: {step['times_plain_with_reading']:.2f} times.\n"
    )
    return text + table(["tower and lookups", "ms", "examples/s", "times", "by processor time"], rows) + rest


def embedding_table(measured: Sequence[JSON]) -> str:
    """Lookups a second and bytes between ranks."""
    rows = []
    for result in measured:
        for name, fact in result["lookups"].items():
            sent = [f"{fact[f'{kind}_bytes_between_ranks'] / 2**20:.2f}" for kind in ("forward", "backward")]
            speeds = [f"{fact[f'{kind}_tokens_per_s'] / 1e6:.2f}" for kind in ("forward", "forward_backward")]
            ids = [f"{fact['ids']:,.0f}", f"{fact['tokens']:,.0f}"]
            rows.append([f"{result['num_ranks']}, {name.replace('_', ' ')}", *ids, *speeds, *sent])
    repeats = ", ".join(f"{r['tokens_per_distinct_id']:.1f} on {r['num_ranks']}" for r in measured)
    header = ["ranks, lookups", "ids", "embeddings", "M/s forward", "M/s and backward", "MiB sent", "MiB sent back"]
    text = (
        f"\n## Lookups\n\nGlobal batch {measured[0]['global_batch_size']:,} of the same store, width"
        f" {measured[0]['width']}; sequences repeat an id {repeats} ranks. Backward includes the update of the tables;"
        ' MiB are those that go to other ranks. "bags" are the features with tables of their own.\n\n'
    )
    return text + table(header, rows)


if __name__ == "__main__":
    main()
