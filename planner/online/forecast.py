"""From windows to the load that is to come, and for how many steps it can be trusted.

The shares of a layer are taken as a random walk seen through noise: each step adds a variance q to the distance that
the load has drifted, each window sees the load with a variance r. Both are measured from the squared distances
between windows one and two apart, d1 and d2, whose means over windows T1 and T2 steps apart are

    d1 = q T1 + 2 r,    d2 = q T2 + 2 r,    so    q = (d2 - d1) / (T2 - T1),    r = (d1 - q T1) / 2.

For such a walk exponential smoothing is the best linear forecast (Muth 1960). The weight K of a window that comes t
steps after the last one is that of the scalar Kalman filter, with the variance of the forecast so far in units of
today's r, which is the last weight:

    K = x / (x + 1),    x = K_last + q t / r;    without drift K = 1, 1/2, 1/3, ...: the mean of all windows.

So a load that drifts is followed at once; one that comes and goes (oscillation, a rotating hot spot, a spike
of one window) is averaged, because windows two apart are then no farther from each other than neighbours.

The forecast lives until drift has carried the load as far as its own skew, |share - even|^2 / q steps, and, for want
of evidence, no longer than the run has lasted so far.
"""

from __future__ import annotations

import numpy as np

from planner.cost.balance import Floats
from planner.spec.value import Count, Index, NonNegative, Ratio, Value
from planner.spec.window import Window
from planner.spec.workload import Shares

MEMORY_WINDOWS = 8.0
"""Windows over which distances are averaged: few enough to notice that a fast start has settled, enough to tell
drift from noise. A choice, not a fit."""


class Gap(Value):
    """Discounted sums over pairs of windows that are a fixed number of windows apart."""

    pairs: NonNegative = 0.0
    distance: NonNegative = 0.0
    """Squared distances of shares, summed over layers and experts."""
    steps: NonNegative = 0.0

    def including(self, distance: float, steps: float) -> Gap:
        """With one more pair; older pairs fade."""
        fade = 1.0 - 1.0 / MEMORY_WINDOWS
        return Gap(
            pairs=fade * self.pairs + 1.0, distance=fade * self.distance + distance, steps=fade * self.steps + steps
        )


class Seen(Value):
    """Shares that one window saw."""

    shares: Shares
    middle_step: NonNegative


class Forecast(Value):
    """The load expected from now on."""

    shares: Shares
    """[MoE layer][expert], each row sums to 1."""
    horizon_steps: NonNegative
    """Steps for which this is expected to hold."""
    weight: Ratio
    """What the last window weighed in `shares`: 1 forgets all before it."""
    first_step: Index
    windows: Count
    recent: tuple[Seen, ...]
    """The last two windows, the last one first."""
    neighbours: Gap = Gap()
    """Pairs of windows one apart."""
    second_neighbours: Gap = Gap()
    """Pairs of windows two apart."""

    @property
    def array(self) -> Floats:
        """[layers, experts]."""
        return np.array(self.shares)


def begin_forecast(window: Window) -> Forecast:
    """After the first window nothing better is known than the window itself, for as long again as it lasted."""
    seen = _seen(window)
    return Forecast(
        shares=seen.shares,
        horizon_steps=float(window.num_steps),
        weight=1.0,
        first_step=window.first_step,
        windows=1,
        recent=(seen,),
    )


def update_forecast(forecast: Forecast, window: Window) -> Forecast:
    """The forecast after one more window; gaps between windows count as drift over their steps."""
    seen = _seen(window)
    last = forecast.recent[0]
    elapsed = _elapsed(last, seen, window)
    neighbours = forecast.neighbours.including(_distance(seen, last), elapsed)
    second = forecast.second_neighbours
    if len(forecast.recent) > 1:
        before = forecast.recent[1]
        apart = elapsed + max(1.0, last.middle_step - before.middle_step)
        second = second.including(_distance(seen, before), apart)
    drift, noise = _drift_and_noise(neighbours, second, _counting_noise(window))
    uncertain = forecast.weight * noise + drift * elapsed
    weight = uncertain / (uncertain + noise) if noise > 0 else 1.0
    shares = forecast.array + weight * (np.array(seen.shares) - forecast.array)
    lasted = max(window.first_step - forecast.first_step, 0) + window.num_steps
    return Forecast(
        shares=_rows(shares),
        horizon_steps=_horizon(shares, drift, float(lasted)),
        weight=weight,
        first_step=min(forecast.first_step, window.first_step),
        windows=forecast.windows + 1,
        recent=(seen, last),
        neighbours=neighbours,
        second_neighbours=second,
    )


def window_shares(window: Window) -> Floats:
    """[layers, experts]: the part of each layer's tokens that each expert got."""
    tokens = np.array(window.tokens, dtype=np.float64)
    shares: Floats = tokens / tokens.sum(axis=1, keepdims=True)
    return shares


def _drift_and_noise(neighbours: Gap, second: Gap, counting_noise: float) -> tuple[float, float]:
    """(q, r); as long as no windows two apart are known, all change beyond the noise of counting is drift."""
    near, near_steps = neighbours.distance / neighbours.pairs, neighbours.steps / neighbours.pairs
    if second.pairs == 0:
        return max(0.0, near - 2.0 * counting_noise) / near_steps, counting_noise
    far, far_steps = second.distance / second.pairs, second.steps / second.pairs
    drift = max(0.0, far - near) / max(1.0, far_steps - near_steps)
    return drift, max(counting_noise, (near - drift * near_steps) / 2.0)


def _horizon(shares: Floats, drift: float, lasted: float) -> float:
    skew = float(np.square(shares - 1.0 / shares.shape[1]).sum())
    return lasted if drift * lasted <= skew else skew / drift


def _counting_noise(window: Window) -> float:
    """Variance of the shares if each token drew its expert by chance: sum of (1 - |p|^2) / tokens over layers."""
    tokens = np.array(window.tokens, dtype=np.float64).sum(axis=1)
    return float(((1.0 - np.square(window_shares(window)).sum(axis=1)) / tokens).clip(min=0.0).sum())


def _elapsed(last: Seen, seen: Seen, window: Window) -> float:
    """Steps from window to window; a job that was set back to an earlier step counts the window's own steps."""
    elapsed = seen.middle_step - last.middle_step
    return elapsed if elapsed > 0 else float(window.num_steps)


def _seen(window: Window) -> Seen:
    middle = window.first_step + window.num_steps / 2.0
    return Seen(shares=_rows(window_shares(window)), middle_step=middle)


def _distance(one: Seen, other: Seen) -> float:
    return float(np.square(np.array(one.shares) - np.array(other.shares)).sum())


def _rows(shares: Floats) -> Shares:
    return tuple(map(tuple, (shares / shares.sum(axis=1, keepdims=True)).tolist()))
