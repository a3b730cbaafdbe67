"""The command line. Only names are imported here: help answers at once, a verb imports what it needs.

Start at a verb's function: it parses, calls its room and prints. May import everything.

Exit codes: 0 done, 1 failure, 2 a usage, configuration or data fault, 3 understood, and the answer is no,
75 stopped by a signal with its work saved, or another process is at it: run it again.
"""

import io
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError as error:
    # Nothing can be read of the command line, and the doctor must be heard all the same.
    from infnet_rec.diagnostics.doctor import without_command_line

    without_command_line(sys.argv[1:], error)

from infnet_rec import __version__
from infnet_rec.cli.attention import EPILOG as ATTENTION_EPILOG
from infnet_rec.cli.attention import attention
from infnet_rec.cli.bench import bench
from infnet_rec.cli.checkpoint import checkpoint
from infnet_rec.cli.data import data
from infnet_rec.cli.doctor import EPILOG as DOCTOR_EPILOG
from infnet_rec.cli.doctor import doctor
from infnet_rec.cli.experiment import EXPERIMENT_EPILOG, REPORT_EPILOG, experiment, report
from infnet_rec.cli.launch import EPILOG as LAUNCH_EPILOG
from infnet_rec.cli.launch import SUBMIT_EPILOG, launch, submit
from infnet_rec.cli.options import SETTINGS, AsJson, Overrides, Ranks, with_plugins
from infnet_rec.cli.plan import EPILOG as PLAN_EPILOG
from infnet_rec.cli.plan import plan
from infnet_rec.errors import TRY_AGAIN, Busy, CommonUserError, Failure, Interrupted, Refusal, UserError
from infnet_rec.files import is_full
from infnet_rec.launcher.failures import ERROR_FILE, as_a_rank, left_to_launcher
from infnet_rec.launcher.rank_environment import end_early_on_signals, end_with_launcher, rank_number

OTHER_RANKS_WAIT_S = 2.0
app = typer.Typer(
    name="infnet-rec",
    help="Train INFNet, the task-aware ranking network, on sharded embeddings.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
app.command(epilog=PLAN_EPILOG)(with_plugins(plan))
app.command(epilog=LAUNCH_EPILOG)(with_plugins(launch))
app.command(epilog=SUBMIT_EPILOG)(with_plugins(submit))
app.add_typer(checkpoint, name="checkpoint")
app.command(epilog=EXPERIMENT_EPILOG)(with_plugins(experiment))
app.command(epilog=REPORT_EPILOG)(report)
app.command(epilog=ATTENTION_EPILOG)(with_plugins(attention))
app.command(epilog=DOCTOR_EPILOG)(with_plugins(doctor))


@app.command(
    epilog="""\b
Example:
  $ infnet-rec train configs/quickstart.toml --ranks 2 --run-dir runs/two
  task          valid AUC  valid gAUC   test AUC   test gAUC  test log loss
  click            0.7240      0.6416     0.7264      0.6757         0.5997
  like             0.8986      0.6965     0.8672      0.7222         0.0719
  long_view        0.7165      0.6196     0.7290      0.6668         0.5471
  best at step 206 of 206; 4,673 examples/s on 2 ranks; 0:27 in all
  results: runs/two""",
)
@with_plugins
def train(
    config: Annotated[Path, typer.Argument(help="A run's TOML file.")],
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="A folder for everything the run leaves, or that of a run to go on; a new one by default."),
    ] = None,
    weights_from: Annotated[
        str | None, typer.Option("--from", metavar="CHECKPOINT", help="Start a new run with the weights of another.")
    ] = None,
    ranks: Ranks = 1,
    as_json: AsJson = False,
) -> None:
    """Train a model as a file says, evaluate it, and leave a run directory.

    A run that was stopped goes on where it was last saved when it is given the same --run-dir again. Alone it is one
    rank. With --ranks it starts that many here; under torchrun it is one of torchrun's.
    """
    overrides = overrides or []
    if ranks > 1:
        from infnet_rec.trainer import local_ranks

        run_dir = local_ranks.check_before_launch(config, overrides, run_dir, ranks)
        arguments = [str(config), *(f"--set={o}" for o in overrides), f"--run-dir={run_dir}"]
        arguments += [f"--from={weights_from}"] if weights_from else []
        local_ranks.launch_local_ranks(["train", *arguments, *(["--json"] if as_json else [])], ranks)
    from infnet_rec.trainer import train as command

    result = command.train(config, overrides, run_dir, weights_from)
    if result is not None:
        print(json.dumps(result) if as_json else "\n" + command.metrics_table(result))


