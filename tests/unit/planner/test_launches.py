"""How many kernels a GPU is asked for in a step of the recommended large run, counted on fake tensors without one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from infnet_rec.config.load import load_config
from infnet_rec.config.train import DenseConfig, DenseOptimizer
from infnet_rec.distributed.optimizers import dense_optimizer
from infnet_rec.planner.hardware import load_hardware, parse_cluster
from infnet_rec.planner.op_counter import OpCounter
from infnet_rec.planner.run_plan import PlanRequest, open_source, plan_request

ROOT = Path(__file__).parents[3]
MOST = 400


def request_of(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> PlanRequest:
    monkeypatch.chdir(ROOT)
    config = load_config(Path("configs/kuairand_27k_h100.toml"), overrides)
    return plan_request(config, open_source(config).data(config), parse_cluster("4x8", load_hardware("h100")))


def optimizer_launches(model: nn.Module, name: DenseOptimizer, monkeypatch: pytest.MonkeyPatch) -> int:
    """Clipping and a step of the dense optimizer, after a first step has made its state."""
    # On a GPU torch clips with kernels over lists of tensors; here a CPU stands for it.
    monkeypatch.setattr(torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True)
    with FakeTensorMode(), torch.device("cpu"):
        parameters: dict[str, Tensor] = {}
        for key, value in model.named_parameters():
            parameters[key] = nn.Parameter(torch.zeros(value.shape))
        dense, _ = dense_optimizer(parameters, DenseConfig(optimizer=name))
        dense.init_state()
        with OpCounter() as ledger:
            dense.step()
    return ledger.num_operators


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("readout", ["task", "proxies"])
def test_a_step_asks_for_at_most_400_kernels(readout: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token assembly, tower, loss, backward pass, clipping and dense optimizer; a gradient is added to each parameter,
    as often as data-parallel training copies one."""
    request = request_of(monkeypatch, f"model.readout='{readout}'", f"train.precision='{precision}'")
    assert request.local_batch_size == 2048
    step = request.tower.num_operators
    optimizer = optimizer_launches(request.model.tower, "adam", monkeypatch)
    num_parameters = len(list(request.model.tower.parameters()))
    print(readout, precision, step, optimizer)
    assert step > num_parameters + 100, "the backward pass was counted"
    assert 5 < optimizer < 30
    assert step + optimizer <= MOST


def test_the_ledger_counts_kernels_and_not_what_only_hands_out_memory() -> None:
    many = [torch.ones(3) for _ in range(300)]
    with OpCounter() as ledger:
        torch.empty(1000).view(10, 100)
        assert ledger.num_operators == 0
        torch._foreach_mul_(many, 2.0)
        assert ledger.num_operators == 3, "110 tensors a kernel"
        torch._assert_async(many[0].sum() == 6.0, "a sum, a comparison and a check on the device")
    assert ledger.num_operators == 6
