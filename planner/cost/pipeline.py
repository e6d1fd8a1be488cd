"""Pipeline schedules: the time of a step from the times of its stages, and how many micro-batches are in flight.

`Pace` is what one stage takes for one micro-batch; the slowest sets the rhythm, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from planner.cost.numbers import Numbers, largest
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.value import StrEnum


class Pace(NamedTuple):
    """One stage."""

    forward_s: float
    """Forward pass of one micro-batch through all pieces of the stage."""
    backward_s: float
    once_s: float
    """Work once per step."""
    weight_gradient_s: float = 0.0
    """Of `backward_s`, what only the weights wait for, so that it may be put off."""


class Beats(StrEnum):
    """What stands for a stage's time in the time of a step, as few numbers as the schedule needs."""

    WHOLE = "whole"
    """Both passes together."""
    PASSES = "passes"
    """Forward, backward."""
    PUT_OFF = "put_off"
    """Both passes but what is put off, and that."""


def beats_of(kind: ScheduleKind) -> Beats:
    """The numbers that a schedule needs."""
    return {ScheduleKind.GPIPE: Beats.PASSES, ScheduleKind.ZERO_BUBBLE: Beats.PUT_OFF}.get(kind, Beats.WHOLE)


def beat(beats: Beats, forward_s: Numbers, backward_s: Numbers, weight_gradient_s: Numbers) -> tuple[Numbers, ...]:
    """The numbers, for one stage or layer, or arrays for many; all are at least 0, and sums over layers hold."""
    if beats is Beats.PASSES:
        return (forward_s, backward_s)
    if beats is Beats.PUT_OFF:
        return (forward_s + backward_s - weight_gradient_s, weight_gradient_s)
    return (forward_s + backward_s,)


class Rhythm(NamedTuple):
    """How beats make a step: the sum over `peaks` of the largest weighted sum of a stage's beats, and all `filling`."""

    peaks: tuple[tuple[float, ...], ...]
    """[peaks, beats]: weights of the beats of the stage for which the weighted sum is largest."""
    filling: tuple[float, ...]
    """[beats]: weights of the beats of every stage."""


def rhythm(schedule: Schedule, num_stages: int, num_micro_batches: int) -> Rhythm:
    """The weights under which `step_s` is the time of a step."""
    beats, steady = beats_of(schedule.kind), num_micro_batches - 1.0 / schedule.virtual_stages
    if beats is Beats.PASSES:
        return Rhythm(((steady, 0.0), (0.0, steady)), (1.0, 1.0))
    if beats is Beats.PUT_OFF:
        behind = min(num_stages, num_micro_batches)
        return Rhythm(((steady, num_micro_batches - behind), (0.0, 1.0)), (1.0, 0.0))
    return Rhythm(((steady,),), (1.0 / schedule.virtual_stages,))


def step_s(schedule: Schedule, paces: Sequence[Pace], num_micro_batches: int) -> Numbers:
    """Seconds of a step: (m - 1/v) x slowest stage + all stages / v + longest work once per step.

    Under GPipe forward and backward passes count apart, each with its slowest stage. Under zero-bubble the slowest
    stage is that with the longest (m - 1) A + (m - min(m, p)) W, where W is put off and A is the rest of both passes;
    all stages count A, and the longest W once.

    Exact with equal stages: (m + (p-1)/v) t (Narayanan et al. 2021, arXiv 2104.04473, section 2.2), and for zero-bubble
    m (A + W) + (p-1) (A - W) for m >= p (Qi et al. 2023, arXiv 2401.10241, section 2.3), if W is at most the forward
    and half of the backward pass. GPipe is exact with any stages. Otherwise, where s is the slowest stage:
    1F1B is shorter than this by at most the stages after s, and by at most what they are shorter than s; interleaved by
    at most 1/v of the stages after s; so neither where s is the last. Neither is longer where every stage's backward
    takes the same multiple of its forward, nor was 1F1B found longer where these multiples lie between 2 and 3.
    How far off the rest can be, and zero-bubble: docs/log.md, "how close the closed forms of pipelines are".
    Measured: planner.cost.timeline, tests/cost/test_pipeline_schedules.py.
    """
    beats = beats_of(schedule.kind)
    made = rhythm(schedule, len(paces), num_micro_batches)
    stages = [beat(beats, pace.forward_s, pace.backward_s, pace.weight_gradient_s) for pace in paces]
    slowest = sum(largest(_weighed(weights, stage) for stage in stages) for weights in made.peaks)
    return slowest + sum(_weighed(made.filling, stage) for stage in stages) + largest(pace.once_s for pace in paces)


def _weighed(weights: Sequence[float], numbers: Sequence[Numbers]) -> Numbers:
    return sum(weight * number for weight, number in zip(weights, numbers, strict=True))


def in_flight(schedule: Schedule, num_stages: int, num_micro_batches: int, stage: int) -> Fraction:
    """Micro-batches whose activations a stage holds at the peak; with virtual stages, in whole stages' worth.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.3, for the first stage L (1 + (p-1)/(pv));
    Megatron-Core's warm-up count for the others: 2 (p - i - 1) + (v - 1) p pieces, and the one being worked on. Under
    zero-bubble what waits for its weights' gradients counts whole: p micro-batches on every stage (Qi et al. 2023,
    arXiv 2401.10241, section 2.1, ZB-H1).
    """
    if schedule.kind is ScheduleKind.GPIPE:
        return Fraction(num_micro_batches)
    if schedule.kind is ScheduleKind.ONE_F_ONE_B:
        return Fraction(min(num_micro_batches, num_stages - stage))
    if schedule.kind is ScheduleKind.ZERO_BUBBLE:
        return Fraction(min(num_micro_batches, num_stages))
    virtual = schedule.virtual_stages
    pieces = 2 * (num_stages - stage - 1) + (virtual - 1) * num_stages + 1
    return Fraction(min(pieces, num_micro_batches * virtual), virtual)


def head_in_flight(schedule: Schedule, num_micro_batches: int) -> int:
    """Micro-batches whose logits and head activations the last stage holds: one, but for GPipe."""
    return num_micro_batches if schedule.kind is ScheduleKind.GPIPE else 1
