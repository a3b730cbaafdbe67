"""Part 2: the Triton kernels against the fp64 oracle: forward and gradients, every width, ragged, empty and long.

Widths are shared out among processes of their own, since what takes time is compiling: each width, number of queries
and data type is a kernel. The oracle is the eager form in float64 on the same numbers.

Shapes: B examples, F sequences, L sequence tokens, R queries, D width.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.records import RESULTS, Settings, Writer
from infnet_rec.benchmark.forms.forms import TowerShape, full_lengths, make_forms, make_tokens
from infnet_rec.benchmark.forms.tower import Precision, passes_of
from infnet_rec.benchmark.forms.tower_verb import NUM_ATTRIBUTES, NUM_BEHAVIOURS, NUM_FEATURES, NUM_TASKS, device_of
from infnet_rec.config.model import InfnetConfig
from infnet_rec.models.infnet.fused_attention import FusedTokens, fuse_sequences
from infnet_rec.models.infnet.jagged_attention import arrange_sequences

NUM_WORKERS = 12
# Widths and precisions of the towers of later parts, all with the options by default.
TOWERS: tuple[tuple[int, Precision], ...] = ((16, "fp32"), (64, "bf16"), (16, "bf16"))
# In units of the largest value; of the root mean square where numbers have 8 bits.
FP32_LIMIT, BF16_LIMIT = 1e-5, 2**-5
# Nothing at first, at last and in between; one token; runs that share a block; runs of several blocks.
RAGGED_FB = torch.tensor(
    [
        [0, 0, 2, 0, 40, 1, 0],
        [0, 1, 0, 9, 0, 3, 0],
        [0, 0, 5, 0, 33, 2, 0],
        [0, 0, 1, 0, 3, 0, 0],
        [0, 0, 8, 7, 0, 0, 0],
    ]
)
QUERIES = 9


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel and its input."""

    name: str
    dtype: torch.dtype
    width: int
    num_queries: int
    lengths_FB: Tensor


def run(settings: Settings, write: Writer) -> None:
    """Compiles ahead what later parts launch, then starts the workers."""
    widths = settings.pick([8, 36], [8, 12, 16, 32, 48, 64, 96, 128], list(range(8, 129, 4)))
    if settings.is_rehearsal:
        check_widths(widths, settings, write)
        return
    started_at = time.perf_counter()
    # In rounds of as many as there are processors; each compiles a few.
    places = range(len(TOWERS) * num_configs())
    shares = [places[k::NUM_WORKERS] for k in range(NUM_WORKERS)]
    failed = _in_processes([["compile", settings, share] for share in shares])
    note = f"{failed} of {NUM_WORKERS} processes failed: kernels are compiled when launched" if failed else ""
    write("compiled ahead", "measured", time.perf_counter() - started_at, unit="s", note=note)
    shares = [widths[k::NUM_WORKERS] for k in range(min(NUM_WORKERS, len(widths)))]
    if failed := _in_processes([["check", settings, share] for share in shares]):
        raise SystemExit(f"{failed} of {len(shares)} workers failed; see kernels.log")


def _in_processes(tasks: list[list[Any]]) -> int:
    """Runs workers side by side; how many failed."""
    workers = []
    for task, settings, numbers in tasks:
        command = [sys.executable, "-m", "benchmarks.gpu.kernels", task, str(settings.out), settings.size]
        workers.append(subprocess.Popen([*command, *map(str, numbers)]))
    return sum(worker.wait() != 0 for worker in workers)


def num_configs() -> int:
    """How many configurations the tuner chooses from."""
    return max(len(tuner.configs) for tuner in _tuners())


def _tuners() -> list[Any]:
    from infnet_rec.models.infnet import triton_kernels as fused_kernels

    return list(fused_kernels._TUNED.values())


