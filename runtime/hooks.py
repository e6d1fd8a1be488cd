"""Counting tokens per expert by forward hooks on routers, found by class name; no framework is imported.

A hook never changes an output, adds to a counter on the router's device without waiting for the device, and counts each
training forward pass once:

- under `torch.no_grad()` or in `eval()` mode nothing is counted;
- activation checkpointing runs a forward twice. Without reentrance (`use_reentrant=False`) the first pass has gradients
  on and is counted, the second runs inside the backward pass and is not. With reentrance the first pass runs without
  gradients, so the second, inside the backward pass, is counted. Which of both a router is in shows from whether it was
  counted outside of a backward pass since the counters were last taken.

Known limits: routers inside a CUDA graph or a compiled full graph do not run Python hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from planner.spec.errors import InputError


@dataclass(frozen=True)
class RouterKind:
    """How routers of one framework look. `package` is the first part of the module that defines the class."""

    package: str
    class_names: tuple[str, ...]
    """Patterns of `fnmatch`, for the class or any of its bases."""
    experts: Callable[[Any], object]
    """From the output of a forward pass to the chosen expert of every token and choice: whole numbers, any shape."""

    def matches(self, router: nn.Module) -> bool:
        """Whether a module is such a router."""
        return any(
            base.__module__.split(".")[0] == self.package
            and any(fnmatchcase(base.__name__, pattern) for pattern in self.class_names)
            for base in type(router).__mro__
        )


def _third(output: Any) -> object:
    return output[2] if isinstance(output, tuple) and len(output) >= 3 else None


ROUTERS = (
    RouterKind("runtime", ("ExpertRouter",), _third),
    # transformers 5: (logits [tokens, experts], scores [tokens, top_k], indices [tokens, top_k]). Read in 5.23.0.
    RouterKind("transformers", ("*TopKRouter", "*TopkRouter"), _third),
    RouterKind("transformers_modules", ("*TopKRouter", "*TopkRouter"), _third),
)
"""All routers that are known; a framework is added by a row."""


class RouterCounter:
    """Counts what one router sends to each expert, from its making until `detach`."""

    def __init__(self, name: str, router: nn.Module, kind: RouterKind) -> None:
        num_experts = getattr(router, "num_experts", None)
        if not isinstance(num_experts, int) or num_experts < 1:
            raise InputError.at("model", f"router {name} ({type(router).__name__}) does not say its num_experts")
        self.name = name
        self.num_experts = num_experts
        self._kind = kind
        self._counts: Tensor | None = None
        self._counted_forward = False
        self._handle = router.register_forward_hook(self._hook)

    def _hook(self, router: nn.Module, _inputs: object, output: object) -> None:
        if not (router.training and torch.is_grad_enabled()):
            return
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and self._counted_forward:
            return
        self._counted_forward |= not in_backward
        self._add(router, output)

    def _add(self, router: nn.Module, output: object) -> None:
        experts = self._kind.experts(output)
        if not isinstance(experts, Tensor) or experts.is_floating_point():
            raise InputError.at("model", f"router {self.name} ({type(router).__name__}) does not return chosen experts")
        chosen = experts.detach().flatten()
        if self._counts is None:
            self._counts = torch.zeros(self.num_experts, dtype=torch.int64, device=chosen.device)
        # Not bincount: that makes the host wait for the device.
        self._counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int64))

    def take(self, device: torch.device) -> Tensor:
        """The counts [experts] since the last call, on `device`; counting begins anew."""
        counts, self._counts, self._counted_forward = self._counts, None, False
        if counts is None:
            return torch.zeros(self.num_experts, dtype=torch.int64, device=device)
        return counts.to(device)

    def detach(self) -> None:
        """Remove the hook from the router."""
        self._handle.remove()


def attach(model: nn.Module, kinds: Sequence[RouterKind] = ROUTERS) -> list[RouterCounter]:
    """A counter on each router of the model, in order; raises InputError if there is none."""
    counters = []
    for name, module in model.named_modules():
        kind = next((kind for kind in kinds if kind.matches(module)), None)
        if kind is not None:
            counters.append(RouterCounter(name, module, kind))
    if not counters:
        known = ", ".join(f"{kind.package}'s {' and '.join(kind.class_names)}" for kind in kinds)
        raise InputError.at("model", f"has no router that is known; known are {known}")
    return counters
