"""How the routers of one framework are recognised and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from planner.spec.errors import InputError
from runtime.hooks.routing import Choices, Routing


def whole_numbers(_router: object, output: object) -> Routing | None:
    """The one tensor of whole numbers in a tuple, as the choices of each token; None if there is not just one."""
    found = [part for part in output if _is_whole(part)] if isinstance(output, tuple) else []
    return Choices(found[0]) if len(found) == 1 else None


def says_num_experts(router: object) -> object:
    """The attribute `num_experts`."""
    return getattr(router, "num_experts", None)


def gradients_on(_output: object) -> bool:
    """Whether torch records for the backward pass."""
    return torch.is_grad_enabled()


@dataclass(frozen=True)
class RouterKind:
    """How routers of one framework look. An own one goes to `Agent(routers=…)`:

    RouterKind("my_package", ("MyRouter",), lambda router, output: Choices(output[1]))
    """

    package: str
    """First part of the name of the module that defines the class."""
    class_names: tuple[str, ...]
    """Patterns of `fnmatch`, for the class or any of its bases."""
    routing: Callable[[Any, Any], Routing | None] = whole_numbers
    """From the router and the output of a forward pass to what it says; None: it says nothing of the kind."""
    num_experts: Callable[[Any], object] = says_num_experts
    """From the router to the number of experts of all ranks."""
    recording: Callable[[Any], bool] = gradients_on
    """From the output to whether it was made for a backward pass."""

    def __post_init__(self) -> None:
        if not isinstance(self.package, str) or not self.package.isidentifier():
            raise InputError.at(
                "routers", f"package must be the first part of a module's name, such as 'my', got {self.package!r}"
            )
        if isinstance(self.class_names, str):
            raise InputError.at("routers", f"class_names must be a tuple of names, got the text {self.class_names!r}")
        if not isinstance(self.class_names, Sequence) or not all(isinstance(name, str) for name in self.class_names):
            raise InputError.at("routers", f"class_names must be a tuple of names, got {self.class_names!r}")
        for name in ("routing", "num_experts", "recording"):
            if not callable(getattr(self, name)):
                raise InputError.at("routers", f"{name} must be a function, got {getattr(self, name)!r}")

    def matches(self, router: object) -> bool:
        """Whether a module is such a router."""
        return any(
            base.__module__.split(".")[0] == self.package
            and any(fnmatchcase(base.__name__, pattern) for pattern in self.class_names)
            for base in type(router).__mro__
        )


def _is_whole(part: object) -> bool:
    return isinstance(part, Tensor) and not (part.is_floating_point() or part.is_complex() or part.dtype == torch.bool)