def compile_ahead(places: list[int]) -> None:
    """Launches the towers of later parts, on few examples, so that Triton's cache on disk has their kernels.

    Args:
        places: each stands for a tower and for the one configuration that the tuner may then choose.
    """
    count, device = num_configs(), device_of(None)
    groups = tuple(g for g in range(NUM_BEHAVIOURS) for _ in range(NUM_ATTRIBUTES))
    prunes = {id(tuner): tuner.early_config_prune for tuner in _tuners()}
    for place in places:
        width, precision = TOWERS[place // count]
        for tuner in _tuners():
            tuner.cache.clear()
            tuner.early_config_prune = partial(_only, prunes[id(tuner)], place % count)
        shape = TowerShape(NUM_FEATURES, groups, NUM_TASKS, width, full_lengths(len(groups), 4, 2))
        form = make_forms(shape, InfnetConfig(), device)[0]["fused"]
        passes_of(form, make_tokens(shape, device), precision)["forward_backward"]()


def _only(prune: Any, number: int, configs: list[Any], named: dict[str, Any], **rest: Any) -> list[Any]:
    """One of those that the tuner would try."""
    fitting = prune(configs, named, **rest)
    return [fitting[number % len(fitting)]]


def check_widths(widths: list[int], settings: Settings, write: Writer) -> None:
    """Checks every case of some widths; one that raises does not stop the next."""
    device = device_of(None)
    for case in cases(widths, settings):
        title = f"{case.name}, width {case.width}, {case.num_queries} queries, {_name(case.dtype)}"
        try:
            errors, limit = errors_of(case, device)
        except Exception as error:
            write(title, "failed", note=f"{type(error).__name__}: {error}".splitlines()[0][:300])
            continue
        worst = max(errors, key=lambda name: errors[name])
        write.compared(title, errors[worst], limit, headline=case.dtype == torch.float32, errors=errors, worst=worst)


def cases(widths: list[int], settings: Settings) -> Iterator[Case]:
    """Every width in both types on ragged lengths; at some widths, other lengths and numbers of queries too."""
    long = settings.pick(150, 3000, 20_000)
    shapes = {
        "empty": torch.zeros(3, 4, dtype=torch.int64),
        "one token": torch.ones(1, 1, dtype=torch.int64),
        "long": torch.tensor([[long, 0, 1], [17, long // 3, 0]]),
    }
    for width in widths:
        for dtype in (torch.float32, torch.bfloat16):
            yield Case("ragged", dtype, width, QUERIES, RAGGED_FB)
            if width in (8, 64):
                for name, lengths_FB in shapes.items():
                    yield Case(name, dtype, width, QUERIES, lengths_FB)
            if width == 64:
                yield Case("ragged", dtype, width, 1, RAGGED_FB)
                yield Case("ragged", dtype, width, 20, RAGGED_FB)
            if width == 128:
                yield Case("ragged", dtype, width, 37, RAGGED_FB)


def errors_of(case: Case, device: torch.device) -> tuple[dict[str, float], float]:
    """Errors of what is read and of each gradient, and what they must not exceed."""
    inputs = [x.to(case.dtype) for x in _draw(case)]
    expected = _read(inputs, case.lengths_FB, torch.float64, device, fused=False)
    got = _read(inputs, case.lengths_FB, case.dtype, device, fused=True)
    names = ("read", "gradient of tokens", "gradient of queries", "gradient of gates")
    measure, limit = (_largest, FP32_LIMIT) if case.dtype == torch.float32 else (_spread, BF16_LIMIT)
    return {name: measure(a, b) for name, a, b in zip(names, got, expected, strict=True)}, limit


def _draw(case: Case) -> list[Tensor]:
    """Tokens, queries and gates, such that no query looks at one token only."""
    generator = torch.Generator().manual_seed(0)
    num_examples, width = case.lengths_FB.shape[1], case.width
    token_LD = torch.randn(int(case.lengths_FB.sum()), width, generator=generator)
    query_BRD = torch.randn(num_examples, case.num_queries, width, generator=generator) * 2 / width**0.5
    return [token_LD, query_BRD, torch.rand(num_examples, width, generator=generator) + 0.5]


def _read(
    inputs: list[Tensor], lengths_FB: Tensor, dtype: torch.dtype, device: torch.device, *, fused: bool
) -> list[Tensor]:
    """What queries read, and the gradients of tokens, queries and gates, in float64."""
    token_LD, query_BRD, gate_BD = (x.to(device, dtype).requires_grad_() for x in inputs)
    tokens = (fuse_sequences if fused else arrange_sequences)(token_LD, lengths_FB.to(device))
    assert isinstance(tokens, FusedTokens) == fused
    read_BRD, _ = tokens.gated(gate_BD).attend(query_BRD)
    generator = torch.Generator().manual_seed(1)
    direction_BRD = torch.randn(read_BRD.shape, generator=generator).to(read_BRD)
    grads = torch.autograd.grad(read_BRD, (token_LD, query_BRD, gate_BD), direction_BRD)
    return [x.detach().to("cpu", torch.float64) for x in (read_BRD, *grads)]


def _largest(got: Tensor, expected: Tensor) -> float:
    """The largest error, as a fraction of the largest value; NaN stays NaN, which is below no limit."""
    if not expected.numel():
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))


def _spread(got: Tensor, expected: Tensor) -> float:
    """The root mean square of the error, as a fraction of that of the values."""
    if not expected.numel():
        return 0.0
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-3))


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _worker() -> None:
    task, out, size, *numbers = sys.argv[1:]
    settings = Settings(Path(out), size)  # pyright: ignore[reportArgumentType]
    if task == "compile":
        compile_ahead([int(number) for number in numbers])
        return
    if size == "smallest":
        # Trying all block sizes of every width would take minutes: one that fits them all.
        for tuner in _tuners():
            tuner.configs = [
                config for config in tuner.configs if (config.kwargs["BLOCK"], config.num_warps) == (16, 8)
            ]
    check_widths([int(number) for number in numbers], settings, Writer(settings.out / RESULTS, "kernels"))


if __name__ == "__main__":
    _worker()
