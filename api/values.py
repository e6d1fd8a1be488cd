"""What the store keeps and the service shows beside the planner's own values: searches, and pages of things."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import Field, computed_field

from api.problems import ProblemDocument
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.request import AnyClusterRequest, ModelRequest, Options, SearchRequest
from planner.spec.training import Training
from planner.spec.value import Count, Name, StrEnum, Value
from planner.spec.workload import BALANCED, Workload

T = TypeVar("T")


class SearchState(StrEnum):
    """`queued` and `running` go on by themselves; the other three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing happens after this."""
        return self not in (SearchState.QUEUED, SearchState.RUNNING)


class SearchLinks(Value):
    """Where to go from a search; what is not there yet is null."""

    self: str
    events: str
    shortlist: str | None = None
    best_plan: str | None = None
    best_plan_picture: str | None = None
    best_plan_explanation: str | None = None
    best_plan_timeline: str | None = None
    shortlist_picture: str | None = None


class Search(Value):
    """One search as a client sees it."""

    id: Name
    state: SearchState
    progress: Annotated[float, Field(ge=0, le=1)]
    message: str
    """What it does at the moment, or how it ended."""
    error: ProblemDocument | None = None
    """Why it failed."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    best_plan_id: str | None = None
    """First plan of the shortlist."""
    best_plan_summary: str | None = None
    best_step_time_s: float | None = None
    """Predicted for balanced load."""
    request: SearchRequest

    @computed_field  # type: ignore[prop-decorator]
    @property
    def links(self) -> SearchLinks:
        """Paths on this service."""
        own, plan = f"/v1/searches/{self.id}", f"/v1/plans/{self.best_plan_id}"
        events = f"{own}/events"
        if self.best_plan_id is None:
            return SearchLinks(self=own, events=events)
        return SearchLinks(
            self=own,
            events=events,
            shortlist=f"{own}/shortlist",
            best_plan=plan,
            best_plan_picture=f"{plan}/picture",
            best_plan_explanation=f"{plan}/explanation",
            best_plan_timeline=f"{plan}/timeline",
            shortlist_picture=f"{own}/shortlist/picture",
        )


class SearchJob(Value):
    """What a worker needs to do a search: everything resolved, nothing to look up."""

    id: Name
    model: Model
    cluster: AnyCluster
    training: Training
    options: Options


class Page(Value, Generic[T]):
    """Part of a list, newest first where nothing else is said."""

    items: tuple[T, ...]
    next: str | None = None
    """Path of the next part; null at the end."""


class PresetList(Value):
    """Names of presets."""

    items: tuple[str, ...]


class ProfileEntry(Value):
    """A measured profile in a list."""

    name: Name
    """What a cluster's `device` takes."""
    tag: Name
    """Hash of its content, as ETag has it."""
    changed_at: datetime
    device: Name
    """As the machine calls it."""
    devices_per_node: Count
    """Devices of a node that were measured together."""
    measured_on: Name
    """Date of the measurement."""


class WhatIfRequest(Value):
    """Other conditions for a plan; what is left out is as in the plan's search."""

    workload: Workload = BALANCED
    cluster: AnyClusterRequest | None = None
    training: Training | None = None


class Health(Value):
    """The service lives."""

    status: str
    version: str


class EstimateRequest(Value):
    """A plan, whoever made it, with all that its price depends on."""

    model: ModelRequest
    cluster: AnyClusterRequest
    training: Training
    plan: Plan
    workload: Workload = BALANCED
