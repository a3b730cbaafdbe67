"""The verbs of `infnet-rec data`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import SETTINGS, AsJson, leave
from infnet_rec.errors import UserError

data = typer.Typer(
    help="Raw behaviour logs to a store: generate, sniff, build, check, stats, show.",
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
    examples: Annotated[int, typer.Option(help="Rows of the log that is trained on.")],
    dataset: Annotated[
        str, typer.Option(help="Whose file format: kuairand-pure, -1k, -27k, or qb-video.")
    ] = "kuairand-pure",
    users: Annotated[int | None, typer.Option(help="Default: as many as the real data would have.")] = None,
    items: Annotated[int | None, typer.Option(help="Default: as many as the real data would have.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write raw files in a public dataset's exact format, with its marginals, from a seed."""
    from infnet_rec.synthetic import verb as command

    sizes = {"num_users": users, "num_items": items}
    result = command.generate_raw(dataset, out, sizes, num_examples=examples, seed=seed, num_workers=workers)
    print(json.dumps(result) if as_json else "\n".join(command.generated_lines(result)))


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
    raw: Annotated[str, typer.Option(help="Folder of the raw files, or its URL.")],
    out: Annotated[Path, typer.Option(help="The store to make.")],
    memory_gib: Annotated[
        float, typer.Option(min=0.5, help="Memory to use, however long the log; the rest spills to disk.")
    ] = 6.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of a table's rows that may be bad before the build stops.")
    ] = 0.001,
    replace: Annotated[bool, typer.Option("--replace", help="Build an existing store anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn raw files into a store: sorted by user and time, vocabularies fitted on the training window."""
    from infnet_rec.data.inspect import verbs as command

    summary = command.build_verb(
        recipe,
        raw,
        out,
        memory_gib=memory_gib,
        num_threads=workers,
        max_bad_fraction=max_bad_fraction,
        replace=replace,
    )
    command.print_result(summary, command.summary_lines(summary), as_json=as_json)


@data.command(
    epilog="""\b
Example:
  $ infnet-rec data sniff ml-100k/u.data ml-100k/u.user --out movielens.toml
  movielens.toml: a first recipe; look it over, then
    infnet-rec data build movielens.toml --raw ml-100k --out STORE
  log    u.data: 100,000 rows; user user, item item, time time in s
  user   u.user, by user
  tasks  liked: rating >= 4
  ..."""
)
def sniff(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The log, and tables of users and items.")],
    out: Annotated[Path, typer.Option(metavar="FILE.toml", help="A new file for the recipe.")],
    memory_gib: Annotated[float, typer.Option(min=0.5, help="Memory to use; the rest spills to disk.")] = 4.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Write a first recipe for raw files: what each column may mean, guessed from all rows, with the reasons.

    Exit code 2 where there is no guess for the user, the item or a label.
    """
    from infnet_rec.data.inspect import verbs as data
    from infnet_rec.data.sniff import verb as sniff

    result = sniff.sniff(files, out, memory_gib=memory_gib, num_threads=workers)
    data.print_result(result, sniff.lines(result), as_json=as_json)


def _local(store: str) -> Path:
    """The store's folder; one behind a URL is fetched first."""
    if "://" not in store:
        return Path(store)
    from infnet_rec.data.remote import fetched

    try:
        return fetched(store)
    except UserError as fault:
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
    """Read a store again and compare every file with the manifest; exit 3 at the first that differs.

    Hashes and counts are compared, ids must have a row in their table, and no example may see its own time or later.
    With --json all differences are listed.
    """
    from infnet_rec.data.inspect import verbs as command

    result = command.check_store_verb(store, stop_at="last" if as_json else "first")
    command.print_result(result, command.check_lines(result), as_json=as_json)
    leave(0 if result["ok"] else 3)


@data.command(
    epilog="""\b
Example:
  $ infnet-rec data stats store --plot store.png
  store: kuairand_pure, 60,000 examples in time order, 1,140 users, 1,998 items
  ...
  history    events   mean  p50  p90  p95  p99  max   empty  empty in test
  click      27,715  21.56   13   49   69  156  266   5.3 %          0.2 %
  ...
  at width 64: 2.67 MiB with row-wise Adagrad's state (42 KiB); the largest table: video_id
  ...
  plot: store.png"""
)
def stats(
    store: StorePath,
    plot: Annotated[
        Path | None, typer.Option(help="A PNG file for a picture of the distributions; an older PNG gives way.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count a store: label rates, popularity, history lengths, null and never-seen values, tables, memory, disk."""
    from infnet_rec.data.inspect import stats_text as stats
    from infnet_rec.data.inspect import verbs as data

    report = stats.stats_report(store, plot)
    data.print_result(report, stats.stats_lines(report), as_json=as_json)


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
    split: Annotated[str, typer.Option(help="train, valid, test or a further test.")] = "train",
    row: Annotated[int, typer.Option(help="Number of the example within its split, from 0.")] = 0,
    sequence_length: Annotated[int, typer.Option(min=1, help="Newest events shown of each behaviour.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print one example: every feature with its id and raw value (or range), every history, the labels."""
    from infnet_rec.data.inspect import verbs as command

    example = command.show_examples(store, split, row, sequence_length)
    command.print_result(example, command.example_lines(example), as_json=as_json)
