"""The command line. Only names are imported here: help answers at once, a verb imports what it needs.

Exit codes: 0 done, 1 failure, 2 a usage, configuration or data fault, 3 understood, and the answer is no.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec import __version__
from infnet_rec.faults import Failure, Fault

OTHER_RANKS_WAIT_S = 2.0
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = typer.Typer(
    name="infnet-rec",
    help="Train INFNet, the task-aware ranking network, on sharded embeddings.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
data = typer.Typer(
    help="Raw behaviour logs to a store: generate, build, check, show.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)
app.add_typer(data, name="data")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable.")
]
Ranks = Annotated[int, typer.Option(min=1, help="Processes to start on this machine, one a GPU or CPU share.")]


@app.command(
    epilog="""\b
Example:
  $ infnet-rec train configs/quickstart.toml --ranks 2 --run-dir runs/two
  task          valid AUC  valid gAUC   test AUC   test gAUC  test log loss
  click            0.7240      0.6416     0.7264      0.6757         0.5997
  like             0.8986      0.6965     0.8672      0.7222         0.0719
  long_view        0.7165      0.6196     0.7290      0.6668         0.5471
  best at step 206 of 206; 4,673 examples/s on 2 ranks; 0:27 in all
  results: runs/two"""
)
def train(
    config: Annotated[Path, typer.Argument(help="A run's TOML file.")],
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="A new folder for everything the run leaves; default runs/<config>-<time>.")
    ] = None,
    ranks: Ranks = 1,
    as_json: AsJson = False,
) -> None:
    """Train a model as a file says, evaluate it, and leave a run directory.

    Alone it is one rank. With --ranks it starts that many here; under torchrun it is one of torchrun's.
    """
    overrides = overrides or []
    if ranks > 1:
        from infnet_rec.commands import local_ranks

        run_dir = local_ranks.check_before_launch(config, overrides, run_dir, ranks)
        arguments = [str(config), *(f"--set={o}" for o in overrides), f"--run-dir={run_dir}"]
        local_ranks.launch(["train", *arguments, *(["--json"] if as_json else [])], ranks)
    from infnet_rec.commands import train as command

    result = command.train(config, overrides, run_dir)
    if result is not None:
        print(json.dumps(result) if as_json else "\n" + command.table(result))


@app.command(
    epilog="""\b
Example:
  $ infnet-rec eval runs/two --split test
  task              AUC     gAUC     95 % interval    users  log loss      NE  calib.
  click          0.7264   0.6757  0.6570 to 0.6938      637    0.5997   0.873   1.052
  like           0.8672   0.7222  0.6478 to 0.7898       59    0.0719   0.843   1.004
  long_view      0.7290   0.6668  0.6482 to 0.6869      593    0.5471   0.877   1.087"""
)
def eval(
    run_dir: Annotated[Path, typer.Argument(help="A run directory that 'infnet-rec train' made.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    store: Annotated[Path | None, typer.Option(help="Where the run's store is now, if it was moved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a split with the best weights of a run; works on another number of ranks than it was trained on."""
    from infnet_rec.commands import eval as command

    result = command.evaluate_run(run_dir, split, store)
    if result is not None:
        print(json.dumps(result) if as_json else "\n".join(command.lines(result)))


@app.command(
    epilog="""\b
Example:
  $ infnet-rec doctor
  ok     python         3.11
  ok     versions       torch 2.13.0+cpu, torchrec 1.8.0, fbgemm-gpu-cpu 1.8.0
  ...
  all sound"""
)
def doctor(as_json: AsJson = False) -> None:
    """Say whether the installation is sound, and what to do if not."""
    from infnet_rec.commands.doctor import run

    _leave(run(json=as_json))


