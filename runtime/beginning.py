"""How an agent begins: its arguments, hooks on the routers, the run; on all ranks, or on none and nothing is left.

What must hold between ranks is agreed on in `runtime.joining` and `runtime.shares`; what each argument alone may be is
said in `runtime.arguments`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from planner.spec.parse import parse
from runtime.arguments import AgentArguments, AgentGroup, check
from runtime.client import Attachment, PlannerService, service_for
from runtime.courier import Courier
from runtime.exchange import Group, num_ranks, rank
from runtime.hooks import ROUTERS, RouterCounter, TokenMask, attach
from runtime.joining import agree, found_run, join
from runtime.moe import ExpertParallelMoe, moe_layers
from runtime.record import Recorder, check_recordable
from runtime.shares import HeldLayer, my_share, whole_model
from runtime.stages import Stage, as_one_module, device_of

logger = logging.getLogger("trimtab.agent")

ADVICE_ONLY = (
    "advice only: the model has no expert-parallel layer of Trimtab whose experts could be moved. Decisions are logged "
    'at level INFO and kept by the service; on_decision= acts on them, apply="advise" says that advice is wanted'
)


@dataclass(frozen=True)
class Beginning:
    """What an agent has once it has begun."""

    device: torch.device
    model: list[HeldLayer]
    """All MoE layers of the model, on whatever rank."""
    migrates: bool
    """Whether experts are moved as it is decided."""
    counters: dict[int, RouterCounter]
    """Of this rank's routers, by their numbers among all MoE layers."""
    stage: Stage
    attachment: Attachment | None
    """The run; None: there is no service, or none that answers."""
    courier: Courier | None
    """On rank 0, if there is a service."""
    recorder: Recorder | None
    """On rank 0, if the job records."""


@dataclass(frozen=True)
class _Prepared:
    """One rank, before it has heard of the others."""

    arguments: AgentArguments
    counters: list[RouterCounter]
    layers: list[ExpertParallelMoe]
    service: PlannerService | None


def begin(given: Mapping[str, Any], group: Group | None, mask: TokenMask) -> Beginning:
    """Begin with these arguments of `Agent`; a collective over `group`.

    Raises InputError on all ranks; then no hook, no thread and no process is left.
    """
    check(AgentGroup, group=group)
    device = device_of(given["model"])
    prepared: list[_Prepared] = []
    with ExitStack() as undo:

        def prepare() -> tuple[dict[str, Any], Any]:
            mine = _prepared(parse(AgentArguments, given), group, mask, undo)
            prepared.append(mine)
            asked = {field: given[field] for field in ("run", "search", "plan", "window_steps")}
            own = (mine.arguments.moe_layers, mine.arguments.apply, mine.arguments.optimizer)
            return asked, my_share(mine.counters, mine.layers, *own).model_dump(mode="json")

        shares = agree(prepare, group, device)
        (mine,) = prepared
        model, migrates = whole_model(shares)
        couriers: list[Courier] = []
        attachment = join(lambda: _attached(mine, model, num_ranks(group), couriers, undo), group, device)
        undo.pop_all()
    numbers = [layer["number"] for layer in shares[rank(group)]["layers"]]
    courier = next(iter(couriers), None)
    if courier is not None and not migrates and mine.arguments.apply is None and mine.arguments.on_decision is None:
        logger.warning(ADVICE_ONLY)
    return Beginning(
        device=device,
        model=model,
        migrates=migrates,
        counters=dict(zip(numbers, mine.counters, strict=True)),
        stage=Stage(model, mine.layers, numbers),
        attachment=attachment,
        courier=courier,
        recorder=_recorder(mine.arguments, attachment) if rank(group) == 0 else None,
    )


def _prepared(arguments: AgentArguments, group: Group | None, mask: TokenMask, undo: ExitStack) -> _Prepared:
    """Hooks on this rank's routers and, on rank 0, the service's address."""
    service = None
    if rank(group) == 0:
        asked = (arguments.run, arguments.search, arguments.service, arguments.token)
        service = service_for(*asked, arguments.timeout_s, records=arguments.record is not None)
    piece = as_one_module(arguments.model)
    counters = attach(
        piece,
        (*arguments.routers, *ROUTERS),
        mask=mask,
        same_tokens=arguments.same_tokens,
        may_have_none=arguments.moe_layers is not None and len(arguments.moe_layers) == 0,
        alone=True,
    )
    for counter in counters:
        undo.callback(counter.detach)
    return _Prepared(arguments, counters, moe_layers(piece), service)


def _attached(
    mine: _Prepared, model: list[HeldLayer], job_ranks: int, couriers: list[Courier], undo: ExitStack
) -> Attachment | None:
    """Rank 0's part: whether it can record; then a courier, which finds the run."""
    given = mine.arguments
    if given.record is not None:
        check_recordable(given.record, [layer.num_experts for layer in model])
    if mine.service is None or given.run is None:
        return None
    find_run = partial(found_run, mine.service, given.run, given.search, given.plan, model, job_ranks)
    courier = Courier(mine.service, find_run, given.policy)
    undo.callback(courier.close, 0.0)
    couriers.append(courier)
    return courier.attach()


def _recorder(given: AgentArguments, attachment: Attachment | None) -> Recorder | None:
    """Of a trace that says of the run what the service has said."""
    if given.record is None:
        return None
    if attachment is None:
        return Recorder(given.record, model=type(as_one_module(given.model)).__name__)
    planned = attachment.run.context.model
    top_k = planned.moe(planned.moe_layers[0]).top_k
    return Recorder(given.record, top_k, planned.name, attachment.next_step)
