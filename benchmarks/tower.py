"""The tower, lookups and whole steps against the literal form: all of `infnet-rec bench`, written down.

    OMP_NUM_THREADS=1 python benchmarks/tower.py [--work DIR] [--rounds 5] [--only tower step embedding sweep]

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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "tower.json"
INFNET_REC = [sys.executable, "-m", "infnet_rec.cli"]
WIDTHS, BATCH_SIZE, LENGTH = (16, 64), 1024, 20
PARTS = ("tower", "step", "embedding", "sweep")
FORMS = ("literal", "eager", "fused")

JSON = dict[str, Any]

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
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    rounds = f"--rounds={arguments.rounds}"
    results: JSON = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "tower" in arguments.only:
        results["tower"] = {str(width): ask("tower", *sizes(width), rounds) for width in WIDTHS}
        results["tower"]["16, ragged"] = ask("tower", *sizes(16), rounds, "--ragged")
    if "step" in arguments.only or "embedding" in arguments.only:
        on_store = [str(ROOT / "configs" / "quickstart.toml"), f"--set=data.store={store(arguments.work)}"]
        on_store.append(f"--set=train.global_batch_size={BATCH_SIZE}")
        if "step" in arguments.only:
            results["step"] = ask("step", *on_store, rounds)
        if "embedding" in arguments.only:
            results["embedding"] = [ask("embedding", *on_store, rounds, f"--ranks={ranks}") for ranks in (1, 2)]
    if "sweep" in arguments.only:
        results["sweep"] = ask("tower", rounds, f"--sweep={RESULTS.with_suffix('.png')}")
        results["sweep"] |= {"plot": "tower.png", "points": "tower.jsonl"}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(results), encoding="utf-8")
    print(RESULTS.with_suffix(".md").read_text())


def sizes(width: int) -> list[str]:
    """The tower's input."""
    keys = {"model.width": width, "train.global_batch_size": BATCH_SIZE, "data.sequence_length": LENGTH}
    return [f"--set={key}={value}" for key, value in keys.items()]


def ask(*arguments: str) -> JSON:
    """One verb of `infnet-rec bench`, in a process of its own."""
    print("infnet-rec bench", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run([*INFNET_REC, "bench", *arguments, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def store(work: Path) -> Path:
    """The quickstart's store."""
    built = work / "store"
    if not built.exists():
        work.mkdir(parents=True, exist_ok=True)
        raw = work / "raw"
        generate = ["--dataset", "kuairand-pure", "--examples", "60000", "--seed", "1", "--out", str(raw)]
        subprocess.run([*INFNET_REC, "data", "generate", *generate], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        build = ["configs/datasets/kuairand_pure.toml", "--raw", str(raw), "--out", str(built)]
        subprocess.run([*INFNET_REC, "data", "build", *build], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return built


def page(results: JSON) -> str:
    """Everything that was measured, for people."""
    parts = [WHY]
    if "tower" in results:
        parts += [tower_table(results["tower"])]
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


def tower_table(towers: JSON) -> str:
    """Forward and backward in every form."""
    first = next(iter(towers.values()))
    limits = first["ceilings"]
    text = f"""
## Tower, forward and backward

Batch {BATCH_SIZE:,}, 89 features, 28 sequences of {LENGTH} events (560 an example), 3 tasks, 2 blocks, float32. Where
it says ragged, sequences have 0 to {LENGTH} events. Medians of rounds in which the forms take turns; peak memory is
above weights and inputs.

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
