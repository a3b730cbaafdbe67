"""Bytes that collectives send to other ranks."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Exchange(TorchDispatchMode):
    """Counts while it is entered, in the forward and the backward pass.

    Attributes:
        sent_bytes: handed to collectives by this rank for other ranks: of an all-to-all what is addressed to others, of
            any other collective all but this rank's share of its input.
        calls: how often each kind of collective was called.
        log: the calls in their order, each with its part of `sent_bytes`.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self.sent_bytes = 0.0
        self.calls: dict[str, int] = {}
        self.log: list[tuple[str, float]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operator and counts it if it is a collective."""
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            kind = func._schema.name.split("::")[1]
            self.calls[kind] = self.calls.get(kind, 0) + 1
            self.log.append((kind, self._sent_bytes(kind, args)))
            self.sent_bytes += self.log[-1][1]
        return func(*args, **kwargs)

    def _sent_bytes(self, kind: str, args: tuple[Any, ...]) -> float:
        # Operators take their output first, where they have one.
        target, source, *rest = args
        given = list(_tensors(source)) or list(_tensors(target))
        if kind == "alltoall_base_" and (splits := rest[2]):
            return given[0].nbytes * (1 - splits[self.rank] / max(1, sum(splits)))
        return sum(tensor.nbytes for tensor in given) * (1 - 1 / self.world_size)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
