"""Courses of policies that see a window only after it is over: ours, and those of others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.cost.balance import Floats, Indices
from planner.online.assign import align_slots
from planner.online.copies import copies_between
from planner.online.course import Change, Course, Game, Progress, Standing
from planner.online.policy import decide_at
from planner.online.rivals import balanced_replicas, greedy_exchange
from planner.online.state import begin, placement_at_start, placement_of, plan_of
from planner.spec.decision import Action
from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.run import RunContext

Rule = Callable[[Floats, Indices], Indices]
"""From the loads [L, E] of a window that is over and the slots [L, S] in force to the slots from now on."""


def trimtab(game: Game, progress: Progress) -> Course:
    """`planner.online.policy.decide`."""
    context = game.context
    state = begin(context)
    standings, changes = [], []
    for index, samples in enumerate(game.windows):
        plan = plan_of(context, state.plan_id, "plan_id")
        standings.append(Standing(plan, state.placement, context.token_split))
        decision, state = decide_at(game.pricing, game.trace.window(index, samples), state)
        if decision.action is not Action.KEEP:
            changes.append(Change(len(decision.moves), decision.cost_s))
        progress((index + 1) / len(game.windows))
    return Course(tuple(standings), tuple(changes))


def smartmoe(game: Game, progress: Progress) -> Course:
    """`planner.online.rivals.smartmoe` after every window; without replicas."""
    context = game.context.model_copy(update={"extra_slots_per_rank": 0, "shadow_slots_per_rank": 0})
    ranks = _first(context).num_ranks
    return _by_rule(game, context, lambda loads, slots: greedy_exchange(loads, ranks, slots), progress)


def eplb(game: Game, progress: Progress) -> Course:
    """`planner.online.rivals.eplb` after every window; without shadow slots."""
    context = game.context.model_copy(update={"shadow_slots_per_rank": 0})
    start = _first(context)
    ranks, each = start.num_ranks, start.slots_per_rank(0)
    return _by_rule(game, context, lambda loads, slots: balanced_replicas(loads, ranks, each), progress)


def _by_rule(game: Game, context: RunContext, rule: Rule, progress: Progress) -> Course:
    """A rule that looks at the last window only; experts that stay on their ranks keep their slots there."""
    plan = context.plans[0]
    placement = _first(context)
    standings, changes = [], []
    for index, samples in enumerate(game.windows):
        standings.append(Standing(plan, placement))
        counts = np.array(game.trace.window(index, samples).tokens, dtype=np.float64)
        current = np.array(placement.layers)
        slots = align_slots(rule(counts, current), current, placement.num_ranks)
        copies = copies_between(current, slots, placement.num_ranks)
        if len(copies.layer):
            changes.append(Change(len(copies.layer), game.pricing.migration_s(plan, copies.copied)))
            placement = placement_of(slots, placement.num_ranks)
        progress((index + 1) / len(game.windows))
    return Course(tuple(standings), tuple(changes))


def _first(context: RunContext) -> Placement:
    placement = placement_at_start(context, context.plans[0])
    if placement is None:
        raise InputError.at("policy", "rules of others need MoE layers of one expert-parallel size")
    return placement
