"""Do model, plan and estimate belong together? Every mismatch is an InputError."""

from __future__ import annotations

from planner.spec.errors import InputError
from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan


def check_model(model: Model, plan: Plan) -> None:
    """Raise InputError if the plan cannot be of this model."""
    if plan.num_layers != len(model.layers):
        raise InputError.at("plan.stages", f"must hold the model's {len(model.layers)} layers, hold {plan.num_layers}")


def check_estimate(plan: Plan, estimate: Estimate) -> None:
    """Raise InputError if the estimate is not of this plan."""
    if estimate.plan_id != plan.id:
        raise InputError.at("estimate.plan_id", f"must be that of the plan, {plan.id}, is {estimate.plan_id}")
    if len(plan.stages) != len(estimate.stages):
        raise InputError.at(
            "estimate.stages", f"must describe the plan's {len(plan.stages)} stages, describes {len(estimate.stages)}"
        )