@app.command(
    epilog="""\b
Example:
  $ infnet-rec eval runs/two --split test
  task              AUC     gAUC     95 % interval    users  log loss      NE  calib.
  click          0.7264   0.6757  0.6570 to 0.6938      637    0.5997   0.873   1.052
  like           0.8672   0.7222  0.6478 to 0.7898       59    0.0719   0.843   1.004
  long_view      0.7290   0.6668  0.6482 to 0.6869      593    0.5471   0.877   1.087""",
)
@with_plugins
def eval(
    run_dir: Annotated[Path, typer.Argument(help="A run directory that 'infnet-rec train' made.")],
    split: Annotated[str, typer.Option(help="train, valid, test or a further test.")] = "test",
    store: Annotated[str | None, typer.Option(help="Where the run's store is now, if it was moved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a split with the best weights of a run; works on another number of ranks than it was trained on."""
    from infnet_rec.trainer import eval as command

    result = command.evaluate_run(run_dir, split, store)
    if result is not None:
        print(json.dumps(result) if as_json else "\n".join(command.metrics_lines(result)))


@app.command(
    epilog="""\b
Example:
  $ infnet-rec model configs/quickstart.toml
  infnet of width 16: 89 features, 28 sequences with 560 events an example (at most 20 each), ...

  part                                      parameters    FLOPs an example
  start.categorical_proxy                      190,656             380,928
  ...
  blocks.0                                      22,768             458,560
  blocks.1                                       6,224             224,064
  heads                                          9,603              18,624
  dense part                                   229,603           1,085,760
  89 tables, 10,641 rows of 16                 170,256""",
)
@with_plugins
def model(
    config: Annotated[Path, typer.Argument(help="A run's TOML file.")],
    overrides: Overrides = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Histories of training examples, in the place of full ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Count the parameters and the FLOPs of a run's model, part by part; its tables apart."""
    from infnet_rec.analysis import model_summary as command

    result = command.describe_model(config, overrides or [], ragged=ragged)
    print(json.dumps(result) if as_json else "\n".join(command.model_lines(result)))


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


def _complain(code: int, text: str, error: Exception) -> None:
    """Says it once: under torchrun every rank finds most faults, and a rank that failed first ends the others."""
    if not isinstance(error, Interrupted) and left_to_launcher(error):
        sys.exit(code)
    if (rank := rank_number()) != 0:
        time.sleep(OTHER_RANKS_WAIT_S)
        text = f"rank {rank}: {text}"
    if rank == 0 or not isinstance(error, CommonUserError | Interrupted):
        print(f"infnet-rec: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def _names_of_files_as_utf8() -> None:
    """Starts Python again in its UTF-8 mode, where the locale has another encoding.

    Arrow and DuckDB take names of files as UTF-8, so that a folder with other letters than ASCII would not be found.
    What is printed keeps the terminal's encoding.
    """
    if sys.getfilesystemencoding().replace("-", "") == "utf8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for processes of ours, too
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _escape_what_the_terminal_lacks() -> None:
    """Writes letters that the terminal's encoding does not have as escapes: a name in a log ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _app() -> None:
    """The verb, with what it printed: a full disk or a closed pipe speaks up at the last flush only."""
    try:
        app()
    finally:
        sys.stdout.flush()


def _drop_output() -> None:
    """Python would write what is left in the buffer once more when it ends, and complain again."""
    with suppress(OSError):  # it may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer() -> None:
    _escape_what_the_terminal_lacks()
    try:
        _app()
    except BrokenPipeError:
        # Whoever read the output has enough of it.
        _drop_output()
        sys.exit(1)
    except UserError as fault:
        _complain(2, f"fault: {fault}", fault)
    except Failure as failure:
        _complain(1, f"failed: {failure}", failure)
    except Refusal as refusal:
        _complain(3, f"no: {refusal}", refusal)
    except Busy as busy:
        _complain(TRY_AGAIN, f"busy: {busy}", busy)
    except ImportError as error:
        from infnet_rec.diagnostics.doctor import missing_in_words

        if (error.name or "").partition(".")[0] in ("infnet_rec", "launch"):
            raise
        _complain(2, f"fault: {missing_in_words(error)}", error)
    except Interrupted as stopped:
        _complain(TRY_AGAIN, str(stopped), stopped)
    except OSError as error:
        if not is_full(error):
            raise
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        _complain(1, f"failed: {where}the disk is full; free some space and run it again", error)


def main() -> None:
    """Entry point."""
    _names_of_files_as_utf8()
    end_with_launcher()
    if sys.argv[1:2] in (["train"], ["experiment"]):
        end_early_on_signals()
    if ERROR_FILE not in os.environ:
        _answer()
        return
    as_a_rank(_answer)
