"""What a policy did over a trace: which plan and placement were in force in each window, what was changed between them.

A game is a trace cut into windows, with the run that it is replayed as; every policy plays the same one. What a course
comes to is for planner/online/recorded/accounts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import numpy as np

from planner.cost.balance import Floats
from planner.online.pricing import Pricing, served
from planner.online.recorded.trace import Trace
from planner.online.state import begin, plan_of
from planner.spec.decision import Decision
from planner.spec.errors import InputError
from planner.spec.placement import Placement, TokenSplit
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.window import Window

Progress = Callable[[float], None]
"""Called with what part of the work is done, from 0 to 1."""

Heard = Callable[[Window, Decision], None]
"""Called with each window that Trimtab's policy sees, and what it decides."""

DELAY = 0.1
"""Part of a window that passes before what was decided about the last one is carried out: as `runtime.agent` does."""


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
    """In force in each window, at its end."""
    changes: tuple[Change, ...] = ()
    """All that were made."""
    is_late: bool = False
    """Whether a change waits for the game's delay; who knows the trace does not."""


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
    delay: float = DELAY
    """In windows: how much of a window runs under what was in force before."""
    heard: Heard = lambda window, decision: None

    @property
    def context(self) -> RunContext:
        """Of the run."""
        return self.pricing.context

    def late_steps(self, samples: range) -> int:
        """Steps of a window before a change is carried out."""
        return ceil(self.delay * float(self.loads.lengths[samples.start : samples.stop].sum()))

    def seen(self, index: int, placed_anew: bool) -> Window:
        """A window as the agent reports it, under a placement that is carried out in it or is in force already."""
        samples = self.windows[index]
        window = self.trace.window(index, samples)
        placed_step = window.first_step + self.late_steps(samples) if placed_anew else None
        return window.model_copy(update={"placed_step": placed_step})

    def start(self) -> Standing:
        """Of a run that begins, whose policy has seen nothing yet."""
        state = begin(self.context)
        return Standing(plan_of(self.context, state.plan_id, "plan_id"), state.placement, self.context.token_split)


def game_of(trace: Trace, samples_per_window: int, pricing: Pricing, delay: float = DELAY) -> Game:
    """The game; raises InputError at `window` and `delay`, and where extra or shadow slots do not fit in memory."""
    if not 0.0 <= delay <= 1.0:
        raise InputError.at("delay", f"must be from 0 to 1 window, got {delay:g}")
    game = Game(trace, trace.windows(samples_per_window), loads_of(trace, pricing), pricing, delay)
    game.start()
    return game


def fixed(standing: Standing, windows: int) -> Course:
    """Never a change."""
    return Course((standing,) * windows)
