"""What a course over a trace comes to: seconds, balance, moves. The same accounts for all policies.

Every sample is priced for its own load under what was in force; pauses come on top. A sample in which a change was
carried out is the mix of its steps before and after.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import TypedDict

import numpy as np

from planner.cost import Seats
from planner.cost.balance import Floats, Indices, rank_loads, replica_counts
from planner.online.pricing import seats_of, unevenness, whole_split
from planner.online.recorded.course import Course, Game, Progress, Standing
from planner.spec.placement import TokenSplit

_AT_ONCE = 64
"""Samples that are priced together: enough to share work, few enough to tell progress."""


class Outcome(TypedDict):
    """What a policy made of a trace."""

    imbalance_mean: float
    """Max over mean load of the ranks, mean over samples and layers, under what was in force."""
    imbalance_mean_step_split: float
    """The same, had replicas split the tokens of each sample as evenly as they can."""
    moved_experts: int
    """Experts copied, over all layers."""
    decisions: int
    """Times that something was changed."""
    pause_s: float
    """All pauses for changes."""
    step_time_s_mean: float
    """Without the pauses."""
    total_time_s: float
    """All steps and pauses."""
    static_ratio: float | None
    """Total time over that of the policy `static`; None: that was not replayed."""
    hindsight_ratio: float | None
    """Total time over that of the policy `hindsight`; None: that was not replayed."""


def outcome(course: Course, game: Game, progress: Progress = lambda part: None) -> Outcome:
    """What the course comes to in the game that it was played in."""
    loads = game.loads
    uneven, per_step, step_s = np.empty((3, len(loads.shares)))
    for standing, samples in _epochs(course, game.windows):
        where = slice(samples.start, samples.stop)
        uneven[where], per_step[where], step_s[where] = _priced(standing, samples, game)
        progress(samples.stop / len(loads.shares))
    for standing, samples, part in _before_changes(course, game):
        where = slice(samples.start, samples.stop)
        for figures, before in zip((uneven, per_step, step_s), _priced(standing, samples, game), strict=True):
            figures[where] += part * (np.array(before) - figures[where])
    pause_s = sum(change.pause_s for change in course.changes)
    steps_s = float(np.dot(loads.lengths, step_s))
    return {
        "imbalance_mean": float(np.mean(uneven)),
        "imbalance_mean_step_split": float(np.mean(per_step)),
        "moved_experts": sum(change.moves for change in course.changes),
        "decisions": len(course.changes),
        "pause_s": pause_s,
        "step_time_s_mean": steps_s / float(loads.lengths.sum()),
        "total_time_s": steps_s + pause_s,
        "static_ratio": None,
        "hindsight_ratio": None,
    }


def _epochs(course: Course, windows: tuple[range, ...]) -> Iterator[tuple[Standing, range]]:
    """Samples under one standing, few enough to tell progress."""
    for standing, group in groupby(zip(course.standings, windows, strict=True), key=lambda pair: pair[0]):
        stretch = [samples for _, samples in group]
        stop = stretch[-1].stop
        for begin in range(stretch[0].start, stop, _AT_ONCE):
            yield standing, range(begin, min(begin + _AT_ONCE, stop))


def _before_changes(course: Course, game: Game) -> Iterator[tuple[Standing, range, Floats]]:
    """Samples that ran, for the most part or a little, under what was in force before; and which part of each."""
    if not course.is_late:
        return
    for (before, after), samples in zip(pairwise(course.standings), game.windows[1:], strict=True):
        lengths = game.loads.lengths[samples.start : samples.stop]
        part = np.clip((game.late_steps(samples) - (np.cumsum(lengths) - lengths)) / lengths, 0.0, 1.0)
        late = int(np.count_nonzero(part))
        if before != after and late:
            yield before, range(samples.start, samples.start + late), part[:late]


def _priced(standing: Standing, samples: range, game: Game) -> tuple[list[float], list[float], list[float]]:
    """Of each sample: imbalance as tokens are split, imbalance had they been split anew, seconds of a step."""
    loads, pricing = game.loads, game.pricing
    shares, served_loads = loads.shares[samples.start : samples.stop], loads.served[samples.start : samples.stop]
    if standing.placement is None:
        prices = pricing.steps(standing.plan, [(each, None) for each in shares])
        return [1.0] * len(shares), [1.0] * len(shares), [price.seconds for price in prices]
    seats = seats_of(standing.placement)
    anew = _split_anew(served_loads, seats)
    split = anew if standing.split is TokenSplit.STEP else np.broadcast_to(_split_in_force(seats), anew.shape)
    conditions = [(each, seats._replace(split=parts)) for each, parts in zip(shares, split, strict=True)]
    prices = pricing.steps(standing.plan, conditions)
    balance, best = _imbalances(served_loads, seats, split), _imbalances(served_loads, seats, anew)
    return balance, best, [price.seconds for price in prices]


def _split_anew(loads: Floats, seats: Seats) -> Floats:
    """[samples, layers, slots]: the best split for each of loads [samples, layers, experts]."""
    if seats.layers.shape[1] == loads.shape[2]:
        return np.ones((len(loads), *seats.layers.shape))
    return np.stack([whole_split(each, seats.layers, seats.num_ranks) for each in loads])


def _split_in_force(seats: Seats) -> Floats:
    """[layers, slots]: the placement's split, or equal parts."""
    return seats.split if seats.split is not None else even_split(seats.layers)


def even_split(slots: Indices) -> Floats:
    """[layers, slots]: equal parts."""
    counts = replica_counts(slots, int(slots.max()) + 1)
    return np.asarray(1.0 / np.take_along_axis(counts, slots, axis=1), dtype=np.float64)


def _imbalances(loads: Floats, seats: Seats, split: Floats) -> list[float]:
    """Of each sample, mean over layers."""
    slots = np.broadcast_to(seats.layers, split.shape)
    found: list[float] = unevenness(rank_loads(loads, slots, seats.num_ranks, split)).mean(axis=-1).tolist()
    return found
