"""The tower in its forms, side by side: literal, eager, and fused where there is a kernel and a GPU.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens of the whole batch, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infnet_rec.bench.ledger import Ledger
from infnet_rec.bench.literal import LiteralInfnet
from infnet_rec.bench.machine import free_bytes
from infnet_rec.bench.timing import Taken, alternate, middle, wait
from infnet_rec.faults import Failure
from infnet_rec.model.infnet import Infnet, InfnetOptions
from infnet_rec.model.tokens import Tokens

Form = Literal["literal", "eager", "fused"]
Pass = Literal["forward", "forward_backward"]
# Peak memory grows in proportion to the batch, so a small one foretells it.
TRIAL_EXAMPLES = 16
MAX_BYTES = 8 << 30
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Sizes of the tower's input.

    Attributes:
        num_features: M.
        group_of_sequence: for each sequence, the proxy that pools it.
        num_tasks: logits an example.
        width: D.
        lengths_FB: events of each sequence in each example.
    """

    num_features: int
    group_of_sequence: tuple[int, ...]
    num_tasks: int
    width: int
    lengths_FB: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return self.lengths_FB.shape[1]

    @property
    def token_bytes(self) -> int:
        """All tokens of a batch, in float32."""
        num_tokens = self.num_features * self.batch_size + int(self.lengths_FB.sum())
        return 4 * self.width * num_tokens

    def first(self, num_examples: int) -> "TowerShape":
        """A smaller batch of the same kind."""
        return replace(self, lengths_FB=self.lengths_FB[:, :num_examples])

    def to_json(self) -> dict[str, Any]:
        """For people and scripts."""
        return {
            "batch_size": self.batch_size,
            "num_features": self.num_features,
            "num_sequences": len(self.group_of_sequence),
            "num_groups": max(self.group_of_sequence) + 1,
            "num_tasks": self.num_tasks,
            "width": self.width,
            "events_per_example": float(self.lengths_FB.sum()) / self.batch_size,
            "most_events_of_a_sequence": int(self.lengths_FB.max()),
        }


def full_lengths(num_sequences: int, batch_size: int, length: int) -> Tensor:
    """Every sequence full."""
    return torch.full((num_sequences, batch_size), length)


def ragged_lengths(group_of_sequence: tuple[int, ...], batch_size: int, longest: int) -> Tensor:
    """0 to `longest` events, each number as likely; sequences of a group are attributes of the same events."""
    generator = torch.Generator().manual_seed(0)
    length_GB = torch.randint(longest + 1, (max(group_of_sequence) + 1, batch_size), generator=generator)
    return length_GB[list(group_of_sequence)]


