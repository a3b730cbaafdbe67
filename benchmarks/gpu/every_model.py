"""Part 8: all thirteen models, one step forward and backward, against the CPU in fp32; and in bf16.

Nothing is sharded here: the tables are torch's own, so that what is compared is each tower, whatever else works.
"""

import torch
from torch import Tensor, nn

from benchmarks.gpu.records import Settings, Writer
from benchmarks.gpu.small_runs import FUSED, guarded, prepare, small_config
from infnet_rec.batch import Batch
from infnet_rec.config.model import model_sections
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.distributed.parallelize import reset_dense
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import train_loader

MODELS = tuple(model_sections())
# Of losses; and of all gradients together, as root mean squares. Products in bf16 have 8 bits.
FP32_LIMITS, BF16_LIMITS = (1e-4, 1e-3), (3e-2, 0.3)
TABLE_STD = 0.1


def run(settings: Settings, write: Writer) -> None:
    """Every model in turn; one that fails does not stop the next."""
    for name in MODELS:
        guarded(write, name, lambda n=name: _check(n, settings, write))


def _check(name: str, settings: Settings, write: Writer) -> None:
    width = settings.pick(8, 16, 32)
    batch_size = settings.pick(8, 64, 512)
    # Its second loss draws other events at random, and no two devices draw the same.
    own = ", auxiliary_weight = 0.0" if name == "dien" else ""
    section = f'model={{name = "{name}", width = {width}{own}}}'
    exact = small_config(settings, section, f"train.global_batch_size={batch_size}", "train.precision='fp32'")
    data, world = prepare(exact)
    batch = next(train_loader(exact, data, world).batches(0, 1))
    fused = [FUSED] if settings.is_rehearsal and name == "infnet" else []
    weights = initial_weights(exact, data)
    expected = gradients_of(exact, data, weights, batch, torch.device("cpu"))
    for precision, limits in (("fp32", FP32_LIMITS), ("bf16", BF16_LIMITS)):
        size = f"train.global_batch_size={batch_size}"
        config = small_config(settings, section, size, f"train.precision='{precision}'", *fused)
        loss, found = gradients_of(config, data, weights, batch, world.device)
        loss_error = abs(loss - expected[0]) / max(1.0, abs(expected[0]))
        wrong = [found[key] - expected[1][key] for key in expected[1]]
        gradient_error = _norm(wrong) / _norm(list(expected[1].values()))
        write.compared(f"{name}, {precision}: loss", loss_error, limits[0], headline=precision == "fp32")
        write.compared(f"{name}, {precision}: gradients", gradient_error, limits[1])


def initial_weights(config: RunConfig, data: RunData) -> dict[str, Tensor]:
    """Of a new model: dense parts as they initialise themselves, tables drawn."""
    model = meta_model(config, data).to_empty(device="cpu")
    reset_dense(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for collection in (model.bags, model.events):
            for table in collection.parameters():
                table.copy_(torch.randn(table.shape, generator=generator) * TABLE_STD)
    return {name: value.clone() for name, value in model.state_dict().items()}


def gradients_of(
    config: RunConfig, data: RunData, weights: dict[str, Tensor], batch: Batch, device: torch.device
) -> tuple[float, dict[str, Tensor]]:
    """The loss and all gradients of a step on a device, in float64 on the CPU."""
    model: RankingModel = meta_model(config, data).to_empty(device=device)
    model.load_state_dict(weights)
    _without_dropout(model)
    loss, _ = model.train()(batch.to(device))
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), {name: grad.detach().to("cpu", torch.float64).to_dense() for name, grad in grads.items()}


def _without_dropout(model: nn.Module) -> None:
    """No two devices draw the same numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _norm(values: list[Tensor]) -> float:
    return float(torch.stack([value.norm() for value in values]).norm())
