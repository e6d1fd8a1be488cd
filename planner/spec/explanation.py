"""Why a plan is as it is: what holds each stage back, what the plans one step away would take, how two plans differ."""

from __future__ import annotations

from planner.spec.estimate import Estimate
from planner.spec.plan import Plan
from planner.spec.value import Index, Name, NonNegative, Positive, StrEnum, Value


class Difference(Value):
    """One choice that two plans make differently, in words."""

    choice: Name
    first: str
    second: str


class TimeChange(Value):
    """One named part of the time of a step, under two plans."""

    part: Name
    first_s: NonNegative
    second_s: NonNegative

    @property
    def change_s(self) -> float:
        """What the second takes more."""
        return self.second_s - self.first_s


class MemoryChange(Value):
    """One named part of the memory of a device, under two plans."""

    part: Name
    first_bytes: Index
    second_bytes: Index

    @property
    def change_bytes(self) -> int:
        """What the second needs more."""
        return self.second_bytes - self.first_bytes


class PlanDiff(Value):
    """Two plans side by side. Where batches differ, seconds of the second are for as many tokens as of the first."""

    first_plan_id: Name
    second_plan_id: Name
    differences: tuple[Difference, ...]
    second_steps: Positive
    """Steps of the second plan that train as many tokens as one of the first; its seconds are multiplied by it."""
    first_step_time_s: Positive
    second_step_time_s: Positive
    step_time_change_ratio: float
    """What the second takes more, over the first."""
    time: tuple[TimeChange, ...]
    """All parts that either plan has; they sum to the step times."""
    first_fullest_stage: Index
    second_fullest_stage: Index
    memory: tuple[MemoryChange, ...]
    """Of the stage of each plan that has least memory free; all parts that either has."""
    first_missing_bytes: Index
    """What that stage lacks; 0 if the plan fits."""
    second_missing_bytes: Index
    reason: str
    """Which is faster, and why."""

    @property
    def step_time_change_s(self) -> float:
        """What the second takes more for as many tokens."""
        return self.second_step_time_s - self.first_step_time_s


class Constraint(StrEnum):
    """What keeps a stage from doing better.

    `memory`: it lacks memory, or has no room for one more of its layers, or a plan one step away would be faster but
    lacks memory, most of it on this stage. `time`: no stage takes longer for a micro-batch.
    """

    MEMORY = "memory"
    TIME = "time"


class StageExplanation(Value):
    """What binds one stage; nothing binds a stage that has memory free and waits for a slower one."""

    stage: Index
    binding: tuple[Constraint, ...]
    free_bytes: int
    """Below the limit; negative if the stage lacks memory."""
    layer_bytes: Index
    """What an average layer of the stage takes."""
    largest_part: Name
    """Of its memory."""
    largest_part_bytes: Index
    in_flight: NonNegative
    """Micro-batches whose activations it holds at the peak."""
    wait_s: NonNegative
    """In a step, what the slowest stage works more on its micro-batches than this one."""
    blocked: str | None = None
    """Of the plans one step away that are faster but lack memory, most of it on this stage, the fastest."""
    relief: str | None = None
    """Where memory binds: of the plans one step away that need less of it here and fit, the fastest."""
    reason: str
    """What binds it, what would have to give, and what is particular to it, in words."""


class Neighbour(Value):
    """A plan one step away, with its price."""

    change: Name
    """What is different, such as `tp 8 → 4, dp 1 → 2`."""
    plan: Plan
    estimate: Estimate
    step_time_change_s: float
    """What it takes more."""
    step_time_change_ratio: float
    missing_bytes: Index
    """What its fullest stage lacks; 0 if it fits."""
    largest_change: TimeChange | None
    """The part of the time that grew most, or in a faster plan shrank most; None if no part changes."""


class RefusedNeighbour(Value):
    """A step that leads to no plan."""

    change: Name
    rule: Name
    message: str


class Explanation(Value):
    """One plan, explained."""

    plan: Plan
    estimate: Estimate
    reasons: tuple[str, ...]
    """Where the time goes, what holds the plan back, and how its neighbours compare; a sentence each."""
    stages: tuple[StageExplanation, ...]
    neighbours: tuple[Neighbour, ...]
    """Those that fit first, the fastest first."""
    refused: tuple[RefusedNeighbour, ...]
    rival: PlanDiff | None
    """This plan beside the runner-up of its search, beside the best if it is not that itself, and without a search
    beside its best neighbour that fits; None if there is no such plan."""
