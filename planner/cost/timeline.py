"""A pipeline run event by event: when each stage does which pass over which micro-batch.

The closed forms of planner.cost.pipeline are checked against it. It knows compute and messages between stages; work
once per step and memory other than the number of micro-batches in flight are not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Pace
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.value import StrEnum

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class PassKind(StrEnum):
    """What is done with a micro-batch; zero-bubble splits `backward` into the two that follow it."""

    FORWARD = "forward"
    BACKWARD = "backward"
    INPUT_GRADIENT = "input_gradient"
    WEIGHT_GRADIENT = "weight_gradient"


_WHOLE = (PassKind.FORWARD, PassKind.BACKWARD)
_SPLIT = (PassKind.FORWARD, PassKind.INPUT_GRADIENT, PassKind.WEIGHT_GRADIENT)
_FORWARD, _BACKWARD, _DEFERRED = range(3)


class Pass(NamedTuple):
    """One pass over one micro-batch by one piece of a stage; `piece` counts the stage's own pieces."""

    stage: int
    micro_batch: int
    piece: int
    kind: PassKind
    start_s: float
    end_s: float


class Messages(NamedTuple):
    """Activations and gradients on their way between neighbouring stages."""

    seconds: tuple[float, ...]
    """[stages]: one message over the link between a stage and the one before it, in a ring; both ways alike."""
    hidden: bool
    """True: a link carries one message at a time and way, while its stages compute. False: the receiver stands still
    while it receives, as planner.cost.estimate has it. In Megatron's batched send and receive the sender waits too,
    but a stage sends one way while it receives the other way, so that an inner stage waits as often."""


class Timeline(NamedTuple):
    """All passes of a step: arrays [stages, passes of a stage], in the order in which the stage does them."""

    kind: Integers
    micro_batch: Integers
    piece: Integers
    start_s: Floats
    end_s: Floats
    virtual_stages: int

    @property
    def last_end_s(self) -> float:
        """When the last pass ends; the first begins at 0."""
        return float(self.end_s.max())

    def passes(self) -> Iterator[Pass]:
        """The passes of the first stage in order, then those of the second, and so on."""
        names = _SPLIT if (self.kind == _DEFERRED).any() else _WHOLE
        for stage in range(len(self.kind)):
            columns = (self.micro_batch, self.piece, self.kind, self.start_s, self.end_s)
            rows = zip(*(column[stage].tolist() for column in columns), strict=True)
            yield from (Pass(stage, number, piece, names[kind], begin, end) for number, piece, kind, begin, end in rows)

    def in_flight(self, stage: int) -> Fraction:
        """Most micro-batches at once whose forward pass has begun and whose last pass has not ended, by pieces."""
        last = self.kind.max()
        change = np.where(self.kind[stage] == _FORWARD, 1, np.where(self.kind[stage] == last, -1, 0))
        return Fraction(int(np.cumsum(change).max()), self.virtual_stages)


class _Order(NamedTuple):
    """What each stage does, in order: arrays [stages, passes of a stage]."""

    kind: Integers
    micro_batch: Integers
    piece: Integers


def timeline(
    schedule: Schedule, pieces: Sequence[Sequence[Pace]], num_micro_batches: int, messages: Messages | None = None
) -> Timeline:
    """Run a step: a pass starts when its stage is free and its input is there. Messages: None takes no time.

    `pieces` holds for each stage the pace of each of its pieces; see `even_pieces`. With virtual stages the number of
    micro-batches is a multiple of the stages, as in every plan.
    """
    stages, virtual = len(pieces), schedule.virtual_stages
    order = _order(schedule, stages, num_micro_batches)
    needed, made = _links(order, stages, virtual)
    computing_s = _seconds(schedule, pieces)[order.kind, np.arange(stages)[:, None], order.piece]
    receiving_s, sending_s = _messages_s(order, needed, made, messages or Messages((0.0,) * stages, hidden=False))
    start_s, end_s = _run(order.kind, needed, made, np.stack([receiving_s, computing_s, sending_s]))
    return Timeline(*order, start_s, end_s, virtual)


def even_pieces(paces: Sequence[Pace], virtual_stages: int) -> list[list[Pace]]:
    """Stages cut into pieces that take the same time."""
    return [[Pace._make(seconds / virtual_stages for seconds in pace)] * virtual_stages for pace in paces]


def _seconds(schedule: Schedule, pieces: Sequence[Sequence[Pace]]) -> Floats:
    """[kinds, stages, pieces]."""
    forward, backward, deferred = (
        np.array([[getattr(pace, name) for pace in each] for each in pieces])
        for name in ("forward_s", "backward_s", "weight_gradient_s")
    )
    if schedule.kind is ScheduleKind.ZERO_BUBBLE:
        return np.stack([forward, backward - deferred, deferred])
    return np.stack([forward, backward, np.zeros_like(forward)])


