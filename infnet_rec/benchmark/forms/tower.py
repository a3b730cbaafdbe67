"""What each form of the tower costs, side by side: time, memory, FLOPs, bytes, and how far it is from the roofline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from infnet_rec.benchmark.forms.forms import Form, TowerShape, check_logits, make_forms, make_tokens
from infnet_rec.benchmark.machine import free_bytes
from infnet_rec.benchmark.samples import Taken, alternate, middle, wait
from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.train import Precision
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.tokens import Tokens
from infnet_rec.planner.op_counter import OpCounter

Pass = Literal["forward", "forward_backward"]
# Peak memory grows in proportion to the batch, so a small one foretells it.
TRIAL_EXAMPLES = 16
MAX_BYTES = 8 << 30


def passes_of(model: nn.Module, tokens: Tokens, precision: Precision = "fp32") -> dict[Pass, Callable[[], None]]:
    """The passes that are timed, by name."""
    device = tokens.lengths_FB.device.type

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            model(tokens)

    def forward_backward() -> None:
        clear(model, tokens)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits_BT = model(tokens)
        logits_BT.float().sum().backward()

    return {"forward": forward, "forward_backward": forward_backward}


def clear(model: nn.Module, tokens: Tokens) -> None:
    """Forgets the gradients of weights and inputs."""
    model.zero_grad(set_to_none=True)
    tokens.categorical_BMD.grad = tokens.distinct_XD.grad = None


def measure_tower(
    shape: TowerShape,
    config: InfnetConfig,
    device: torch.device,
    limits: Mapping[str, Any],
    *,
    num_rounds: int,
    passes: tuple[Pass, ...] = ("forward", "forward_backward"),
    precision: Precision = "fp32",
    interpreted: bool = False,
) -> dict[str, Any]:
    """Everything about the forms at one shape.

    Args:
        shape: of the input.
        config: of the tower; the shape says how wide it is.
        device: where it runs.
        limits: see `infnet_rec.benchmark.machine.ceilings`.
        num_rounds: of timing.
        passes: what to time.
        precision: of matrix products; "bf16" by autocast, in all forms alike. Tokens come in float32.
        interpreted: see `make_forms`.

    Returns:
        Facts by pass and form, the same for scripts and tables; see `facts_of`.

    Raises:
        Failure: the forms' logits differ.
    """
    every_form, missing = make_forms(shape, config, device, interpreted=interpreted)
    missing |= unfit(shape, every_form, device)
    forms: dict[Form, Infnet] = {name: form for name, form in every_form.items() if name not in missing}
    tokens = make_tokens(shape, device)
    difference = check_logits(forms, make_tokens(shape.first(TRIAL_EXAMPLES), device))
    facts: dict[str, Any] = {}
    for kind in passes:
        runs = {name: passes_of(form, tokens, precision)[kind] for name, form in forms.items()}
        counted = {name: count(runs[name], form, tokens) for name, form in forms.items()}
        if "fused" in counted:
            # Inside a kernel nothing can be counted; its products are those of the eager form.
            counted["fused"]["flops"] = counted["eager"]["flops"]
        taken = alternate(runs, device, num_rounds=num_rounds)
        least = Least(counted["eager"]["flops"], shape.token_bytes * (1 if kind == "forward" else 3), precision)
        facts[kind] = {
            "least_bytes": least.num_bytes,
            "forms": {name: tower_facts(taken[name], counted[name], least, shape.batch_size, limits) for name in forms},
        }
        for form in forms.values():
            clear(form, tokens)
    return {"shape": shape.to_json(), "passes": facts, "missing": missing, "logit_difference": difference}


def count(run: Callable[[], None], model: nn.Module, tokens: Tokens) -> dict[str, int]:
    """Counts peak memory above what stood before, bytes moved by operators and FLOPs of products; runs once or twice.

    Afterwards the model is warm, and all gradients are forgotten.
    """
    device = tokens.lengths_FB.device
    clear(model, tokens)
    with OpCounter() as ledger:
        run()
    clear(model, tokens)
    peak_bytes = ledger.peak_bytes
    if device.type == "cuda":
        # The allocator saw what operators and kernels did inside too; work spaces that stay were taken above.
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before_bytes = torch.cuda.memory_allocated(device)
        run()
        wait(device)
        peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
        clear(model, tokens)
    return {"peak_bytes": peak_bytes, "moved_bytes": ledger.moved_bytes, "flops": ledger.flops}


@dataclass(frozen=True, slots=True)
class Least:
    """What any form has to do: multiply what the absorbed form does, and move each token and its gradient."""

    flops: int
    num_bytes: int
    precision: Precision


def tower_facts(
    taken: list[Taken], counted: dict[str, int], least: Least, batch_size: int, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """One form's numbers.

    The roofline is the same for all forms: the time in which this machine could move what must be moved (each token
    read once; in training read again, and its gradient written) and multiply what the absorbed form multiplies,
    whichever takes longer. The achieved rates are each form's own bytes and FLOPs.
    """
    s, processor_s = middle(taken)
    copy_rate = limits["copy_bytes_per_s"]
    rates = limits["matmul_flops_per_s"]
    # Some processors multiply bfloat16 slower, and nobody has to.
    matmul_rate = max(rates.values()) if least.precision == "bf16" else rates["float32"]
    return {
        "ms": s * 1e3,
        "ms_of_rounds": [t.wall_s * 1e3 for t in taken],
        "processor_ms": processor_s * 1e3,
        "examples_per_s": batch_size / s,
        **counted,
        "flops_per_s": counted["flops"] / s,
        "moved_bytes_per_s": counted["moved_bytes"] / s,
        "fraction_of_matmul": counted["flops"] / s / matmul_rate,
        "fraction_of_copy": counted["moved_bytes"] / s / copy_rate,
        "fraction_of_roofline": max(least.num_bytes / copy_rate, least.flops / matmul_rate) / s,
    }


def unfit(shape: TowerShape, forms: Mapping[Form, Infnet], device: torch.device) -> dict[Form, str]:
    """Forms that do not work here, or whose step would not fit, as a small one foretells."""
    free = free_bytes(device) - 2 * shape.token_bytes
    allowed = min(free, MAX_BYTES) if device.type == "cpu" else free
    small = shape.first(TRIAL_EXAMPLES)
    tokens = make_tokens(small, device)
    missing: dict[Form, str] = {}
    for name, form in forms.items():
        try:
            counted = count(passes_of(form, tokens)["forward_backward"], form, tokens)
        except UserError as fault:
            missing[name] = str(fault)
            continue
        needed_bytes = counted["peak_bytes"] * shape.batch_size // small.batch_size
        if needed_bytes > allowed and name != "eager":
            missing[name] = f"a step needs about {needed_bytes / 2**30:.1f} GiB, {allowed / 2**30:.1f} may be taken"
    return missing
