"""Bytes that torch keeps, counted without a device: fake tensors, hooks on what the backward pass will read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters get this format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def kept_bytes(build: Callable[[], nn.Module], samples: int, tokens: int, hidden: int) -> int:
    """Storages that a forward pass leaves for the backward pass, each counted once, without the parameters.

    Also the input: a caller would keep it.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # the reference keeps the number from being used again
        return tensor

    with FakeTensorMode(), default_dtype(torch.bfloat16):
        module = build()
        x = torch.empty(samples, tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
        constants = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = module(x)
        assert out.requires_grad
        return sum(storage.nbytes() for number, storage in kept.items() if number not in constants)


def tracked_bytes(
    module: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], Tensor]
) -> dict[str, int]:
    """What MemTracker counts after forward, backward and update, by its own names of kinds. Under FakeTensorMode."""
    tracker = MemTracker()
    tracker.track_external(module, optimizer)
    with tracker:
        step().backward()
        optimizer.step()
        snapshot = tracker.get_tracker_snapshot("current")
    (found,) = snapshot.values()
    return {str(name): size for name, size in found.items()}
