"""The verb `attention`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import AsJson, Overrides

EPILOG = """\b
Example:
  $ infnet-rec attention configs/quickstart.toml --checkpoint runs/two --out pictures/two
  4,096 evenly spread of 5,538 examples of test; times its even share that each gets:
  click      tab 2.38, user_id 1.35, onehot_feat3 1.16
  like       tab 2.35, user_id 1.33, onehot_feat3 1.15
  long_view  tab 2.22, user_id 1.35, onehot_feat3 1.16
  shared 1   user_id 1.10, music_id 1.07, video_id 1.06
  shared 2   user_id 1.09, music_id 1.07, onehot_feat3 1.05
\b
  pictures/two/attention.md
  pictures/two/attention.csv
  ..."""


def attention(
    config: Annotated[Path, typer.Argument(help="The TOML file of an INFNet run.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="A run directory, its checkpoints or one of them; a path or URL.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the pictures and tables.")],
    split: Annotated[str, typer.Option(help="train, valid, test or a further test.")] = "test",
    num_examples: Annotated[
        int, typer.Option("--examples", min=1, help="To average over, evenly spread over the split.")
    ] = 4096,
    rows: Annotated[
        list[int] | None,
        typer.Option(
            "--example",
            metavar="ROW",
            help="An example of the split to draw alone; repeatable. Two are chosen if none.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw what each task of a trained INFNet attends to, and how wide its gates are open.

    The last block's attention of task tokens and shared task tokens over all fields and all positions of all histories,
    averaged and for single examples; shares of behaviours; gates of every block. attention.md shows it all,
    attention.csv and attention.json have every number.
    """
    from infnet_rec.analysis import attention as command

    asked = command.AttentionArgs(checkpoint, split, num_examples, tuple(rows) if rows else None)
    result = command.write_attention(config, overrides or [], asked, out)
    print(json.dumps(result) if as_json else "\n".join(command.attention_lines(result)))
