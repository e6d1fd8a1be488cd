"""Pipeline schedules: the time of a step from the times of its stages, and how many micro-batches are in flight.

`Pace` is what one stage takes for one micro-batch; the slowest sets the rhythm, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from planner.spec.plan import Schedule, ScheduleKind


class Pace(NamedTuple):
    """One stage."""

    forward_s: float
    """Forward pass of one micro-batch through all pieces of the stage."""
    backward_s: float
    once_s: float
    """Work once per step."""
    weight_gradient_s: float = 0.0
    """Of `backward_s`, what only the weights wait for, so that it may be put off."""


def rhythm(schedule: Schedule, pace: Pace) -> tuple[float, ...]:
    """The times whose largest over the stages set the rhythm: 1F1B alternates both passes, GPipe ends one first."""
    if schedule.kind is ScheduleKind.GPIPE:
        return (pace.forward_s, pace.backward_s)
    return (pace.forward_s + pace.backward_s,)


def step_s(schedule: Schedule, paces: Sequence[Pace], num_micro_batches: int) -> float:
    """Seconds of a step: (m - 1/v) x slowest stage + all stages / v + longest work once per step.

    With equal stages this is (m + (p-1)/v) t (Narayanan et al. 2021, arXiv 2104.04473, section 2.2), and for GPipe it
    is exact with any stages. Under 1F1B with unequal stages the slowest works without pause while the pipe fills
    before it and drains behind it; what lies downstream of it is hidden in part. So the true time is shorter by at
    most the stages after the slowest, and not at all when that is the last. It is never longer where every stage's
    backward takes the same multiple of its forward, nor was it found longer where these multiples lie between 2 and 3
    (no or full recomputation); where they differ more, few micro-batches can take some percent longer.
    Measured: by simulation, tests/cost/test_pipeline_schedules.py.
    """
    beats = [rhythm(schedule, pace) for pace in paces]
    filling = sum(sum(beat) for beat in beats) / schedule.virtual_stages
    steady = num_micro_batches - 1.0 / schedule.virtual_stages
    slowest: float = sum(max(column) for column in zip(*beats, strict=True))
    return steady * slowest + filling + max(pace.once_s for pace in paces)


def in_flight(schedule: Schedule, num_stages: int, num_micro_batches: int, stage: int) -> Fraction:
    """Micro-batches whose activations a stage holds at the peak; with virtual stages, in whole stages' worth.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.3, for the first stage L (1 + (p-1)/(pv));
    Megatron-Core's warm-up count for the others: 2 (p - i - 1) + (v - 1) p pieces, and the one being worked on.
    """
    if schedule.kind is ScheduleKind.GPIPE:
        return Fraction(num_micro_batches)
    if schedule.kind is ScheduleKind.ONE_F_ONE_B:
        return Fraction(min(num_micro_batches, num_stages - stage))
    virtual = schedule.virtual_stages
    pieces = 2 * (num_stages - stage - 1) + (virtual - 1) * num_stages + 1
    return Fraction(min(pieces, num_micro_batches * virtual), virtual)


def head_in_flight(schedule: Schedule, num_micro_batches: int) -> int:
    """Micro-batches whose logits and head activations the last stage holds: one, but for GPipe."""
    return num_micro_batches if schedule.kind is ScheduleKind.GPIPE else 1
