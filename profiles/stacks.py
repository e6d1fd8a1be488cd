"""Software stacks by name, from `profiles/software/*.json`."""

from __future__ import annotations

from functools import cache

from planner.spec.parse import parse
from planner.spec.request import Target
from planner.spec.stack import Stack
from planner.spec.value import Name, Value
from profiles import catalogue

USUAL_STACKS = {
    Target.ANY: "megatron-core-2026",
    Target.MEGATRON: "megatron-core-2026",
    Target.TORCHTITAN: "torchtitan",
    Target.DEEPSPEED: "megatron-deepspeed",
}
"""What a request means that names no stack, by the framework that is to run its plans: for any, what most large models
are trained with today."""
USUAL_STACK = USUAL_STACKS[Target.ANY]


class StackPreset(Value):
    """A stack with its other names, and where its numbers come from."""

    aliases: tuple[Name, ...]
    stack: Stack
    sources: tuple[str, ...]


def stack_names() -> list[str]:
    """Names of all stacks in alphabetical order, without their aliases."""
    return catalogue.names("software")


@cache
def stack_preset(name: str) -> StackPreset:
    """The stack of this name or alias; raises NotFoundError with close matches."""
    found = catalogue.find("software", name)
    return parse(StackPreset, catalogue.content("software", found), found)
