"""A pipeline run event by event: what 1F1B, GPipe and interleaved 1F1B take when nothing but compute costs time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planner.cost.pipeline import Pace
from planner.spec.plan import Schedule, ScheduleKind


class Task(NamedTuple):
    """One pass over one micro-batch in one piece of the model; pieces are numbered in the order of the layers."""

    backward: bool
    micro_batch: int
    piece: int


def one_f_one_b(num_stages: int, count: int, stage: int) -> list[Task]:
    """Warm-up forwards, then one forward and one backward in turn, then the backwards that are left."""
    warm_up = min(count, num_stages - stage - 1)
    order = [Task(False, number, stage) for number in range(warm_up)]
    for number in range(count):
        if warm_up + number < count:
            order.append(Task(False, warm_up + number, stage))
        order.append(Task(True, number, stage))
    return order


def gpipe(num_stages: int, count: int, stage: int) -> list[Task]:
    """All forwards, then all backwards."""
    return [Task(backward, number, stage) for backward in (False, True) for number in range(count)]


def interleaved(num_stages: int, count: int, stage: int, virtual: int) -> list[Task]:
    """Megatron-LM's order (arXiv 2104.04473, section 2.2); `count` is a multiple of the stages.

    Micro-batches go in groups of as many as there are stages: a group passes one piece of the stage, then the next.
    """
    groups = range(0, count, num_stages)
    forwards = [
        Task(False, first + number, piece * num_stages + stage)
        for first in groups
        for piece in range(virtual)
        for number in range(num_stages)
    ]
    backwards = [
        Task(True, first + number, piece * num_stages + stage)
        for first in groups
        for piece in reversed(range(virtual))
        for number in range(num_stages)
    ]
    warm_up = min(len(forwards), 2 * (num_stages - stage - 1) + (virtual - 1) * num_stages)
    order = forwards[:warm_up]
    for number, backward in enumerate(backwards):
        order += [*forwards[warm_up + number : warm_up + number + 1], backward]
    return order


def orders(schedule: Schedule, num_stages: int, count: int) -> list[list[Task]]:
    """What each stage does, in order."""
    if schedule.kind is ScheduleKind.INTERLEAVED:
        return [interleaved(num_stages, count, stage, schedule.virtual_stages) for stage in range(num_stages)]
    order = gpipe if schedule.kind is ScheduleKind.GPIPE else one_f_one_b
    return [order(num_stages, count, stage) for stage in range(num_stages)]


def simulated_s(schedule: Schedule, paces: Sequence[Pace], count: int) -> float:
    """When the last task ends: each starts when its stage is free and its input is there."""
    last_piece = len(paces) * schedule.virtual_stages - 1
    waiting = [list(reversed(order)) for order in orders(schedule, len(paces), count)]
    free_s = [0.0] * len(paces)
    done_s: dict[Task, float] = {}
    while any(waiting):
        started = False
        for stage, tasks in enumerate(waiting):
            while tasks and (needed := inputs(tasks[-1], last_piece)) <= done_s.keys():
                task = tasks.pop()
                seconds = paces[stage].backward_s if task.backward else paces[stage].forward_s
                begin_s = max([free_s[stage], *(done_s[one] for one in needed)])
                done_s[task] = free_s[stage] = begin_s + seconds / schedule.virtual_stages
                started = True
        assert started, "the stages wait for each other forever"
    return max(done_s.values())


def inputs(task: Task, last_piece: int) -> set[Task]:
    """The tasks that must end before: the neighbouring piece's pass, and before a backward the forward."""
    if not task.backward:
        return {task._replace(piece=task.piece - 1)} if task.piece else set()
    forward = task._replace(backward=False)
    return {forward} if task.piece == last_piece else {forward, task._replace(piece=task.piece + 1)}


def most_in_flight(order: Sequence[Task]) -> int:
    """Pieces whose activations a stage holds at once: forwards begun and not yet undone."""
    held = most = 0
    for task in order:
        held += -1 if task.backward else 1
        most = max(most, held)
    return most
