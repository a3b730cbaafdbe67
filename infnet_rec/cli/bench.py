"""The verbs of `infnet-rec bench`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import SETTINGS, AsJson, Overrides, Ranks, with_plugins

bench = typer.Typer(
    help="What this machine makes of the model: real training by parts, and loader, lookups, tower and step alone.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)

Where = Annotated[
    str | None,
    typer.Option(
        "-j", metavar="NODESxRANKS", help="Ranks to start here, such as 1x2; under torchrun, what it started."
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of timing, of all forms in turn; medians are reported.")]


@bench.command(
    epilog="""\b
Example:
  $ infnet-rec bench run configs/quickstart.toml -j 1x2 --steps 60
  ...
  7,019 examples/s (3,509 a rank)
  step of 512 examples: p50 69.9 ms, p95 98.0 ms, mean 72.9 +- 3.3 ms over 60 steps
  ...
  where a step goes                      ms   share   waiting  in flight  overlapped  MiB sent
  waiting for data                      0.9    1.3%
  input all-to-all                      3.7    5.0%       0.3        4.2         3.9      0.18
  lookup                                1.7    2.3%
  output all-to-all, and back           6.1    8.3%       1.9        5.4         3.5      1.45
  tower and loss, forward              18.4   25.2%
  tower and loss, backward             32.6   44.7%
  update of tables, backward            2.0    2.7%
  all-reduce of dense gradients         0.6    0.9%       0.0        2.6         2.6      0.44
  dense optimizer                       6.3    8.6%
  the rest                              0.7    0.9%
  step                                 72.9  100.0%
  ...
  model FLOPs utilisation: 7.9% of the rate of products (0.52 GFLOP a rank and step)
  ...
  compute-bound: 70% of a step is the tower
  what would help most: a faster processor or more ranks, or a smaller tower ...; at most 3.32 times faster
  an epoch is 103 steps, 0:08, 0.004174 rank hours""",
)
@with_plugins
def run(
    config: Annotated[Path, typer.Argument(help="A run's TOML file.")],
    overrides: Overrides = None,
    size: Where = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to time; by default as many as it takes, for a minute or so.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the Chrome trace; of several ranks a file each.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the result, for 'bench compare'.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of a rank; by default what the hardware's file says, if it does.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train for a while and say how fast, where a step's time goes, and what an epoch costs. Keeps no weights.

    Steps are timed until their mean is known to 2 %, at least 50 and hardly longer than a minute; then a few are done
    under the profiler.
    """
    # Kineto, inside of torch, reports starts and stops on stderr unless its level says otherwise when it is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from infnet_rec.benchmark.run import BenchArgs

    asked = BenchArgs(steps, trace, out, price_per_hour)
    overrides = overrides or []
    if (num_ranks := asked.ranks_to_start(size, os.environ)) > 1:
        from infnet_rec.trainer import local_ranks

        local_ranks.check_ranks(config, overrides, num_ranks)
        asked.check(num_ranks)
        arguments = [str(config), *(f"--set={o}" for o in overrides), *asked.words()]
        local_ranks.launch_local_ranks(["bench", "run", *arguments, *(["--json"] if as_json else [])], num_ranks)
    from infnet_rec.benchmark import run as command
    from infnet_rec.benchmark.report import bench_run_lines

    result = command.bench_run(config, overrides, asked)
    if result is not None:
        print(json.dumps(result) if as_json else "\n".join(bench_run_lines(result)))


@bench.command(
    epilog="""\b
Example:
  $ infnet-rec bench compare before.json after.json
  after.json against before.json, examples/s of bench run
    step  1.220 times, between 1.139 and 1.305 with 95 % confidence (30 and 30 samples)
  not measured under the same conditions:
    config.data.sequence_length: 20 and 10"""
)
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="What --out or --json of a verb of bench gave.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another result of the same verb.")],
    as_json: AsJson = False,
) -> None:
    """Say how many times faster the second result is, and how sure that is; names what else was different."""
    from infnet_rec.benchmark import compare as command

    result = command.compare_results(before, after)
    print(json.dumps(result) if as_json else "\n".join(command.comparison_lines(result)))


