"""A found plan beside others: why it is as it is, and how it differs from one of them."""

from __future__ import annotations

from api.search_store import Found
from planner.cost import estimate
from planner.spec.errors import InputError
from planner.spec.estimate import Estimate
from planner.spec.explanation import Explanation, PlanDiff
from planner.spec.plan import Plan
from planner.spec.shortlist import CertificateStatus
from planner.view import Rival, explain, plan_diff


def explanation_of(found: Found) -> Explanation:
    """The best plan of a search beside the runner-up, any other beside the best."""
    plans = found.shortlist.plans
    is_best = found.entry.rank == 1
    rivals = [Rival(plan.plan) for plan in plans[1:2]] if is_best else [Rival(plans[0].plan, "the best plan")]
    optimal = is_best and found.shortlist.certificate.status is CertificateStatus.OPTIMAL
    rival = next(iter(rivals), None)
    return explain(found.model, found.cluster, found.training, found.entry.plan, rival, optimal)


def diff_of(found: Found, other: Found, *, as_asked: bool) -> PlanDiff:
    """Both plans for one model side by side; `as_asked`: the second as its own search was asked.

    Raises InputError at `path.other_plan_id` for a plan of another model.
    """
    first = found.entry.plan
    price = estimate(found.model, found.cluster, found.training, first)
    return plan_diff(found.model, (first, price), _beside(found, other, as_asked=as_asked))


def _beside(found: Found, other: Found, *, as_asked: bool) -> tuple[Plan, Estimate]:
    """The other plan and its price, under the conditions of the first one as far as it is for these."""
    plan, training, cluster = other.entry.plan, other.training, other.cluster
    if other.model != found.model:
        message = f"is a plan for {other.model.name}; it must be one for {found.model.name}, as the first"
        raise InputError.at("path.other_plan_id", message)
    if not as_asked and plan.num_devices == found.cluster.num_devices:
        cluster, recipe = found.cluster, found.training
        same_batch = recipe.global_batch_size in ("max", plan.global_batch_size)
        training = recipe if same_batch and recipe.sequence_length == plan.sequence_length else training
    return plan, estimate(found.model, cluster, training, plan)
