"""What a policy did over a trace: which plan and placement were in force in each window, what was changed between them.

A game is a trace cut into windows, with the run that it is replayed as; every policy plays the same one. What a course
comes to is for planner/online/accounts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from planner.cost.balance import Floats
from planner.online.pricing import Pricing, served
from planner.online.state import begin, plan_of
from planner.online.trace import Trace
from planner.spec.placement import Placement, TokenSplit
from planner.spec.plan import Plan
from planner.spec.run import RunContext

Progress = Callable[[float], None]
"""Called with what part of the work is done, from 0 to 1."""


class Standing(NamedTuple):
    """What is in force in a window."""

    plan: Plan
    placement: Placement | None
    split: TokenSplit = TokenSplit.EVEN
    """How replicas share tokens; `window` by the placement's own split."""


class Change(NamedTuple):
    """What was done at the end of a window."""

    moves: int
    """Experts copied, over all layers."""
    pause_s: float


class Course(NamedTuple):
    """One policy on one trace."""

    standings: tuple[Standing, ...]
    """In force in each window."""
    changes: tuple[Change, ...] = ()
    """All that were made."""


class Loads(NamedTuple):
    """A trace as shares."""

    shares: Floats
    """[samples, layers, experts], as the gate chose."""
    served: Floats
    """The same, capped by the training's capacity factor."""
    lengths: Floats
    """[samples]: steps that each stands for."""


def loads_of(trace: Trace, pricing: Pricing) -> Loads:
    """The shares of every sample."""
    shares = trace.tokens / trace.tokens.sum(axis=2, keepdims=True)
    return Loads(shares, served(shares, pricing.context.training), trace.lengths.astype(np.float64))


class Game(NamedTuple):
    """One trace to be replayed."""

    trace: Trace
    windows: tuple[range, ...]
    """Of samples."""
    loads: Loads
    pricing: Pricing

    @property
    def context(self) -> RunContext:
        """Of the run."""
        return self.pricing.context

    def start(self) -> Standing:
        """Of a run that begins, whose policy has seen nothing yet."""
        state = begin(self.context)
        return Standing(plan_of(self.context, state.plan_id, "plan_id"), state.placement, self.context.token_split)


def game_of(trace: Trace, samples_per_window: int, pricing: Pricing) -> Game:
    """The game; raises InputError at `window`, and where extra or shadow slots do not fit in memory."""
    game = Game(trace, trace.windows(samples_per_window), loads_of(trace, pricing), pricing)
    game.start()
    return game


def fixed(standing: Standing, windows: int) -> Course:
    """Never a change."""
    return Course((standing,) * windows)