def _messages_s(order: _Order, needed: Integers, made: Integers, messages: Messages) -> tuple[Floats, Floats]:
    """By pass, how long its stage receives before it and how long a link sends after it."""
    # Forward passes receive from the stage before and send to the one after, backward passes the other way.
    before_s, after_s = (np.roll(messages.seconds, -shift)[:, None] for shift in (0, 1))
    forward, nothing = order.kind == _FORWARD, np.zeros(order.kind.shape)
    if messages.hidden:
        return nothing, np.where(made >= 0, np.where(forward, after_s, before_s), 0.0)
    return np.where(needed >= 0, np.where(forward, before_s, after_s), 0.0), nothing


def _order(schedule: Schedule, stages: int, count: int) -> _Order:
    """Each stage's passes, sorted by when it does them."""
    virtual = schedule.virtual_stages
    # With virtual stages, micro-batches go in groups of as many as there are stages: a group passes one piece of the
    # stage, then the next (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).
    size = stages if virtual > 1 else count
    groups = [np.arange(begin, begin + size) for begin in range(0, count, size)]
    number = np.concatenate([np.tile(group, virtual) for group in groups])
    piece = np.concatenate([np.repeat(np.arange(virtual), len(group)) for group in groups])
    turn = np.arange(len(number))
    rows = []
    for stage in range(stages):
        warm_up, deferred = _warm_up(schedule, stages, len(turn), stage)
        kinds = [(_FORWARD, piece, 3 * (turn - warm_up)), (_BACKWARD, virtual - 1 - piece, 3 * turn + 1)]
        if deferred is not None:
            kinds.append((_DEFERRED, piece, 3 * (turn + deferred) + 2))
        sorted_by = np.argsort(np.concatenate([when for _, _, when in kinds]), kind="stable")
        columns = (
            np.repeat([kind for kind, _, _ in kinds], len(turn)),
            np.tile(number, len(kinds)),
            np.concatenate([places for _, places, _ in kinds]),
        )
        rows.append([column[sorted_by] for column in columns])
    return _Order(*(np.stack(column) for column in zip(*rows, strict=True)))


def _warm_up(schedule: Schedule, stages: int, passes: int, stage: int) -> tuple[int, int | None]:
    """Forward passes before the first pair of forward and backward; backward passes that weight gradients lag behind.

    Source: Megatron-Core's counts; for zero-bubble ZB-H1 of Qi et al. 2023 (arXiv 2401.10241), section 2.3.
    """
    if schedule.kind is ScheduleKind.GPIPE:
        return passes, None
    if schedule.kind is ScheduleKind.INTERLEAVED:
        return 2 * (stages - stage - 1) + (schedule.virtual_stages - 1) * stages, None
    return stages - stage - 1, stage if schedule.kind is ScheduleKind.ZERO_BUBBLE else None


def _links(order: _Order, stages: int, virtual: int) -> tuple[Integers, Integers]:
    """By pass, the number of the message that it needs and of the one that it makes; -1 for none."""
    last = stages * virtual - 1
    place = order.piece * stages + np.arange(stages)[:, None]
    backward = order.kind == _BACKWARD
    own = (order.micro_batch * 2 + backward) * (last + 1) + place
    alone = order.kind == _DEFERRED
    needed = np.where(alone | (place == np.where(backward, last, 0)), -1, np.where(backward, own + 1, own - 1))
    return needed, np.where(alone | (place == np.where(backward, 0, last)), -1, own)


def _run(kind: Integers, needed: Integers, made: Integers, seconds: Floats) -> tuple[Floats, Floats]:
    """Start and end of every pass; `seconds` is [receiving, computing, sending] by pass."""
    stages, passes = kind.shape
    # Three slots more: what nobody takes, what is there from the start, and what never comes, after the last pass.
    there_s = np.full(int(made.max()) + 4, np.inf)
    untaken, begun, never = range(len(there_s) - 3, len(there_s))
    there_s[begun] = 0.0
    needed = np.hstack([np.where(needed < 0, begun, needed), np.full((stages, 1), never)])
    made = np.where(made < 0, untaken, made)
    start_s, end_s = np.zeros(kind.shape), np.zeros(kind.shape)
    turn, free_s, link_s = np.zeros(stages, dtype=np.int64), np.zeros(stages), np.zeros((3, stages))
    while True:
        input_s = there_s[needed[np.arange(stages), turn]]
        ready = np.flatnonzero(input_s < np.inf)
        if not len(ready):
            break
        at = (ready, turn[ready])
        receiving, computing, sending = seconds[:, at[0], at[1]]
        start = np.maximum(free_s[ready], input_s[ready]) + receiving
        start_s[at], end_s[at] = start, start + computing
        free_s[ready] = end_s[at]
        link = (kind[at], ready)
        link_s[link] = np.maximum(link_s[link], end_s[at]) + sending
        there_s[made[at]] = np.where(sending > 0, link_s[link], end_s[at])
        turn[ready] += 1
    assert (turn == passes).all(), "the stages wait for each other forever"
    return start_s, end_s
