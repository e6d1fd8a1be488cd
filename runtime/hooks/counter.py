"""The counter on one router: from its making until `detach` it counts what goes to each expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.spec.errors import InputError
from runtime.hooks.kinds import RouterKind
from runtime.hooks.passes import Passes, TokenMask
from runtime.hooks.routing import Choices, Counts, RoutingMap

TOP_K = ("top_k", "topk", "k")
"""Where routers that do not tell the choices of each token say how many these are."""


class RouterCounter:
    """Counts on the router's device, and never waits for it."""

    alone: bool
    """No second such may be on its router."""

    def __init__(
        self, name: str, router: Any, kind: RouterKind, mask: TokenMask, *, counts_here: bool, alone: bool
    ) -> None:
        """`counts_here`: False where another rank counts the same tokens. Raises InputError."""
        if alone and any(counter.alone for counter in counters_on(router)):
            raise InputError.at("model", f"has another agent already, at router {name}: close() that one first")
        num_experts = kind.num_experts(router)
        if not isinstance(num_experts, int) or num_experts < 1:
            raise InputError.at("model", f"router {name} ({type(router).__name__}) does not say its num_experts")
        self.name = name
        self.alone = alone
        self.num_experts = num_experts
        self.top_k = _says_top_k(router)
        """Experts that the router picks for each token; None: it has not said so yet."""
        self._router = router
        self._kind = kind
        self._counts: Tensor | None = None
        self._passes = Passes(mask)
        self._counts_here = counts_here
        register = getattr(router, "register_forward_hook", None) or router.register_forward_post_hook
        hook = torch.compiler.disable(self._hook)  # type: ignore[no-untyped-call]
        hook.counter = self
        self._handle = register(hook)

    def _hook(self, router: Any, _inputs: object, output: object) -> None:
        if not self._counts_here or not self.counts_at(router):  # a deep copy of a model has its hooks, too
            return
        counted = self._passes.enter(router.training, self._kind.recording(output))
        if counted is None:
            return
        routing = self._kind.routing(router, output)
        if routing is None:
            raise InputError.at("model", f"router {self.name} ({type(router).__name__}) does not return chosen experts")
        if not isinstance(routing, Choices | RoutingMap | Counts):
            raise InputError.at(
                "routers",
                f"what reads router {self.name} ({type(router).__name__}) must return Choices, RoutingMap or Counts of "
                f"runtime.hooks, got a {type(routing).__name__}",
            )
        if isinstance(routing, Choices):
            self.top_k = routing.experts.shape[-1]
        counts = routing.count(self.num_experts, counted.real)
        self._counts = counts if self._counts is None else self._counts.add_(counts)

    def counts_at(self, router: object) -> bool:
        """Whether it is this router that is counted, and not one that it was copied to."""
        return router is self._router

    def take(self, device: torch.device) -> Tensor:
        """The counts [experts] since the last call, on `device`; counting begins anew."""
        counts, self._counts = self._counts, None
        self._passes.forget()
        if counts is None:
            return torch.zeros(self.num_experts, dtype=torch.int64, device=device)
        return counts.to(device)

    def detach(self) -> None:
        """Remove the hook from the router."""
        self._handle.remove()


def counters_on(router: Any) -> list[RouterCounter]:
    """Those that count at a torch module now."""
    found = (getattr(hook, "counter", None) for hook in getattr(router, "_forward_hooks", {}).values())
    return [counter for counter in found if isinstance(counter, RouterCounter) and counter.counts_at(router)]


def _says_top_k(router: object) -> int | None:
    said = (getattr(router, name, None) for name in TOP_K)
    return next((number for number in said if type(number) is int and number > 0), None)
