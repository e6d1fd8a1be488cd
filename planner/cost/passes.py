"""The price of a plan by stage and pass, in named parts: what `estimate` sums up, for whoever draws a step.

It knows seconds of one micro-batch and of work once per step; when a pass happens, planner.cost.timeline knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from planner.cost.layer import PASS_PARTS
from planner.cost.pipeline import Pace
from planner.cost.prepared import Prepared, StageParts
from planner.cost.step import Bill, bills_under, host_s
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Placement
from planner.spec.plan import Plan, ScheduleKind
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload


class StagePasses(NamedTuple):
    """One stage; parts by the names of the estimate, in seconds, those of no time left out."""

    forward: Mapping[str, float]
    """One micro-batch through all pieces of the stage, without messages between stages."""
    backward: Mapping[str, float]
    put_off_s: float
    """Of the backward pass' compute, gradients of weights that the schedule puts off."""
    entries_s: tuple[float, ...]
    """[pieces]: an activation on its way into the piece, and its gradient on the way back; 0 into the model's first."""
    once: Mapping[str, float]
    """Once per step, after the last pass, in this order."""

    @property
    def pieces(self) -> list[Pace]:
        """Each piece takes an equal part of the stage's work, and the messages of its own entry."""
        count = len(self.entries_s)
        work = [sum(parts.values()) / count for parts in (self.forward, self.backward)]
        return [Pace(work[0] + entry, work[1] + entry, 0.0, self.put_off_s / count) for entry in self.entries_s]

    @property
    def pace(self) -> Pace:
        """What the closed forms of pipelines are told of the stage."""
        forward_s, backward_s, _, put_off_s = (sum(column) for column in zip(*self.pieces, strict=True))
        return Pace(forward_s, backward_s, sum(self.once.values()), put_off_s)


class StepPasses(NamedTuple):
    """All stages in order, and what every step waits for its host besides."""

    stages: tuple[StagePasses, ...]
    host_s: float


def step_passes(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workload: Workload = BALANCED,
    placement: Placement | None = None,
) -> StepPasses:
    """What `estimate` makes the step of; raises InputError as it does."""
    prepared = Prepared(model, cluster, training, plan)
    made = bills_under(prepared, [(workload, placement)])
    puts_off = plan.schedule.kind is ScheduleKind.ZERO_BUBBLE
    stages = tuple(_stage(bill, parts, puts_off) for bill, parts in zip(made, prepared.stages, strict=True))
    return StepPasses(stages, host_s(cluster))


def _stage(bill: Bill, parts: StageParts, puts_off: bool) -> StagePasses:
    layout_s = [sum(column) for column in zip(*parts.moves, strict=True)] or [0.0, 0.0]
    passes = [
        _lasting({**dict(zip(PASS_PARTS, map(float, seconds), strict=True)), "layout_change": change_s})
        for seconds, change_s in zip((bill.forward, bill.backward), layout_s, strict=True)
    ]
    once = {"data_parallel_communication": float(bill.once_communication_s), "optimizer": float(bill.optimizer_s)}
    return StagePasses(
        forward=passes[0],
        backward=passes[1],
        put_off_s=float(bill.pace.weight_gradient_s) if puts_off else 0.0,
        entries_s=tuple(found.pass_s for found in parts.entries),
        once=_lasting(once),
    )


def _lasting(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds for name, seconds in parts.items() if seconds > 0}
