"""A training job as planner, service and agent see it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Placement, TokenSplit
from planner.spec.plan import Plan
from planner.spec.training import Training
from planner.spec.value import Index, Name, Value


class RunContext(Value):
    """All that a decision may depend on besides windows: given to the agent too, so that it can decide alone."""

    model: Model
    cluster: AnyCluster
    training: Training
    plans: Annotated[tuple[Plan, ...], Field(min_length=1)]
    """The shortlist; the run begins with the first."""
    extra_slots_per_rank: Index = 0
    """Physical expert slots of each rank beyond an even share, for replicas."""
    shadow_slots_per_rank: Index = 0
    """Slots of each rank for shadow experts, besides."""
    token_split: TokenSplit = TokenSplit.EVEN
    """What the job can do with replicas."""

    @model_validator(mode="after")
    def _plans_differ(self) -> RunContext:
        if len({plan.id for plan in self.plans}) != len(self.plans):
            raise ValueError("plans: each may stand once")
        return self

    def plan(self, plan_id: str) -> Plan:
        """A plan of the shortlist; raises KeyError."""
        return {plan.id: plan for plan in self.plans}[plan_id]


class Run(Value):
    """A training job that an agent reports from, as it began."""

    id: Name
    name: Name
    search_id: Name
    created_at: datetime
    plan_id: str
    placement: Placement | None
    """First placement; None for a model without experts."""
    context: RunContext


class RunRequest(Value):
    """The body that begins a run."""

    name: Name
    search_id: Name
    plan_id: str | None = None
    """A plan of the search's shortlist; None: its first."""
    extra_slots_per_rank: Index = 0
    shadow_slots_per_rank: Index = 0
    token_split: TokenSplit = TokenSplit.EVEN
