"""From what the layers of each stage take to the seconds of a step, under one load of the experts or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost.balance import Floats
from planner.cost.load import ExpertLoads, Seats, expert_loads
from planner.cost.numbers import Numbers, are_many
from planner.cost.pipeline import Pace, head_in_flight, in_flight, step_s
from planner.cost.prepared import Prepared, StageParts
from planner.cost.work import Work
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Placement
from planner.spec.plan import Plan
from planner.spec.training import Training
from planner.spec.workload import Workload

Condition = tuple[Workload, Placement | None]


class Bill(NamedTuple):
    """One stage: what its layers and boundaries cost, summed; numbers, or arrays with one for each of many loads."""

    forward: tuple[Numbers, ...]
    backward: tuple[Numbers, ...]
    once_communication_s: Numbers
    optimizer_s: Numbers
    boundary_s: float
    """Both passes' messages between stages."""
    transition_s: float
    pace: Pace
    memory: dict[str, Numbers]
    host_bytes: Numbers


class Steps(NamedTuple):
    """Predicted steps, [loads]."""

    seconds: Floats
    fits: NDArray[np.bool_]
    """Whether every stage has the memory for it."""


class StepPrices:
    """Steps of one plan under many loads and placements, as `estimate` prices each of them.

    What does not depend on them is priced once, when this is made.
    """

    def __init__(self, model: Model, cluster: AnyCluster, training: Training, plan: Plan) -> None:
        """Raises InputError if the values do not match each other."""
        self._prepared = Prepared(model, cluster, training, plan)

    def under(self, conditions: Sequence[tuple[ArrayLike, Placement | Seats | None]]) -> Steps:
        """Price pairs of shares and placement; shares are [MoE layers, experts], or one row for all of them.

        Placements hold for the plan's expert-parallel ranks; None: experts in order. Raises InputError if shares or
        placement do not match model or plan.
        """
        if not conditions:
            return Steps(np.zeros(0), np.zeros(0, dtype=np.bool_))
        return self.of_loads(expert_loads(self._prepared.sizes, conditions, self._prepared.training.capacity_factor))

    def of_loads(self, loads: ExpertLoads) -> Steps:
        """The same where it is known what the placements make of the shares."""
        made, count = bills(self._prepared, loads), len(loads.load_ratio)
        seconds = np.broadcast_to(np.asarray(whole_step_s(self._prepared, made), dtype=np.float64), count)
        fits = np.ones(count, dtype=np.bool_)
        for bill, parts in zip(made, self._prepared.stages, strict=True):
            group = self._prepared.cluster.group_of(parts.stage.first_device, parts.stage.num_devices)
            host_bytes = group.device.host.memory_bytes if group.device.host else 0
            fits &= (sum(bill.memory.values()) <= group.usable_bytes) & (bill.host_bytes <= host_bytes)
        return Steps(seconds, fits)


def bills(prepared: Prepared, loads: ExpertLoads) -> list[Bill]:
    """What each stage costs; numbers for one load, arrays for more."""
    works = prepared.works(loads)
    return [
        _bill(prepared, number, parts, work)
        for number, (parts, work) in enumerate(zip(prepared.stages, works, strict=True))
    ]


def bills_under(prepared: Prepared, pairs: Sequence[Condition]) -> list[Bill]:
    """The same under each workload and placement; raises InputError where these do not match model or plan."""
    conditions = [(workload.expert_shares or None, placement) for workload, placement in pairs]
    return bills(prepared, expert_loads(prepared.sizes, conditions, prepared.training.capacity_factor))


def bill_of(bill: Bill, load: int) -> Bill:
    """Of many loads, the bill under one."""

    def one(number: Numbers) -> Numbers:
        return number[load].item() if are_many(number) else number

    return Bill(
        forward=tuple(map(one, bill.forward)),
        backward=tuple(map(one, bill.backward)),
        once_communication_s=one(bill.once_communication_s),
        optimizer_s=one(bill.optimizer_s),
        boundary_s=bill.boundary_s,
        transition_s=bill.transition_s,
        pace=Pace._make(map(one, bill.pace)),
        memory={name: one(number) for name, number in bill.memory.items()},
        host_bytes=one(bill.host_bytes),
    )


def whole_step_s(prepared: Prepared, made: Sequence[Bill]) -> Numbers:
    """Seconds of a step whose stages cost this."""
    plan = prepared.plan
    return step_s(plan.schedule, [bill.pace for bill in made], plan.num_micro_batches) + host_s(prepared.cluster)


def host_s(cluster: AnyCluster) -> float:
    """What a step waits for its host, whatever it does."""
    return max(group.stack.step_host_s for group in cluster.groups)


def _bill(prepared: Prepared, number: int, parts: StageParts, work: Work) -> Bill:
    plan, stage, entries = prepared.plan, parts.stage, parts.entries
    flight = in_flight(plan.schedule, len(plan.stages), plan.num_micro_batches, number)
    # Only the head has logits; its backward pass follows its forward pass at once, unless the schedule parts them.
    heads = head_in_flight(plan.schedule, plan.num_micro_batches)
    boundary_s = sum(found.pass_s for found in entries)
    kept_bytes = work.kept_bytes + sum(found.carried_bytes for found in entries)
    forward_s, backward_s = boundary_s + work.moves[0], boundary_s + work.moves[1]
    once_communication_s = work.once_communication_s + parts.tied_s
    return Bill(
        forward=work.forward,
        backward=work.backward,
        once_communication_s=once_communication_s,
        optimizer_s=work.optimizer_s,
        boundary_s=2.0 * boundary_s,
        transition_s=work.transition_s,
        pace=Pace(
            work.pass_s[0] + forward_s,
            work.pass_s[1] + backward_s,
            once_communication_s + work.optimizer_s,
            work.weight_gradient_s,
        ),
        memory={
            **work.held_bytes,
            "activations": -(-flight.numerator * kept_bytes // flight.denominator) + heads * work.head_bytes,
            "logits": heads * work.logits_bytes,
            "workspace": work.workspace_bytes,
            "buffers": sum(found.buffer_bytes for found in entries),
            "reserve": prepared.cluster.group_of(stage.first_device, stage.num_devices).reserve_bytes,
        },
        host_bytes=work.host_bytes,
    )
