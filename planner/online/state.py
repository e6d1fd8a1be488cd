"""What the online stage remembers of a run between two windows, and how a run begins."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from planner.cost import estimate
from planner.cost.migration import expert_ranks
from planner.online.forecast import Forecast
from planner.online.placement.shadows import first_slots
from planner.spec.errors import InputError
from planner.spec.model import Model
from planner.spec.packed import KeptPlacement
from planner.spec.placement import Placement
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.value import Index, NonNegative, Positive, Value


class Stood(Value):
    """What was in force from a step on, as far as windows told."""

    plan_id: str
    placement: KeptPlacement | None
    first_step: Index


class Debit(Value):
    """What a decision took out of the account."""

    cost_s: NonNegative
    placed_step_before: Index | None
    """`RunState.placed_step` when it was decided."""
    transfer_s: NonNegative | None = None
    """What experts were predicted to take on their way, 0 where none is copied; None: another plan, or not known."""

    @model_validator(mode="before")
    @classmethod
    def _without_placement(cls, given: Any) -> Any:
        """Version 0.1 kept what was decided here too; it is what the state says is in force."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in ("plan_id", "placement")}


class Refund(Value):
    """A decision that was not carried out, and what it gave back."""

    plan_id: str
    placement: KeptPlacement | None
    debit: Debit

    @model_validator(mode="before")
    @classmethod
    def _in_one(cls, given: Any) -> Any:
        """Version 0.1 kept all in one."""
        if not isinstance(given, dict) or "debit" in given:
            return given
        return {"plan_id": given.get("plan_id"), "placement": given.get("placement"), "debit": given}


class Pause(Value):
    """What a window said that a change held training up besides its transfer."""

    window: Index
    pause_s: NonNegative


SMOOTHED_BEFORE = {"standstill_s": "standstills", "split_pause_s": "split_pauses"}
"""Fields of version 0.1, one smoothed number each, and what is kept instead."""


class RunState(Value):
    """All that a decision depends on besides the window and the run's context; grows with layers x experts only."""

    plan_id: str
    """The plan in force, or decided last."""
    placement: KeptPlacement | None
    """The placement with it; None where there is none: no experts, or MoE layers of unequal expert-parallel size."""
    since_step: Index = 0
    """The first step under them, as far as windows told; the first that could be, where that is not yet confirmed."""
    earlier: tuple[Stood, ...] = ()
    """What was in force before, one up to the other, the last until `since_step`: as far as the next window may have
    steps under it."""
    balanced_step_time_s: dict[str, Positive] = Field(default_factory=dict)
    """Price of each plan of the shortlist under balanced load, from the first window on: no load makes it faster,
    unless a capacity factor drops tokens."""
    forecast: Forecast | None = None
    placed_step: Index | None = None
    """Step at which the placement in force was decided; None before the first window."""
    account_s: float = 0.0
    """What may be spent on moves: see `planner.online.ledger`."""
    unconfirmed: Debit | None = None
    """The decision of the last window, if it was to move: the next window says whether it is carried out."""
    refunded: Refund | None = None
    """The last decision that was not carried out when the next window came; it may still be, late."""
    declined: tuple[str, ...] = ()
    """Plans that were decided on while this one was in force, and not gone over to: a job that cannot switch by itself
    needs the best of what it can do."""
    standstills: tuple[Pause, ...] = ()
    """What moves held training up besides their transfer, the last ones: see `planner.online.standstill`."""
    split_pauses: tuple[Pause, ...] = ()
    """What new splits of tokens, or new shadow experts, held training up, the last ones."""
    step_ratios: tuple[Positive, ...] = ()
    """What steps of the last windows took, over what they are priced at: see `planner.online.calibration`."""
    last_window: Index | None = None
    """Index of the newest window that was counted."""

    @model_validator(mode="before")
    @classmethod
    def _pauses_one_by_one(cls, given: Any) -> Any:
        """Version 0.1 kept one smoothed number of each kind: it counts as two samples of the last window."""
        if not isinstance(given, dict) or not SMOOTHED_BEFORE.keys() & given.keys():
            return given
        kept = {name: value for name, value in given.items() if name not in SMOOTHED_BEFORE}
        for old, name in SMOOTHED_BEFORE.items():
            if given.get(old) is not None:
                kept[name] = ({"window": given.get("last_window") or 0, "pause_s": given[old]},) * 2
        return kept

    @property
    def standing(self) -> Stood:
        """What is in force, or decided last."""
        return Stood(plan_id=self.plan_id, placement=self.placement, first_step=self.since_step)


