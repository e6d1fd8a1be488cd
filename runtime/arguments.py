"""What each argument of the agent and of the expert-parallel layer may be: the one place that says it.

Each rule is about one argument alone. What must fit together (a model and its routers, a plan and the ranks, a
placement and its slots) is checked where both are known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import torch.distributed as dist
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from planner.spec.model import MoeFeedForward
from planner.spec.parse import parse
from planner.spec.placement import TokenSplit
from planner.spec.value import Count, Index, Name, Value
from runtime.auxiliary import AuxiliaryLoss
from runtime.capacity import Capacity
from runtime.exchange import Group, is_distributed
from runtime.gates import ExpertRouter
from runtime.hooks import RouterKind
from runtime.topology import Topology

Apply = Literal["migrate", "advise"]

ADDRESS = "http://host:port"
LONGEST_TIMEOUT_S = 3600.0
"""Whoever waits longer for a service has mistaken the unit."""
_SHOWN_CHARACTERS = 80


def _shown(given: object) -> str:
    """What was given, for a message: never longer than a line."""
    if isinstance(given, Tensor | nn.Module) or callable(given):
        return f"a {type(given).__name__}"
    text = repr(given)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _must_be(what: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """The rule that `what` says and `holds` checks."""

    def validate(given: Any) -> Any:
        if not holds(given):
            raise ValueError(f"must be {what}, got {_shown(given)}")
        return given

    return AfterValidator(validate)


def _is_a(kind: type[object]) -> AfterValidator:
    return _must_be(f"a {kind.__module__}.{kind.__name__}", lambda given: isinstance(given, kind))


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _is_model(given: object) -> bool:
    chunks = [given] if isinstance(given, nn.Module) else given
    return isinstance(chunks, Sequence) and len(chunks) > 0 and all(isinstance(chunk, nn.Module) for chunk in chunks)


def _is_optimizer(given: object) -> bool:
    return hasattr(given, "param_groups") and hasattr(given, "state")


def _is_my_group(given: object) -> bool:
    return is_distributed() and isinstance(given, Group) and dist.get_rank(given) >= 0


def _is_npz(given: object) -> bool:
    return isinstance(given, str | os.PathLike) and Path(given).suffix == ".npz"


def _is_no_step(name: str) -> bool:
    return name not in (".", "..")


def _check_address(given: str) -> str:
    wanted = f"must be an http or https address such as {ADDRESS}, got {_shown(given)}"
    try:
        url = urlsplit(given)
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from None
    if url.scheme not in ("http", "https") or not host or re.search(r"\s", given):
        raise ValueError(wanted)
    if url.query or url.fragment:
        raise ValueError(f"must be an address without ? and #, got {_shown(given)}")
    if re.search(r"/v1/?$", url.path):
        raise ValueError(f"must be the address without /v1, which the agent adds, got {_shown(given)}")
    return given


def _check_token(given: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", given):
        raise ValueError("must be ASCII without spaces and line ends")  # a secret: not shown
    return given


RunName = Annotated[Name, _must_be("a name other than . and .., which have a meaning in addresses", _is_no_step)]
Model = Annotated[Any, _must_be("a torch module, or a list of modules (its chunks)", _is_model)]
Optimizer = Annotated[Any, _must_be("a torch optimizer", _is_optimizer)]
Function = Annotated[Any, _must_be("a function", callable)]
Ranks = Annotated[Any, _must_be("a torch.distributed.ProcessGroup that this rank is in", _is_my_group)]
RouterKinds = Annotated[
    tuple[Annotated[Any, _is_a(RouterKind)], ...],
    BeforeValidator(lambda given: tuple(given) if _is_list(given) else given),
]
Address = Annotated[str, AfterValidator(_check_address)]
Token = Annotated[str, AfterValidator(_check_token)]
TracePath = Annotated[Any, _must_be("a path that ends in .npz", _is_npz)]
LayerNumbers = Annotated[Any, _must_be("a list of the numbers of this rank's MoE layers", _is_list)]
Slots = Annotated[Any, _must_be("a list of the expert in each slot", _is_list)]


class AgentArguments(Value):
    """Arguments of `Agent`, which says what they mean."""

    run: RunName | None
    model: Model
    service: str | None
    window_steps: Count
    search: Name | None
    plan: Name | None
    apply: Apply | None
    optimizer: Optimizer | None
    on_decision: Function | None
    token: str | None
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=LONGEST_TIMEOUT_S)]
    policy: Function
    routers: RouterKinds
    same_tokens: Ranks | None
    record: TracePath | None
    moe_layers: LayerNumbers | None


class Service(Value):
    """Where the service is, once the environment was asked too; rank 0 needs it."""

    service: Address
    token: Token | None


class AgentGroup(Value):
    """The group of `Agent`; checked before all else, because nobody can be told without a group."""

    group: Ranks | None


class Closing(Value):
    """Arguments of `Agent.close`."""

    timeout_s: Annotated[float, Field(strict=True, ge=0, le=LONGEST_TIMEOUT_S)]


class LayerArguments(Value):
    """Arguments of `ExpertParallelMoe`, which says what they mean."""

    hidden_size: Count
    shape: Annotated[Any, _is_a(MoeFeedForward)]
    group: Ranks | None
    slots: Slots | None
    extra_slots_per_rank: Index
    shadow_slots_per_rank: Index
    token_split: TokenSplit
    gate: Annotated[Any, _is_a(ExpertRouter)] | None
    capacity: Annotated[Any, _is_a(Capacity)] | None
    topology: Annotated[Any, _is_a(Topology)] | None
    pieces: Count
    auxiliary: Annotated[Any, _is_a(AuxiliaryLoss)] | None


def check(kind: type[Value], **given: object) -> None:
    """Raises InputError that names each argument that cannot be right."""
    parse(kind, given)
