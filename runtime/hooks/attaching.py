"""A counter on every router of a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from planner.spec.errors import InputError
from runtime.exchange import Group, rank
from runtime.hooks.counter import RouterCounter
from runtime.hooks.frameworks import ROUTERS
from runtime.hooks.kinds import RouterKind
from runtime.hooks.passes import TokenMask


def attach(
    model: Any,
    kinds: Sequence[RouterKind] = ROUTERS,
    *,
    mask: TokenMask | None = None,
    same_tokens: Group | None = None,
    may_have_none: bool = False,
    alone: bool = False,
) -> list[RouterCounter]:
    """A counter on each router of the model, in the order of its modules, which is that of its layers.

    `model`: a torch module, or what has Paddle's `named_sublayers` and `register_forward_post_hook`. `kinds`: the
    first that matches a module says how it is read. A module around a known router is none itself. `same_tokens`: the
    ranks whose routers see the same tokens; only the first of them counts. `alone`: no other
    that says so may count there, as agents do. Raises InputError, and leaves no hook, if there is no router, unless it
    `may_have_none` (a pipeline stage without MoE layers), or if one cannot be counted.
    """
    mask = mask or TokenMask()
    place = 0 if same_tokens is None else rank(same_tokens)
    if place < 0:
        raise InputError.at("same_tokens", "must be the group that this rank is in")
    found = _routers(model, kinds)
    if not found and not may_have_none:
        raise InputError.at(
            "model",
            f"has no router that is known. Known are, by package: {_known(kinds)}. Describe an own one by a "
            "runtime.RouterKind, and pass it in Agent(routers=[…]). A pipeline stage without MoE layers says "
            "Agent(moe_layers=[])",
        )
    counters: list[RouterCounter] = []
    with ExitStack() as undo:
        for name, module, kind in found:
            counters.append(RouterCounter(name, module, kind, mask, counts_here=place == 0, alone=alone))
            undo.callback(counters[-1].detach)
        undo.pop_all()
    return counters


def _routers(model: Any, kinds: Sequence[RouterKind]) -> list[tuple[str, Any, RouterKind]]:
    found = []
    for name, module in _modules(model):
        kind = next((kind for kind in kinds if kind.matches(module)), None)
        if kind is not None:
            found.append((name, module, kind))
    return [entry for entry in found if not any(_is_inside(other, entry[0]) for other, _, _ in found)]


def _modules(model: Any) -> list[tuple[str, Any]]:
    if hasattr(model, "named_modules"):
        return list(model.named_modules())
    return list(model.named_sublayers(include_self=True))


def _known(kinds: Sequence[RouterKind]) -> str:
    names: dict[str, list[str]] = {}
    for kind in kinds:
        names.setdefault(kind.package, []).extend(kind.class_names)
    return "; ".join(f"{package} ({', '.join(classes)})" for package, classes in names.items())


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (outer == "" or name.startswith(outer + "."))