@bench.command(
    name="input",
    epilog="""\b
Example:
  $ infnet-rec bench input configs/quickstart.toml --batches 60
  ...
  44,697 examples/s: p50 11.07 ms, p95 20.26 ms, mean 11.45 +- 0.87 ms over 60 batches
  ...
  where one thread spends a batch          ms   share
  order of the examples                  0.04    0.3%
  rows of users and items                0.94    6.2%
  ids of features                        1.73   11.4%
  events of histories                    2.67   17.6%
  distinct ids of the batch              2.76   18.2%
  labels, tensors and the rest           7.01   46.2%
  ...
  a step on batches in memory takes 761.7 ms, so it needs 672 examples/s: the loader alone gives ...""",
)
@with_plugins
def input_(
    config: Annotated[Path, typer.Argument(help="A run's TOML file.")],
    overrides: Overrides = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches to time.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Read training batches and do nothing with them: examples/s, where the time goes, and whether it is enough."""
    from infnet_rec.benchmark import loader as command

    result = command.bench_input(config, overrides or [], num_batches=batches)
    print(json.dumps(result) if as_json else "\n".join(command.loader_lines(result)))


@bench.command(
    epilog="""\b
Example:
  $ OMP_NUM_THREADS=1 infnet-rec bench tower
  batch 1,024: 89 features, 28 sequences with 560 events an example (longest 20), 3 tasks, ...
  AMD EPYC, 1 thread: copies 18.4 GB/s, multiplies 93 GFLOP/s in float32, 1 in bfloat16
  ...
  forward and backward           literal       eager       fused
  ms                             1,799.5       500.1           -
  processor ms                   1,797.7       500.0           -
  examples/s                         569       2,048           -
  peak memory, MiB                 584.0       224.8           -
  ...
  of the roofline                  2.05%       7.38%           -""",
)
@with_plugins
def tower(
    config: Annotated[Path | None, typer.Argument(help="A run's TOML file; a built-in shape without one.")] = None,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Histories as long as in a real batch, in the place of full ones.")
    ] = False,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Sweep length and width instead; a picture, and its points beside it."),
    ] = None,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Time the tower against the paper's literal form: speed, memory, FLOPs, bytes, and the machine's limits.

    Sizes are keys of the configuration: --set train.global_batch_size, data.sequence_length, model.width,
    model.num_blocks. Nothing is read from a store but its schema, and the lengths of histories with --ragged.
    """
    from infnet_rec.benchmark.forms import tower_verb as command

    if sweep is not None:
        result = command.bench_sweep(config, overrides or [], sweep, device=device, num_rounds=rounds)
        print(json.dumps(result) if as_json else "\n".join(command.tower_sweep_lines(result)))
        return
    result = command.bench_tower(config, overrides or [], device=device, ragged=ragged, num_rounds=rounds)
    print(json.dumps(result) if as_json else "\n".join(command.tower_lines(result)))


@bench.command(
    epilog="""\b
Example:
  $ infnet-rec bench embedding configs/quickstart.toml --ranks 2
  global batch 512, width 16, 2 ranks on AMD EPYC (cpu, 1 thread a rank)
  sequences repeat an id 12.9 times in a rank's batch
  ...
                                       ids   lookups    forward  and backward  MiB sent  and back
  sequences: each distinct id once   3,678    47,288     5.56 M        2.98 M      0.14      0.11
  sequences: every token            47,288    47,288     3.70 M        2.35 M      1.70      1.45
  features of their own tables      43,520    43,520     4.85 M        2.67 M      1.66      1.33""",
)
@with_plugins
def embedding(
    config: Annotated[Path, typer.Argument(help="A run's TOML file; its first training batch is looked up.")],
    overrides: Overrides = None,
    ranks: Ranks = 1,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Time lookups of a real batch: each distinct id once, as training does, and every token on its own."""
    overrides = overrides or []
    if ranks > 1:
        from infnet_rec.trainer import local_ranks

        local_ranks.check_ranks(config, overrides, ranks)
        arguments = [str(config), *(f"--set={o}" for o in overrides), f"--rounds={rounds}"]
        local_ranks.launch_local_ranks(["bench", "embedding", *arguments, *(["--json"] if as_json else [])], ranks)
    from infnet_rec.benchmark.forms import embedding_verb as command

    result = command.bench_embedding(config, overrides, num_rounds=rounds)
    if result is not None:
        print(json.dumps(result) if as_json else "\n".join(command.embedding_lines(result)))


@bench.command(
    epilog="""\b
Example:
  $ OMP_NUM_THREADS=1 infnet-rec bench step configs/quickstart.toml --set train.global_batch_size=1024
  ...
  training step                                   ms    examples/s    times  by processor time
  literal tower, every token looked up       1,712.8           598     1.00               1.00
  literal tower, each distinct id once       1,678.1           610     1.02               1.04
  our tower, every token looked up             126.1         8,122    13.59              13.60
  ours                                         128.2         7,986    13.36              13.39""",
)
@with_plugins
def step(
    config: Annotated[Path, typer.Argument(help="A run's TOML file.")],
    overrides: Overrides = None,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Time whole training steps on one rank: literal tower or ours, with each distinct id looked up once or not."""
    from infnet_rec.benchmark.forms import step_verb as command

    result = command.bench_step(config, overrides or [], num_rounds=rounds)
    print(json.dumps(result) if as_json else "\n".join(command.step_lines(result)))
