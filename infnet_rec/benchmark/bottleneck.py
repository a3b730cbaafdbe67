"""What holds a step up, in words, with the one change that would help most and by how much at most."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from infnet_rec.benchmark.trace import COMMUNICATION, Part

Bound = Literal["input", "communication", "compute"]
# Waiting for data buys nothing, so it is named first from this share of the step on.
INPUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Setting:
    """What the advice depends on.

    Attributes:
        on_gpu: whether ranks compute on GPUs.
        loader_threads: `data.loader_threads`.
        communication: `sharding.communication`.
        precision: `train.precision`.
        spare_cores: cores of this machine that no rank computes on.
    """

    on_gpu: bool
    loader_threads: int
    communication: str
    precision: str
    spare_cores: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Attributes:
        bound: by what.
        because: the share that says so.
        change: what would help most.
        at_most: times faster, if the change removed all that it could (Amdahl).
    """

    bound: Bound
    because: str
    change: str
    at_most: float


def judge(spent: Mapping[Part, float], exposed: Mapping[Part, float], imbalance: float, setting: Setting) -> Verdict:
    """Says what a step waits for.

    Args:
        spent: by part, shares of a step that add up to 1, mean over ranks.
        exposed: likewise, what of the communicating parts was waiting.
        imbalance: the share that goes if every rank had the same work.
        setting: what there is to change.
    """
    waits, data = sum(exposed[part] for part in COMMUNICATION), spent["data"]
    work = _work(spent, exposed)
    largest = max(work, key=lambda name: work[name])
    if data >= INPUT_SHARE and data >= waits:
        return Verdict("input", f"{data:.0%} of a step is waiting for data", _faster_input(setting), _at_most(data))
    if waits >= work[largest]:
        change, saved = _less_waiting(exposed, min(imbalance, waits), setting)
        return Verdict("communication", f"{waits:.0%} of a step is waiting for other ranks", change, _at_most(saved))
    because = f"{work[largest]:.0%} of a step is {largest}"
    return Verdict("compute", because, _less_work(largest, setting), _at_most(work[largest]))


TOWER, LOOKUPS, PACKING = "the tower", "lookups and updates of tables", "packing what ranks exchange"
DENSE, REST = "the dense optimizer", "neither of these"


def _work(spent: Mapping[Part, float], exposed: Mapping[Part, float]) -> dict[str, float]:
    return {
        TOWER: spent["tower_forward"] + spent["tower_backward"],
        LOOKUPS: spent["lookup"] + spent["table_update"],
        PACKING: sum(spent[part] - exposed[part] for part in COMMUNICATION),
        DENSE: spent["optimizer"],
        REST: spent["rest"],
    }


def _at_most(saved: float) -> float:
    return 1 / max(1e-3, 1 - saved)


def _faster_input(setting: Setting) -> str:
    now = f"data.loader_threads, now {setting.loader_threads}"
    if setting.spare_cores > setting.loader_threads or setting.on_gpu:
        return f"read more batches at a time ({now})"
    return f"give the loader cores of its own ({now}; there are none to spare), or have it read fewer events an example"


def _less_waiting(exposed: Mapping[Part, float], imbalance: float, setting: Setting) -> tuple[str, float]:
    """The change, and the share of a step that it saves at most."""
    part = max(COMMUNICATION, key=lambda name: exposed[name])
    waits = sum(exposed.values())
    if imbalance > waits / 2:
        return (
            "even the ranks' work out (infnet-rec plan shows every rank's; or the machine is busy elsewhere)",
            imbalance,
        )
    if part == "output_all_to_all" and setting.communication == "fp32":
        half = "bf16" if setting.on_gpu else "fp16"
        return f'send embeddings in half the bytes (sharding.communication = "{half}")', exposed[part] / 2
    if part == "dense_all_reduce":
        return "a larger train.global_batch_size: the dense gradients are as large for any batch", exposed[part]
    return "keep small tables whole on every rank (sharding.data_parallel_max_rows), or a faster link", waits


def _less_work(largest: str, setting: Setting) -> str:
    if largest == TOWER:
        if setting.on_gpu and setting.precision == "fp32":
            return 'products in half the bytes (train.precision = "bf16")'
        if setting.spare_cores > 0:
            spare = f"{setting.spare_cores} core{'s' * (setting.spare_cores > 1)}"
            return f"more threads a rank (train.num_threads); no rank computes on {spare} of this machine"
        return "a faster processor or more ranks, or a smaller tower (model.num_blocks, data.sequence_length)"
    if largest == LOOKUPS:
        return (
            "memory of more bandwidth or more ranks, or narrower embeddings (model.width, precision of sharding.tables)"
        )
    if largest == PACKING:
        return "keep small tables whole on every rank (sharding.data_parallel_max_rows)"
    if largest == DENSE:
        return "a larger train.global_batch_size: the dense optimizer costs the same for any batch"
    return "a larger train.global_batch_size: the host's own work costs the same for any batch"
