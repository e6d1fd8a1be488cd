"""Why a plan is as it is: every plan one step away is priced, and what binds each stage follows from that.

explain() reads: price the plan; price its neighbours; say what binds each stage; set the rival beside it.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.cost import estimate
from planner.cost.rules import Broken
from planner.spec.errors import InputError
from planner.spec.estimate import Estimate
from planner.spec.explanation import Explanation, Neighbour, PlanDiff, RefusedNeighbour
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.training import Training
from planner.view.binding import explain_stages
from planner.view.diff import change_s, largest_change, plan_diff, time_changes
from planner.view.neighbours import neighbours
from planner.view.sentences import plan_reasons


class Rival(NamedTuple):
    """A plan to compare with, and what sentences call it."""

    plan: Plan
    name: str = "the runner-up"


def explain(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    rival: Rival | None = None,
    best_of_space: bool = False,
) -> Explanation:
    """The plan, explained for balanced load, beside its rival or else its best neighbour that fits.

    `best_of_space` says that a search has proved the plan the fastest of its space, so that what is faster lies outside
    of it. Raises InputError if the plan does not match model, cluster and training.
    """
    price = estimate(model, cluster, training, plan)
    steps = neighbours(model, training, plan)
    outcomes = [_outcome(model, cluster, training, price, step.change, step.result) for step in steps]
    priced = tuple(sorted((each for each in outcomes if isinstance(each, Neighbour)), key=_order))
    return Explanation(
        plan=plan,
        estimate=price,
        reasons=plan_reasons(price, priced, best_of_space),
        stages=explain_stages(model, plan, price, priced),
        neighbours=priced,
        refused=tuple(each for each in outcomes if isinstance(each, RefusedNeighbour)),
        rival=_beside(model, cluster, training, (plan, price), rival, priced),
    )


def _order(neighbour: Neighbour) -> tuple[bool, float, str]:
    return (neighbour.missing_bytes > 0, neighbour.estimate.step_time_s, neighbour.change)


def _outcome(
    model: Model, cluster: AnyCluster, training: Training, price: Estimate, change: str, result: Plan | Broken
) -> Neighbour | RefusedNeighbour:
    if isinstance(result, Broken):
        return RefusedNeighbour(change=change, rule=result.rule, message=result.message)
    try:
        made = estimate(model, cluster, training, result)
    except InputError as error:
        return RefusedNeighbour(change=change, rule="valid-plan", message=str(error.problems[0]))
    more_s = change_s(price.step_time_s, made.step_time_s)
    return Neighbour(
        change=change,
        plan=result,
        estimate=made,
        step_time_change_s=more_s,
        step_time_change_ratio=more_s / price.step_time_s,
        missing_bytes=max(stage.missing_bytes + stage.missing_host_bytes for stage in made.stages),
        largest_change=largest_change(time_changes(price, made), more_s),
    )


def _beside(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    explained: tuple[Plan, Estimate],
    rival: Rival | None,
    priced: tuple[Neighbour, ...],
) -> PlanDiff | None:
    """The plan beside its rival, or else beside its best neighbour that fits."""
    if rival is not None:
        other = (rival.plan, estimate(model, cluster, training, rival.plan))
        return plan_diff(model, explained, other, ("this plan", rival.name))
    nearest = next((each for each in priced if not each.missing_bytes), None)
    if nearest is None:
        return None
    names = ("this plan", f"its best neighbour ({nearest.change})")
    return plan_diff(model, explained, (nearest.plan, nearest.estimate), names)
