"""Courses of policies that see a window only after it is over: ours, and those of others."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from planner.cost.balance import Floats, Indices
from planner.cost.migration import rank_devices
from planner.cost.parameters import expert_parameters
from planner.cost.state import weight_bytes
from planner.online.placement.assign import align_slots
from planner.online.placement.copies import copies_between
from planner.online.policy import decide_at
from planner.online.pricing import placement_from
from planner.online.recorded.course import Change, Course, Game, Progress, Standing
from planner.online.recorded.rivals import (
    ShadowCosts,
    balanced_replicas,
    greedy_exchange,
    on_all_ranks,
    shadowed_experts,
)
from planner.online.state import begin, placement_at_start, placement_of, plan_of
from planner.spec.decision import Action
from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.plan import Plan
from planner.spec.run import RunContext

Rule = Callable[[Floats, Indices], Indices]
"""From the loads [L, E] of a window that is over and the slots [L, S] in force to the slots from now on."""


def trimtab(game: Game, progress: Progress) -> Course:
    """`planner.online.policy.decide`."""
    context = game.context
    state = begin(context)
    standings: list[Standing] = []
    changes = []
    for index in range(len(game.windows)):
        plan = plan_of(context, state.plan_id, "plan_id")
        standings.append(Standing(plan, state.placement, context.token_split))
        placed_anew = index > 0 and standings[-1] != standings[-2]
        window = game.seen(index, placed_anew)
        decision, state = decide_at(game.pricing, window, state)
        game.heard(window, decision)
        if decision.action is not Action.KEEP:
            changes.append(Change(len(decision.moves), decision.cost_s))
        progress((index + 1) / len(game.windows))
    return Course(tuple(standings), tuple(changes), is_late=True)


def smartmoe(game: Game, progress: Progress) -> Course:
    """`planner.online.recorded.rivals.smartmoe` after every window; without replicas."""
    context = game.context.model_copy(update={"extra_slots_per_rank": 0, "shadow_slots_per_rank": 0})
    ranks = _first(context).num_ranks
    return _by_rule(game, context, lambda loads, slots: greedy_exchange(loads, ranks, slots), progress)


def eplb(game: Game, progress: Progress) -> Course:
    """`planner.online.recorded.rivals.eplb` after every window; without shadow slots."""
    context = game.context.model_copy(update={"shadow_slots_per_rank": 0})
    start = _first(context)
    ranks, each = start.num_ranks, start.slots_per_rank(0)
    return _by_rule(game, context, lambda loads, slots: balanced_replicas(loads, ranks, each), progress)


def fastermoe(game: Game, progress: Progress) -> Course:
    """`rivals.fastermoe`: shadows for the mean step of each window itself; no slots but for these.

    The rule decides in a step when that step's counts are known, so it is not late as all others are: exact where
    windows are single samples. It takes as many shadow slots as it wants.
    """
    context = game.context.model_copy(update={"extra_slots_per_rank": 0, "shadow_slots_per_rank": 0})
    start, plan = _first(context), context.plans[0]
    slots, costs = np.array(start.layers), _shadow_costs(context, plan)
    standings = [Standing(plan, start)]
    for index, samples in enumerate(game.windows):
        shares = np.average(game.loads.served[samples.start : samples.stop], axis=0)
        tokens = shares * _tokens_per_group(context, start.num_ranks)
        chosen = shadowed_experts(tokens, slots, start.num_ranks, costs)
        placement = placement_from(on_all_ranks(chosen, slots, start.num_ranks)) if chosen.any() else start
        standings.append(Standing(plan, placement))
        progress((index + 1) / len(game.windows))
    changes = [Change(0, 0.0) for before, after in pairwise(standings) if before != after]
    return Course(tuple(standings[1:]), tuple(changes))


def _tokens_per_group(context: RunContext, num_ranks: int) -> float:
    """Copies of tokens that the ranks of one expert-parallel group share in a step, in each MoE layer."""
    plan, model = context.plans[0], context.model
    groups = context.cluster.num_devices // num_ranks
    return plan.global_batch_size * plan.sequence_length * model.moe(model.moe_layers[0]).top_k / groups


def _shadow_costs(context: RunContext, plan: Plan) -> ShadowCosts:
    """From the devices of the first MoE layer's stage and the slowest link that its ranks cross."""
    model, training, layer = context.model, context.training, context.model.moe_layers[0]
    stage, experts = next(
        (stage, strategy.experts)
        for stage in plan.stages
        for number, strategy in stage.strategies()
        if number == layer and strategy.experts is not None
    )
    group = context.cluster.group_of(stage.first_device, stage.num_devices)
    peak = group.device.peak(training.precision)
    if peak is None:
        raise InputError.at("training.precision", f"{group.device.name} has no {training.precision} units")
    devices = rank_devices(stage, experts)[:, 0]
    link = context.cluster.link_between(int(devices[0]), int(devices[-1]))
    parameters = expert_parameters(model.moe(layer), model.width(layer))
    return ShadowCosts(
        compute_s=2.0 * parameters / (peak * group.device.efficiency.matmul_ratio),
        token_s=model.width(layer) * weight_bytes(training) / link.bytes_per_s,
        weights_s=parameters * weight_bytes(training) / link.bytes_per_s,
    )


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
    return Course(tuple(standings), tuple(changes), is_late=True)


def _first(context: RunContext) -> Placement:
    placement = placement_at_start(context, context.plans[0])
    if placement is None:
        raise InputError.at("policy", "rules of others need MoE layers of one expert-parallel size")
    return placement
