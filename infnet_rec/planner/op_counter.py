"""What a piece of code allocates and moves, counted operator by operator as it runs.

Memory is counted by storages: one that is new when an operator returns it counts until it is freed. What stood before
(weights, inputs) does not count. Scratch space inside one operator is not seen; on a GPU the allocator's own peak is
exact, and `infnet_rec.benchmark.forms.tower` uses that.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# They hand out memory and touch none of it.
NOT_WRITTEN = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
)  # They return no tensor, and look at one: a check on the device, a number for the host.
LOOKS = frozenset({"_assert_async", "_local_scalar_dense"})
# Operators over lists of tensors, and how many tensors torch's kernels for them take at once, inputs and results that
# are written in place together: 110 lists of one, 64 of two, 48 of three, 36 of four. Lists of equal length are meant.
MANY = ("_foreach_", "_fused_")
TENSORS_A_KERNEL = 110


class OpCounter(TorchDispatchMode):
    """Counts while it is entered, in the forward and the backward pass.

    Attributes:
        live_bytes: made since and not yet freed.
        peak_bytes: the most of that at any time.
        moved_bytes: inputs read and outputs written, operator by operator, as if nothing stayed in a cache. Views are
            free.
        flops: of matrix products and convolutions, by torch's own formulas.
        num_operators: that read or wrote memory; on a GPU each is a kernel at least, and one over a list of tensors as
            many as the list needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = self.moved_bytes = self.flops = self.num_operators = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operator and writes it down."""
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        for tensor in given:
            self._meet(tensor, counts=False)
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        made = list(_tensors(result))
        is_new = [self._meet(tensor, counts=True) for tensor in made]
        name = func._schema.name.split("::")[1]
        if (any(is_new) or func._schema.is_mutable or name in LOOKS) and name not in NOT_WRITTEN:
            self.moved_bytes += sum(map(_touched_bytes, [*given, *made]))
            self.num_operators += -(-len(given) // TENSORS_A_KERNEL) if name.startswith(MANY) else 1
        return result

    def _meet(self, tensor: Tensor, *, counts: bool) -> bool:
        """Follows the tensor's storage from now on; says whether it is new."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return False
        self._known.add(key)
        weakref.finalize(storage, self._freed, key, size if counts else 0)
        if counts:
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return counts

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _touched_bytes(tensor: Tensor) -> int:
    """An expanded tensor repeats the same bytes."""
    if tensor.layout != torch.strided:
        return 0
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
