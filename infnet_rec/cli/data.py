"""The verbs of `infnet-rec data`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import SETTINGS, AsJson, leave
from infnet_rec.faults import Fault

data = typer.Typer(
    help="Raw behaviour logs to a store: generate, build, check, show.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)


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


def _local(store: str) -> Path:
    """The store's folder; one behind a URL is fetched first."""
    if "://" not in store:
        return Path(store)
    from infnet_rec.commands.fetch import fetched

    try:
        return fetched(store)
    except Fault as fault:
        # typer takes a ValueError for "not of this type" and drops its text.
        raise typer.BadParameter(str(fault)) from fault


StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", parser=_local, help="A store that 'infnet-rec data build' made, or its URL.")
]


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
    leave(0 if result["ok"] else 3)


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
