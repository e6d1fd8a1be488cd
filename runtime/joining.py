"""How the ranks of a job join a run of the planner together, and what must fit between the two."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from planner.cost.migration import expert_ranks
from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError, Problem, UnavailableError
from planner.spec.parse import parse
from planner.spec.placement import Placement
from planner.spec.run import RunContext, RunRequest
from planner.spec.window import Window
from runtime.client import Attachment, PlannerService
from runtime.exchange import Group, broadcast_json, gather_json, rank
from runtime.shares import HeldLayer

logger = logging.getLogger("trimtab.agent")

_SHOWN_CHARACTERS = 120


def agree(prepare: Callable[[], tuple[Mapping[str, Any], Any]], group: Group | None, device: torch.device) -> list[Any]:
    """Prepare each rank, compare what must be equal on all (by field), and tell all what each has. A collective.

    `prepare` returns both as plain data: what must be equal, and what this rank has. Returns the latter by rank.
    Raises InputError on all ranks if one cannot be prepared, or if two differ; what else a rank raises, it raises after
    the others have heard of it.
    """
    mine: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        asked, mine["has"] = prepare()
        mine["asked"] = dict(asked)
    except InputError as error:
        mine["problems"] = [[problem.field, problem.message] for problem in error.problems]
    except Exception as error:
        failure = error
        mine["problems"] = [["agent", f"failed: {error!r}"]]
    everyone = gather_json(mine, group, device)
    if failure is not None:
        raise failure
    failed = [number for number, other in enumerate(everyone) if "problems" in other]
    if failed:
        problems = parse(list[tuple[str, str]], everyone[failed[0]]["problems"])
        where = "" if len(failed) == len(everyone) else f" (on rank {failed[0]})"
        raise InputError(*(Problem(field, message + where) for field, message in problems))
    first = everyone[0]["asked"]
    for number, other in enumerate(everyone):
        differing = [field for field in first if other["asked"][field] != first[field]]
        if differing:
            here, there = (_shown(asked[differing[0]]) for asked in (first, other["asked"]))
            raise InputError.at(
                differing[0], f"must be the same on all ranks; rank 0 has {here}, rank {number} has {there}"
            )
    return [other["has"] for other in everyone]


def join(attach: Callable[[], Attachment | None], group: Group | None, device: torch.device) -> Attachment | None:
    """Rank 0 attaches, all ranks of the group get what it got; None: nothing, or the service is away. A collective.

    Raises the same InputError on all ranks.
    """
    answer: dict[str, object] = {}
    failure: Exception | None = None
    if rank(group) == 0:
        try:
            attachment = attach()
            if attachment is not None:
                answer["attachment"] = attachment.model_dump(mode="json")
        except InputError as error:
            answer["problems"] = [[problem.field, problem.message] for problem in error.problems]
        except UnavailableError as error:
            logger.warning("the planner service is away (%s); training begins without it", error)
        except Exception as error:  # the other ranks wait: tell them first
            failure = error
            answer["problems"] = [["agent", f"failed on rank 0: {error!r}"]]
    answer = broadcast_json(answer, group, device)
    if failure is not None:
        raise failure
    if "problems" in answer:
        raise InputError(*(Problem(*problem) for problem in parse(list[tuple[str, str]], answer["problems"])))
    return parse(Attachment, answer["attachment"]) if "attachment" in answer else None


def run_request(name: str, search: str, plan: str | None, layers: Sequence[HeldLayer]) -> RunRequest:
    """What begins a run for a job with these MoE layers: if they are ours, what they can hold and how they split.

    Raises InputError if the layers differ in that.
    """
    own = [layer.own for layer in layers if layer.own is not None]
    kinds = {(layer.extra_slots_per_rank, layer.shadow_slots_per_rank, layer.token_split) for layer in own}
    if len(kinds) > 1:
        raise InputError.at(
            "model", "has expert-parallel layers of different extra slots, shadow slots or token splits"
        )
    request = RunRequest(name=name, search_id=search, plan_id=plan)
    if not kinds:
        return request
    extra, shadows, split = kinds.pop()
    changes = {"extra_slots_per_rank": extra, "shadow_slots_per_rank": shadows, "token_split": split}
    return request.model_copy(update=changes)


def found_run(
    service: PlannerService,
    name: str,
    search: str | None,
    plan: str | None,
    layers: Sequence[HeldLayer],
    job_ranks: int,
) -> Attachment:
    """Find the run, or begin it from `search`; raises InputError if there is none, or if it is not for this job."""
    new = None if search is None else run_request(name, search, plan, layers)
    found = fitted(service.attach(name, new, plan), layers, plan)
    logger.info("reports to run %r (%s) from window %d on", found.run.name, found.run.id, found.next_index)
    if search is not None and found.run.search_id != search:
        logger.warning(
            "run %r goes on as it was begun, from search %s; a run from search %s needs another name",
            found.run.name,
            found.run.search_id,
            search,
        )
    planned = found.run.context.plan(found.plan_id)
    if planned.num_devices != job_ranks:
        logger.warning(
            "plan %s of run %r is for %d devices, this job runs on %d: gains and costs are priced for the plan's",
            planned.id,
            found.run.name,
            planned.num_devices,
            job_ranks,
        )
    return found


def fitted(found: Attachment, layers: Sequence[HeldLayer], plan: str | None) -> Attachment:
    """The attachment as it holds for a job with these MoE layers, all of its model, which asked for `plan`.

    A job that was restarted on another number of ranks goes on in its run: under the first plan of the shortlist that
    spreads experts over so many. Raises InputError if the run was planned for another model, or has no such plan.
    """
    context, name = found.run.context, found.run.name
    wanted = [context.model.moe(layer).num_experts for layer in context.model.moe_layers]
    has = [layer.num_experts for layer in layers]
    if wanted != has:
        stages = "; on pipeline stages, say which each rank holds: Agent(moe_layers=[…])"
        raise InputError.at(
            "model",
            f"has routers for {_by_layer(has)}, but run {name!r} was planned for {_by_layer(wanted)}"
            + (stages if len(has) < len(wanted) else ""),
        )
    if found.plan_id not in {other.id for other in context.plans}:
        raise InputError.at(
            "plan", f"must be of the run's shortlist ({', '.join(other.id for other in context.plans)})"
        )
    own = layers[0].own
    if own is None:
        return found
    ranks = {other.id: expert_ranks(context.model, other) for other in context.plans}
    mine = own.num_ranks
    if ranks[found.plan_id] == mine:
        return found
    same_size = [plan_id for plan_id, size in ranks.items() if size == mine]
    if plan is not None or not same_size:
        sizes = ", ".join(f"{size or 'unequal'} ({plan_id})" for plan_id, size in ranks.items())
        raise InputError.at(
            "plan",
            f"run {name!r} spreads the experts over {ranks[found.plan_id] or 'unequal numbers of'} ranks, the model "
            f"over {mine}: take a plan of that expert-parallel size; the run's shortlist has {sizes}",
        )
    logger.warning(
        "run %r goes on with experts over %d ranks, not %s: plan %s counts as in force",
        name,
        mine,
        ranks[found.plan_id],
        same_size[0],
    )
    return found.model_copy(update={"plan_id": same_size[0], "placement": None})


def check_decision(decision: Decision, window: Window, context: RunContext) -> None:
    """Raises InputError if a decision about this window cannot be one for this job."""
    if decision.plan_id not in {plan.id for plan in context.plans}:
        raise InputError.at("plan_id", f"{decision.plan_id!r} is not in the run's shortlist")
    if decision.action is not Action.SWITCH_PLAN and decision.plan_id != window.plan_id:
        raise InputError.at("plan_id", f"is {decision.plan_id!r}, but plan {window.plan_id!r} is in force")
    if decision.placement is None:
        return
    wanted, given = [len(row) for row in window.tokens], _num_experts(decision.placement)
    if wanted != given:
        raise InputError.at("placement", f"is for {_by_layer(given)}, the job has {_by_layer(wanted)}")
    now = window.placement
    if decision.action is Action.REBALANCE and now is not None:
        if _slots(decision.placement) != _slots(now):
            shapes = " instead of ".join(
                f"{ranks} ranks with {'/'.join(map(str, sorted(set(slots))))} slots, {shadows} of them for shadows"
                for ranks, shadows, slots in (_slots(decision.placement), _slots(now))
            )
            raise InputError.at("placement", f"has {shapes}")
    elif decision.placement.num_ranks != expert_ranks(context.model, context.plan(decision.plan_id)):
        raise InputError.at("placement.num_ranks", "is not the expert-parallel size of the plan")


def _num_experts(placement: Placement) -> list[int]:
    return [placement.num_experts(layer) for layer in range(len(placement.layers))]


def _slots(placement: Placement) -> tuple[int, int, list[int]]:
    layers = range(len(placement.layers))
    return placement.num_ranks, placement.shadow_slots_per_rank, [placement.slots_per_rank(layer) for layer in layers]


def _by_layer(experts: Sequence[int]) -> str:
    sizes = sorted(set(experts))
    return f"{len(experts)} MoE layers of {' or '.join(map(str, sizes)) or 'no'} experts"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