def make_tokens(shape: TowerShape, device: torch.device) -> Tokens:
    """Random tokens that ask for gradients, as looked-up embeddings do."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.batch_size, shape.num_features, shape.width), (int(shape.lengths_FB.sum()), shape.width)
    categorical_BMD, sequence_LD = (
        torch.randn(size, generator=generator).mul_(0.1).to(device).requires_grad_() for size in sizes
    )
    return Tokens(categorical_BMD, sequence_LD, shape.lengths_FB.to(device))


def make_forms(
    shape: TowerShape, options: InfnetOptions, device: torch.device
) -> tuple[dict[Form, Infnet], dict[Form, str]]:
    """The forms with the same weights, and why a form is missing."""
    sizes: dict[str, Any] = {
        "num_features": shape.num_features,
        "group_of_sequence": shape.group_of_sequence,
        "num_tasks": shape.num_tasks,
        "width": shape.width,
    }
    has_fused = "attention" in {field.name for field in fields(InfnetOptions)}
    eager: Any = {"attention": "eager"} if has_fused else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        forms: dict[Form, Infnet] = {
            "literal": LiteralInfnet(**sizes, options=replace(options, **eager)),
            "eager": Infnet(**sizes, options=replace(options, **eager)),
        }
    missing: dict[Form, str] = {}
    if not has_fused:
        missing["fused"] = "this version has no fused attention"
    elif device.type != "cuda":
        missing["fused"] = "its kernel runs on a GPU"
    else:
        fused: Any = {"attention": "fused"}
        forms["fused"] = Infnet(**sizes, options=replace(options, **fused))
    for form in forms.values():
        form.load_state_dict(forms["literal"].state_dict())
        form.to(device)
    return forms, missing


def passes_of(model: nn.Module, tokens: Tokens) -> dict[Pass, Callable[[], None]]:
    """What is timed."""

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    def forward_backward() -> None:
        clear(model, tokens)
        model(tokens).sum().backward()

    return {"forward": forward, "forward_backward": forward_backward}


def clear(model: nn.Module, tokens: Tokens) -> None:
    """Forgets all gradients."""
    model.zero_grad(set_to_none=True)
    tokens.categorical_BMD.grad = tokens.sequence_LD.grad = None


def measure_tower(
    shape: TowerShape,
    options: InfnetOptions,
    device: torch.device,
    limits: Mapping[str, Any],
    *,
    num_rounds: int,
    passes: tuple[Pass, ...] = ("forward", "forward_backward"),
) -> dict[str, Any]:
    """Everything about the forms at one shape.

    Args:
        shape: of the input.
        options: of the tower.
        device: where it runs.
        limits: see `infnet_rec.bench.machine.ceilings`.
        num_rounds: of timing.
        passes: what to time.

    Returns:
        Facts by pass and form, the same for scripts and tables; see `facts_of`.

    Raises:
        Failure: the forms' logits differ.
    """
    forms, missing = make_forms(shape, options, device)
    missing |= _too_large(shape, forms, device)
    forms = {name: form for name, form in forms.items() if name not in missing}
    tokens = make_tokens(shape, device)
    difference = check_logits(forms, make_tokens(shape.first(TRIAL_EXAMPLES), device))
    facts: dict[str, Any] = {}
    for kind in passes:
        runs: dict[str, Callable[[], None]] = {name: passes_of(form, tokens)[kind] for name, form in forms.items()}
        counted = {}
        for name, form in forms.items():
            clear(form, tokens)
            counted[name] = count(runs[name], device)
            clear(form, tokens)
        taken = alternate(runs, device, num_rounds=num_rounds)
        least_bytes = shape.token_bytes * (1 if kind == "forward" else 3)
        facts[kind] = {
            "least_bytes": least_bytes,
            "forms": {
                name: facts_of(taken[name], counted[name], counted["eager"]["flops"], least_bytes, shape, limits)
                for name in forms
            },
        }
        for form in forms.values():
            clear(form, tokens)
    return {"shape": shape.to_json(), "passes": facts, "missing": missing, "logit_difference": difference}


def count(run: Callable[[], None], device: torch.device) -> dict[str, int]:
    """Runs once and counts peak memory above what stood before, bytes moved by operators and FLOPs of products."""
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before_bytes = torch.cuda.memory_allocated(device)
        run()
        wait(device)
        exact_peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
    with Ledger() as ledger:
        run()
    peak_bytes = exact_peak_bytes if device.type == "cuda" else ledger.peak_bytes
    return {"peak_bytes": peak_bytes, "moved_bytes": ledger.moved_bytes, "flops": ledger.flops}


def facts_of(
    taken: list[Taken],
    counted: dict[str, int],
    least_flops: int,
    least_bytes: int,
    shape: TowerShape,
    limits: Mapping[str, Any],
) -> dict[str, Any]:
    """One form's numbers.

    The roofline is the same for all forms: the time in which this machine could move what must be moved (each token
    read once; in training read again, and its gradient written) and multiply what the absorbed form multiplies,
    whichever takes longer. The achieved rates are each form's own bytes and FLOPs; a kernel's inside is not counted.
    """
    s, processor_s = middle(taken)
    copy_rate, matmul_rate = limits["copy_bytes_per_s"], limits["matmul_flops_per_s"]["float32"]
    return {
        "ms": s * 1e3,
        "ms_of_rounds": [t.wall_s * 1e3 for t in taken],
        "processor_ms": processor_s * 1e3,
        "examples_per_s": shape.batch_size / s,
        **counted,
        "flops_per_s": counted["flops"] / s,
        "moved_bytes_per_s": counted["moved_bytes"] / s,
        "fraction_of_matmul": counted["flops"] / s / matmul_rate,
        "fraction_of_copy": counted["moved_bytes"] / s / copy_rate,
        "fraction_of_roofline": max(least_bytes / copy_rate, least_flops / matmul_rate) / s,
    }


def check_logits(forms: Mapping[Form, Infnet], tokens: Tokens) -> float:
    """The largest difference of any form's logits from the eager one's.

    Raises:
        Failure: it is more than rounding explains, so the forms are not the same function and a comparison is void.
    """
    with torch.no_grad():
        logits = {name: form.eval()(tokens) for name, form in forms.items()}
    for form in forms.values():
        form.train()
    differences = {name: float((logits_BT - logits["eager"]).abs().max()) for name, logits_BT in logits.items()}
    largest = max(differences, key=lambda name: differences[name])
    if not differences[largest] <= TOLERANCE * (1 + float(logits["eager"].abs().max())):
        raise Failure(f"the logits of {largest} differ from eager's by {differences[largest]:g}: not the same function")
    return differences[largest]


def _too_large(shape: TowerShape, forms: Mapping[Form, Infnet], device: torch.device) -> dict[Form, str]:
    """Forms whose step would not fit, foretold by a small one."""
    free = free_bytes(device) - 2 * shape.token_bytes
    allowed = min(free, MAX_BYTES) if device.type == "cpu" else free
    tokens = make_tokens(shape.first(TRIAL_EXAMPLES), device)
    missing: dict[Form, str] = {}
    for name, form in forms.items():
        clear(form, tokens)
        small_bytes = count(passes_of(form, tokens)["forward_backward"], device)["peak_bytes"]
        needed_bytes = small_bytes * shape.batch_size // min(TRIAL_EXAMPLES, shape.batch_size)
        if needed_bytes > allowed and name != "eager":
            missing[name] = f"a step needs about {needed_bytes / 2**30:.1f} GiB, {allowed / 2**30:.1f} may be taken"
        clear(form, tokens)
    return missing
