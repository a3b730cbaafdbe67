"""The verbs `experiment` and `report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import AsJson, Overrides, Ranks
from infnet_rec.errors import Failure

EXPERIMENT_EPILOG = """\b
Example:
  $ infnet-rec experiment configs/experiments/table3_ablation.toml --out runs/table3 --jobs 2
  ...
  variant     seed 0    seed 1    seed 2
  INFNet        done      done      done
  w/o1          done      done      done
  w/o2          done      done      done
  w/o3          done      done      done
  12 cells done, 0 failed: runs/table3"""
REPORT_EPILOG = """\b
Example:
  $ infnet-rec report runs/table3 --paper
  runs/table3/report.md
  runs/table3/report.csv
  runs/table3/efficiency.png"""


def experiment(
    path: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="An experiment's TOML file.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The experiment's folder, new or its own; default: runs/<experiment>.")
    ] = None,
    ranks: Ranks = 1,
    jobs: Annotated[
        int, typer.Option(min=1, help="Cells, or searches, made at the same time, on GPUs of their own.")
    ] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells again that failed.")] = False,
    part: Annotated[
        str, typer.Option(metavar="K/N", help="The K-th of N parts of the variants; other processes make the others.")
    ] = "1/1",
    as_json: AsJson = False,
) -> None:
    """Train every variant of an experiment with every seed; what is there already is not made again.

    Each cell is one training run in a process of its own and, when it is done, one line of cells.jsonl. Run the same
    command again after a kill: cells that were cut off go on from their checkpoints. --set takes keys of the experiment
    (seeds, search.num_trials) and of all its runs. On many hosts that share the folder, each makes a --part at the same
    time; so does launch/components.py:experiment under torchx. Exit code 1: some cells failed.
    """
    from infnet_rec.experiments import runner as command
    from infnet_rec.experiments.runner import ExperimentArgs
    from infnet_rec.experiments.shards import parse_shard

    asked = ExperimentArgs(num_ranks=ranks, num_jobs=jobs, retry_failed=retry_failed, part=parse_shard(part))
    result = command.run_experiment(path, overrides or [], out, asked)
    if as_json:
        print(json.dumps(result))
    else:
        missing = f", {result['missing']} missing" if result["missing"] else ""
        print(f"{result['done']} cells done, {result['failed']} failed{missing}: {result['out']}")
    if result["failed"]:
        cells = f"{result['failed']} cell{'s' * (result['failed'] > 1)} of {result['out']} failed"
        raise Failure(
            f"{cells}; the first one's log: {result['failed_log']}; mend the cause and run the same command with "
            "--retry-failed"
        )


def report(
    results: Annotated[Path, typer.Argument(help="An experiment's folder.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes; default: beside the results.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's numbers beside ours.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make tables and figures of an experiment: report.md, report.csv, PNG files.

    Means and deviations over seeds, the best bold and the second underlined, tests of significance on the examples of
    the test split. The same results give the same bytes.
    """
    from infnet_rec.experiments import report as command

    result = command.write_report(results, out, with_paper=paper)
    print(json.dumps(result) if as_json else "\n".join(result["files"]))