def begin(context: RunContext, plan_id: str | None = None) -> RunState:
    """The state before the first window: the plan (None: the first of the shortlist) with its first placement.

    Raises InputError if the shortlist has no such plan, if MoE layers differ in their number of experts, or if the plan
    fits in memory but its extra or shadow slots do not.
    """
    plan = context.plans[0] if plan_id is None else plan_of(context, plan_id, "plan_id")
    _check_extra_slots(context, plan)
    return RunState(plan_id=plan.id, placement=placement_at_start(context, plan))


def _check_extra_slots(context: RunContext, plan: Plan) -> None:
    """Shadow slots first: they are what the run can best do without. Where nothing is extra, nothing is to blame."""
    if not context.model.moe_layers:
        return
    without = context.model_copy(update={"shadow_slots_per_rank": 0})
    kinds = (("shadow_slots_per_rank", context), ("extra_slots_per_rank", without))
    for field, asked in kinds:
        wanted = getattr(asked, field)
        missing = _missing_bytes(asked, plan, field, wanted) if wanted else 0
        if not missing:
            continue
        numbers = range(min(wanted, experts_per_layer(context.model)) + 1)
        too_many = bisect_left(numbers, True, key=lambda number: _missing_bytes(asked, plan, field, number) > 0)
        if too_many > 0:
            raise InputError.at(
                field,
                f"must be at most {too_many - 1} for plan {plan.id}: with {wanted} its fullest stage lacks "
                f"{missing} bytes",
            )


def _missing_bytes(context: RunContext, plan: Plan, field: str, number: int) -> int:
    """Of the fullest stage, or of its host, under balanced load with so many slots of a kind; 0 if it fits."""
    placement = placement_at_start(context.model_copy(update={field: number}), plan)
    found = estimate(context.model, context.cluster, context.training, plan, placement=placement)
    return max(max(stage.missing_bytes, stage.missing_host_bytes) for stage in found.stages)


def plan_of(context: RunContext, plan_id: str, field: str) -> Plan:
    """A plan of the shortlist; raises InputError at `field`."""
    for plan in context.plans:
        if plan.id == plan_id:
            return plan
    raise InputError.at(field, f"the shortlist has no plan {plan_id}; it has {', '.join(p.id for p in context.plans)}")


def experts_per_layer(model: Model) -> int:
    """Experts of each MoE layer; raises InputError where there are none, or where layers differ."""
    numbers = {model.moe(layer).num_experts for layer in model.moe_layers}
    if not numbers:
        raise InputError.at("model", "must have MoE layers; this one has no experts to place")
    if len(numbers) > 1:
        raise InputError.at("model", f"all MoE layers must have the same number of experts, not {sorted(numbers)}")
    return numbers.pop()


def slots_per_rank(num_experts: int, num_ranks: int, extra: int) -> int:
    """An even share and the extra slots; never more than one for each expert."""
    return min(num_experts, -(-num_experts // num_ranks) + extra)


def placement_at_start(context: RunContext, plan: Plan) -> Placement | None:
    """Experts in order, extra slots with replicas of the experts that follow, shadow slots idle.

    None as in `RunState.placement`.
    """
    if not context.model.moe_layers:
        return None
    experts = experts_per_layer(context.model)
    ranks = expert_ranks(context.model, plan)
    if ranks is None:
        return None
    shadows = context.shadow_slots_per_rank
    row = first_slots(experts, ranks, slots_per_rank(experts, ranks, context.extra_slots_per_rank), shadows)
    return placement_of(np.tile(row, (len(context.model.moe_layers), 1)), ranks, shadows)


def placement_of(
    slots: np.ndarray[tuple[int, ...], np.dtype[np.intp]], num_ranks: int, shadow_slots_per_rank: int = 0
) -> Placement:
    """The value for an array [layers, slots]."""
    layers = tuple(map(tuple, slots.tolist()))
    return Placement(layers=layers, num_ranks=num_ranks, shadow_slots_per_rank=shadow_slots_per_rank)
