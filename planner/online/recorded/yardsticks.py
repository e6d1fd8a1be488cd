"""Courses that know the whole trace, or nothing of it: what a policy is held against."""

from __future__ import annotations

import numpy as np

from planner.cost.balance import Floats, Indices, rank_loads
from planner.online.placement.options import options
from planner.online.placement.shadows import lasting_slots, with_idle_shadows
from planner.online.pricing import placement_from, seats_of, whole_split
from planner.online.recorded.accounts import even_split
from planner.online.recorded.course import Change, Course, Game, Loads, Progress, fixed
from planner.online.recorded.hindsight import Stretch, best_sequence
from planner.spec.placement import Placement, TokenSplit


def static(game: Game, progress: Progress) -> Course:
    """The placement that a run begins with, for ever."""
    return fixed(game.start(), len(game.windows))


def best_static(game: Game, progress: Progress) -> Course:
    """The best fixed placement, see `best_fixed`; had for nothing."""
    start = game.start()
    if start.placement is None:
        return fixed(start, len(game.windows))
    best = best_fixed(game.loads, start.placement, game.context.token_split)
    return fixed(start._replace(placement=best), len(game.windows))


def hindsight(game: Game, progress: Progress) -> Course:
    """The best sequence of placements that was found knowing the whole trace; it pays for its moves."""
    start = game.start()
    if start.placement is None:
        return fixed(start, len(game.windows))
    counts = np.stack([game.trace.tokens[samples.start : samples.stop].sum(axis=0) for samples in game.windows])
    lengths = np.array([game.loads.lengths[samples.start : samples.stop].sum() for samples in game.windows])
    known = Stretch(counts / counts.sum(axis=2, keepdims=True), lengths)
    best = best_sequence(known, game.pricing, start.plan, start.placement, progress=progress)
    standings = tuple(start._replace(placement=step.placement) for step in best.steps)
    return Course(standings, tuple(Change(step.moves, float(step.pause_s)) for step in best.steps if step.moves))


def best_fixed(loads: Loads, start: Placement, split: TokenSplit = TokenSplit.EVEN) -> Placement:
    """Of placements made for the mean load, for each layer the one with the least hottest rank, mean over all steps.

    Where tokens need not be split evenly, each is tried with the split that is best for the mean load, too. Shadow
    slots stay idle: what they held for ever would be cheaper as a replica.
    """
    seats = seats_of(start)
    ranks, shadows = start.num_ranks, seats.shadow_slots_per_rank
    lasting = lasting_slots(seats.layers, ranks, shadows)
    mean: Floats = np.average(loads.served, axis=0, weights=loads.lengths)
    kinds = [TokenSplit.EVEN] if split is TokenSplit.EVEN else [TokenSplit.EVEN, split]
    choices = [
        with_idle_shadows(slots, mean, ranks, shadows)
        for kind in kinds
        for slots in options(mean, ranks, lasting, kind).slots
    ]
    splits = [even_split(slots) for slots in choices]
    if split is not TokenSplit.EVEN and seats.layers.shape[1] != mean.shape[1]:
        splits += [whole_split(mean, slots, start.num_ranks) for slots in choices]
        choices += choices
    tried = zip(choices, splits, strict=True)
    best = np.stack([_mean_hottest(loads, slots, parts, start.num_ranks) for slots, parts in tried]).argmin(axis=0)
    slots, parts = (np.stack(each)[best, np.arange(len(best))] for each in (choices, splits))
    return placement_from(seats._replace(layers=slots, split=None if split is TokenSplit.EVEN else parts))


def _mean_hottest(loads: Loads, slots: Indices, split: Floats, num_ranks: int) -> Floats:
    """[layers]: load of the hottest rank, mean over the steps of the trace."""
    shape = (len(loads.served), *slots.shape)
    carried = rank_loads(loads.served, np.broadcast_to(slots, shape), num_ranks, np.broadcast_to(split, shape))
    return np.asarray(np.average(carried.max(axis=-1), axis=0, weights=loads.lengths), dtype=np.float64)
