"""What commands about given plans are asked: model and cluster, and a recipe where the options hold one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api.commands.options import read_model_and_cluster, read_plan, read_plans, training_from, training_of
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.training import Training


@dataclass(frozen=True)
class Asked:
    """What the arguments name."""

    model: Model
    cluster: AnyCluster
    given: Training | None
    """The recipe, where the options say batch or sequence length; else each plan has its own."""
    recipe: Mapping[str, object]
    """What plans do not say of a recipe."""

    def plan(self, text: str) -> Plan:
        """The plan that an argument names; raises InputError."""
        return read_plan(text, self.model, self.cluster, self.given)

    def plans(self, text: str) -> tuple[Plan, ...]:
        """The plans that an argument names, the best first; raises InputError."""
        return read_plans(text, self.model, self.cluster, self.given)

    def training(self, plan: Plan) -> Training:
        """The recipe for a plan."""
        return self.given or training_of(plan, **self.recipe)


def asked(
    names: tuple[str, str],
    limits: tuple[str | None, str | None],
    size: tuple[str | None, int | None],
    target: str | None = None,
    **recipe: object,
) -> Asked:
    """From `names` of model and cluster, memory limit and stack, batch and sequence length; raises InputError.

    Without a stack it is that of the target.
    """
    model, cluster = read_model_and_cluster(*names, *limits, target)
    given = training_from(size[0], size[1], **recipe) if any(part is not None for part in size) else None
    return Asked(model, cluster, given, recipe)
