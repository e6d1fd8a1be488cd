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


def live_bytes(build: Callable[[], nn.Module], samples: int, tokens: int, hidden: int) -> int:
    """What MemTracker sees alive after a forward pass: input and activations, without parameters and the output."""
    with FakeTensorMode(), default_dtype(torch.bfloat16):
        module = build()
        x = torch.empty(samples, tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
        tracker = MemTracker()
        tracker.track_external(module, x)
        with tracker:
            out = module(x)
            found = _only(tracker.get_tracker_snapshot("current"))
        return found["Total"] - found["Parameter"] - out.untyped_storage().nbytes()


def peak_bytes(build: Callable[[], nn.Module], inputs: Callable[[], tuple[Tensor, ...]]) -> int:
    """MemTracker's peak of a forward and backward pass that ends in one number, without parameters and gradients."""
    with FakeTensorMode(), default_dtype(torch.bfloat16):
        module, arguments = build(), inputs()
        tracker = MemTracker()
        tracker.track_external(module, *arguments)
        with tracker:
            module(*arguments).backward()
        found = _only(tracker.get_tracker_snapshot("peak"))
        return found["Total"] - found["Parameter"] - found["Gradient"]


def state_bytes(
    build: Callable[[], nn.Module],
    update: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    x: Callable[[], Tensor],
) -> tuple[int, int, int]:
    """MemTracker's (parameters, gradients, optimizer state) after one step; the optimizer's counters left out."""
    with FakeTensorMode():
        module, given = build(), x()
        optimizer = update(module.parameters())
        tracker = MemTracker()
        tracker.track_external(module, optimizer, given)
        with tracker:
            module(given).sum().backward()
            optimizer.step()
            found = _only(tracker.get_tracker_snapshot("current"))
        return found["Parameter"], found["Gradient"], found["Optstate"] - counter_bytes(optimizer)


def counter_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of Adam's state, the number of steps, which it keeps for each tensor."""
    return sum(state["step"].nbytes for state in optimizer.state.values() if "step" in state)


def _only(snapshots: dict[torch.device, dict[str, int]]) -> dict[str, int]:
    (found,) = snapshots.values()
    return {getattr(name, "value", str(name)): size for name, size in found.items()}