@data.command(
    epilog="""\b
Example:
  $ infnet-rec data generate --examples 60000 --seed 1 --out raw
  raw: 60,000 impressions of 1,140 users on 1,998 videos in the format of kuairand-pure, seed 1, in 0.4 s"""
)
def generate(
    out: Annotated[Path, typer.Option(help="A new folder.")],
    examples: Annotated[int, typer.Option(help="Rows of the standard logs.")],
    dataset: Annotated[str, typer.Option(help="Whose file format: kuairand-pure.")] = "kuairand-pure",
    users: Annotated[int | None, typer.Option(help="Default: as many as the real data would have.")] = None,
    items: Annotated[int | None, typer.Option(help="Default: as many as the real data would have.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write raw files in a public dataset's exact format, with its marginals, from a seed."""
    from infnet_rec.commands import generate as command

    sizes = {"num_users": users, "num_items": items}
    result = command.generate_raw(dataset, out, sizes, num_examples=examples, seed=seed, num_workers=workers)
    print(json.dumps(result) if as_json else "\n".join(command.lines(result)))


@data.command(
    epilog="""\b
Example:
  $ infnet-rec data build configs/datasets/kuairand_pure.toml --raw raw --out store
  store: 1,140 users, 1,998 items, 4.9 MiB, built in 1.4 s
    train       52,969 examples   label rates  click 0.4639  like 0.0194  long_view 0.3366
    valid        1,493 examples   label rates  click 0.4642  like 0.0154  long_view 0.3168
    test         5,538 examples   label rates  click 0.4428  like 0.0168  long_view 0.3156"""
)
def build(
    recipe: Annotated[Path, typer.Argument(help="What the raw files mean (TOML).")],
    raw: Annotated[Path, typer.Option(help="Folder of the raw files.")],
    out: Annotated[Path, typer.Option(help="The store to make.")],
    memory_gib: Annotated[float, typer.Option(min=0.5, help="Memory to use; the rest spills to disk.")] = 6.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    replace: Annotated[bool, typer.Option("--replace", help="Build an existing store anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn raw files into a store: sorted by user and time, vocabularies fitted on the training window."""
    from infnet_rec.commands import data as command

    summary = command.build_store(recipe, raw, out, memory_gib=memory_gib, num_threads=workers, replace=replace)
    command.print_result(summary, command.summary_lines(summary), as_json=as_json)


StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store that 'infnet-rec data build' made.")]


@data.command(
    epilog="""\b
Example:
  $ infnet-rec data check store
  store: 104 files are what the manifest says"""
)
def check(store: StorePath, as_json: AsJson = False) -> None:
    """Read a store again and compare every file with its manifest; exit 3 if one differs."""
    from infnet_rec.commands import data as command

    result = command.check(store)
    command.print_result(result, command.check_lines(result), as_json=as_json)
    _leave(0 if result["ok"] else 3)


@data.command(
    epilog="""\b
Example:
  $ infnet-rec data show store --split train --row 12345
  train row 12345: user 278 was shown item 1492 at 2022-04-11 14:41:34 (1649659294105)
  labels: click 1  like 0  long_view 1
  ..."""
)
def show(
    store: StorePath,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    row: Annotated[int, typer.Option(help="Number of the example within its split, from 0.")] = 0,
    sequence_length: Annotated[int, typer.Option(min=1, help="Newest events shown of each behaviour.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print one example: every feature with its id and raw value (or range), every history, the labels."""
    from infnet_rec.commands import data as command

    example = command.show(store, split, row, sequence_length)
    command.print_result(example, command.example_lines(example), as_json=as_json)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"infnet-rec {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train INFNet, the task-aware ranking network, on sharded embeddings."""


def _leave(code: int) -> None:
    raise typer.Exit(code)


def _complain(code: int, text: str) -> None:
    """Says it once: under torchrun every rank finds most faults, and a rank that failed first ends the others."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(OTHER_RANKS_WAIT_S)
        text = f"rank {rank}: {text}"
    print(f"infnet-rec: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def _answer() -> None:
    try:
        app()
    except Fault as fault:
        _complain(2, f"fault: {fault}")
    except Failure as failure:
        _complain(1, f"failed: {failure}")


def main() -> None:
    """Entry point."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        _answer()
        return
    from infnet_rec.shard.world import recorded

    recorded(_answer)()


if __name__ == "__main__":
    main()
