"""Compiles the kernels for GPUs on a machine without one, the way a launch would: test_fused.py runs this file.

Prints one line a kernel: what it is, then registers and bytes of stack (spilled registers) of a thread, and bytes of
shared memory of a program.

Usage: compile_kernels.py CAPABILITY DTYPE:WIDTH:QUERIES:BLOCK:WARPS ...
       compile_kernels.py CAPABILITY DTYPE:WIDTH:QUERIES ...     all blocks and warps that a first launch would try
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from infnet_rec.models.infnet import triton_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class AbsentGpu(DriverBase):
    """Knows for which GPU to compile, and no more."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def arguments(dtype: torch.dtype, width: int, num_queries: int) -> list[tuple[torch.Tensor, ...]]:
    """Tensors of the right types; nobody reads them."""
    token_LD, query_BRD = torch.empty(64, width, dtype=dtype), torch.empty(2, num_queries, width, dtype=dtype)
    entry_U = torch.zeros(64, dtype=torch.int32)
    inputs = (token_LD, entry_U, entry_U, torch.zeros(3, dtype=torch.int32), query_BRD)
    read_BRD = torch.empty_like(query_BRD, dtype=torch.float32)
    return [inputs, (read_BRD, read_BRD[..., 0].clone()), (read_BRD.clone(), query_BRD.clone(), token_LD.float())]


def resources(cubin: bytes) -> tuple[str, ...]:
    """Registers and stack of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing.stdout)
    assert found, listing.stdout
    return found.groups()


def main(capability: int, cases: list[str]) -> None:
    triton.runtime.driver.set_active(AbsentGpu(capability))
    for case in cases:
        dtype, width, num_queries, *chosen = case.split(":")
        tensors = arguments(DTYPES[dtype], int(width), int(num_queries))
        size = triton_kernels.Extent(int(num_queries), int(width), tensors[0][0].element_size())
        forward, backward = triton_kernels.attend_forward, triton_kernels.attend_backward
        launches = [(forward, tensors[:2], {}), *((backward, tensors, {"ADDS": adds}) for adds in (True, False))]
        for kernel, given, own in launches:
            if chosen:
                options = {"BLOCK": int(chosen[0]), "num_warps": int(chosen[1]), "num_stages": 2}
                all_compiled = [kernel.warmup(*given, **own, SIZE=size, grid=(2,), **options)]
            else:
                all_compiled = triton_kernels._TUNED[kernel].warmup(*given, **own, SIZE=size, grid=(2,))
            for compiled in all_compiled:
                registers, stack = resources(compiled.asm["cubin"])
                print(
                    f"sm_{capability} {case} {kernel.__name__} {registers} {stack} {compiled.metadata.shared}",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
