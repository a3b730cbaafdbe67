"""Part 2: the Triton kernels against the fp64 oracle: forward and gradients, every width, ragged, empty and long.

Widths are shared out among processes of their own, since what takes time is compiling: each width, number of queries
and data type is a kernel. The oracle is the eager form in float64 on the same numbers.

Shapes: B examples, F sequences, L sequence tokens, R queries, D width.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.records import Settings, Writer
from infnet_rec.commands.bench_tower import device_of
from infnet_rec.model.fused import FusedTokens, fuse_sequences
from infnet_rec.model.jagged import arrange_sequences

NUM_WORKERS = 8
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
    """Starts the workers, or is one of them."""
    widths = settings.pick([8, 36], [8, 12, 16, 32, 48, 64, 96, 128], list(range(8, 129, 4)))
    num_workers = 1 if settings.is_rehearsal else min(NUM_WORKERS, len(widths))
    if num_workers == 1:
        check_widths(widths, settings, write)
        return
    size = "smallest" if settings.size == "smallest" else "full"
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(settings.out), size, *map(str, widths[k::num_workers])]
        )
        for k in range(num_workers)
    ]
    failed = [worker.args for worker in workers if worker.wait() != 0]
    if failed:
        raise SystemExit(f"{len(failed)} of {num_workers} workers failed; the first one: {failed[0]}")


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
    from pathlib import Path

    from benchmarks.gpu.records import RESULTS

    out, size, *widths = sys.argv[1:]
    settings = Settings(Path(out), "smallest" if size == "smallest" else "full")
    check_widths([int(width) for width in widths], settings, Writer(Path(out) / RESULTS, "kernels"))


if __name__ == "__main__":
    _worker()
