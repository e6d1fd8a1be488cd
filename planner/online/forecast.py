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

A window counts by its tokens, beside those of the windows before: the noise of one with few is as much higher as
counting makes it, and pairs, mistakes and the "last window" have it for that part only.

A walk is a model. Where windows of late were forecast better by the window before them than by the smoothed load, the
last window is the forecast; both keep being tried (`Forecast.mistakes`).

How uncertain the forecast is, `Forecast.variances` says by layer: the squared distance that it had from the window
that came, as it was of late. It is reported, and not used to decide: moves that had to gain more than a part of it came
late where the load turns (docs/log.md); what the policy goes by is drift, in the horizon.

Steps that no window saw (a job resumed far later, or set back far) are no drift per step: a pair of windows with a gap
between them is counted neither in d1 and d2 nor among the mistakes. How far the load went in it, its first window
says: what that is off the smoothed load beyond noise, x gets in full (the likeliest drift, given that window).

The forecast lives until drift has carried the load as far as its own skew, |share - even|^2 / q steps, and, for want
of evidence, no longer than the steps that windows have seen so far.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, model_validator

from planner.cost.balance import Floats
from planner.spec.packed import Packed
from planner.spec.value import Count, NonNegative, Ratio, Value
from planner.spec.window import Window

MEMORY_WINDOWS = 8.0
"""Windows over which distances are averaged: few enough to notice that a fast start has settled, enough to tell
drift from noise. A choice, not a fit."""


FADE = 1.0 - 1.0 / MEMORY_WINDOWS

FEW_WINDOWS = 4.0
"""Steps that went unseen are a gap where they are more than so many windows, of the longer of the two beside them. A
choice: half the memory, so that some lost windows leave the drift known."""


def _packed_shares(given: Any) -> Any:
    """Rows of numbers, as states kept by version 0.1 have them, or what is packed already."""
    return Packed.of(given, "<f4") if isinstance(given, (list, tuple)) else given


Shares = Annotated[Packed, BeforeValidator(_packed_shares)]
"""[MoE layer, expert], each row sums to 1; kept in four bytes each."""


class Gap(Value):
    """Discounted sums over pairs of windows that are a fixed number of windows apart, each weighed by its tokens."""

    pairs: NonNegative = 0.0
    distance: NonNegative = 0.0
    """Squared distances of shares, summed over layers and experts."""
    steps: NonNegative = 0.0

    def including(self, distance: float, steps: float, weight: float) -> Gap:
        """With one more pair; older pairs fade."""
        return Gap(
            pairs=FADE * self.pairs + weight,
            distance=FADE * self.distance + weight * distance,
            steps=FADE * self.steps + weight * steps,
        )


class Seen(Value):
    """Shares that one window saw."""

    shares: Shares
    middle_step: NonNegative
    tokens: NonNegative | None = None
    """Of its thinnest layer; None: not kept, as many as are usual."""
    num_steps: Count | None = None
    """None: not kept, as many as the window after it."""
    after_gap: bool = False
    """Whether more than a few windows between it and the one before went unseen."""

    @property
    def array(self) -> Floats:
        """[layers, experts]."""
        return _floats(self.shares)


class Mistakes(Value):
    """Squared distances from the window that came, faded, of two ways to forecast it."""

    smoothed: NonNegative = 0.0
    last: NonNegative = 0.0

    def including(self, smoothed: float, last: float, counted: float) -> Mistakes:
        """With those of one more window; older ones fade."""
        return Mistakes(smoothed=FADE * self.smoothed + counted * smoothed, last=FADE * self.last + counted * last)

    @property
    def last_is_better(self) -> bool:
        """Equal mistakes speak for smoothing."""
        return self.last < self.smoothed


class Forecast(Value):
    """The load expected from now on."""

    shares: Shares
    """What is expected: the smoothed load, or the last window."""
    smoothed: Shares | None = None
    """None: as `shares`."""
    horizon_steps: NonNegative
    """Steps for which this is expected to hold."""
    weight: Ratio
    """What the last window weighed in the smoothed load: 1 forgets all before it."""
    variances: tuple[NonNegative, ...] = ()
    """By MoE layer: squared distance of a window's shares from what was forecast for it, mean of the last windows;
    empty before the second window."""
    mistakes: Mistakes = Mistakes()
    counted: Ratio = 1.0
    """What the last window counted for: its tokens beside what is usual, at most 1."""
    usual_tokens: NonNegative | None = None
    """Of a window's thinnest layer, mean of the last windows; None: not kept."""
    doubt: NonNegative | None = None
    """Variance of the smoothed load around the true one, summed over layers and experts; None: not kept."""
    noises: NonNegative | None = None
    """The same in units of the noise of a usual window; None: `weight`."""
    seen_steps: NonNegative | None = None
    """Steps of all windows; None: not kept, as many a window as the next one has."""
    windows: Count
    recent: tuple[Seen, ...]
    """The last two windows, the last one first."""
    neighbours: Gap = Gap()
    """Pairs of windows one apart."""
    second_neighbours: Gap = Gap()
    """Pairs of windows two apart."""

    @model_validator(mode="before")
    @classmethod
    def _without_first_step(cls, data: Any) -> Any:
        """Older versions kept the first step of all windows, which nothing reads."""
        return {key: data[key] for key in data if key != "first_step"} if isinstance(data, dict) else data

    @property
    def array(self) -> Floats:
        """[layers, experts]."""
        return _floats(self.shares)


def begin_forecast(window: Window) -> Forecast:
    """After the first window nothing better is known than the window itself, for as long again as it lasted."""
    seen = _seen(window)
    return Forecast(
        shares=seen.shares,
        horizon_steps=float(window.num_steps),
        weight=1.0,
        usual_tokens=seen.tokens,
        doubt=_counting_noise(window),
        seen_steps=window.num_steps,
        windows=1,
        recent=(seen,),
    )


def update_forecast(forecast: Forecast, window: Window) -> Forecast:
    """The forecast after one more window; a few windows that are missing count as drift over their steps."""
    last = forecast.recent[0]
    seen, seen_shares = _seen(window, last), window_shares(window)
    usual_tokens = _usual(forecast, seen)
    counted = min(1.0, _tokens(seen) / usual_tokens)
    smoothed = _floats(forecast.smoothed or forecast.shares)
    missed = _distance(seen_shares, smoothed), _distance(seen_shares, last.array)
    mistakes = forecast.mistakes if seen.after_gap else forecast.mistakes.including(*missed, counted)
    elapsed = _elapsed(last, seen, window)
    neighbours, second = _pairs(forecast, seen, seen_shares, usual_tokens, elapsed)
    counting = _counting_noise(window)
    drift, noise = _drift_and_noise(neighbours, second, counted * counting)
    off = missed[0] if seen.after_gap else 0.0
    weight, doubt = _trusted(forecast, drift * elapsed, noise, (1.0 - counted) * counting, off)
    smoothed = smoothed + weight * (seen_shares - smoothed)
    latest = last.array + counted * (seen_shares - last.array)
    shares = latest if mistakes.last_is_better else smoothed
    before = forecast.windows * window.num_steps if forecast.seen_steps is None else forecast.seen_steps
    return Forecast(
        shares=_rows(shares),
        smoothed=_rows(smoothed),
        horizon_steps=_horizon(shares, drift, float(before + window.num_steps)),
        weight=weight,
        variances=_variances(forecast, np.square(seen_shares - forecast.array).sum(axis=1)),
        mistakes=mistakes,
        counted=counted,
        usual_tokens=usual_tokens,
        doubt=doubt,
        noises=doubt / noise if noise > 0 else 1.0,
        seen_steps=before + window.num_steps,
        windows=forecast.windows + 1,
        recent=(seen.model_copy(update={"shares": _rows(latest)}), last),
        neighbours=neighbours,
        second_neighbours=second,
    )


def _pairs(forecast: Forecast, seen: Seen, shares: Floats, usual_tokens: float, elapsed: float) -> tuple[Gap, Gap]:
    """Neighbours and second neighbours with one more window: those pairs that have no gap between them."""
    neighbours, second = forecast.neighbours, forecast.second_neighbours
    last = forecast.recent[0]
    if seen.after_gap:
        return neighbours, second
    neighbours = neighbours.including(_distance(shares, last.array), elapsed, _weight(usual_tokens, seen, last))
    if len(forecast.recent) > 1 and not last.after_gap:
        before = forecast.recent[1]
        apart = elapsed + max(1.0, last.middle_step - before.middle_step)
        second = second.including(_distance(shares, before.array), apart, _weight(usual_tokens, seen, before))
    return neighbours, second


def _trusted(forecast: Forecast, drifted: float, noise: float, excess: float, off: float = 0.0) -> tuple[float, float]:
    """(What the window weighs in the smoothed load, the doubt that is left.)

    `excess`: its noise beyond the usual; `off`: after a gap, how far it is off the smoothed load, squared.
    """
    noises = forecast.weight if forecast.noises is None else forecast.noises
    uncertain = max(noises * noise, forecast.doubt or 0.0) + drifted
    beside = noise + excess
    uncertain = max(uncertain, off - beside)
    weight = uncertain / (uncertain + beside) if beside > 0 else 1.0
    return max(weight, float(np.finfo(float).tiny)), weight * beside


def _usual(forecast: Forecast, seen: Seen) -> float:
    """Tokens of a window, mean of the last ones: of all, until there are enough."""
    if forecast.usual_tokens is None:
        return _tokens(seen)
    known = min(float(forecast.windows), MEMORY_WINDOWS - 1.0)
    return (known * forecast.usual_tokens + _tokens(seen)) / (known + 1.0)


def _tokens(seen: Seen) -> float:
    assert seen.tokens is not None
    return seen.tokens


def _weight(usual_tokens: float, *pair: Seen) -> float:
    """What a pair of windows is worth: as much as the one with fewer tokens."""
    return min(1.0, *(1.0 if seen.tokens is None else seen.tokens / usual_tokens for seen in pair))


def window_shares(window: Window) -> Floats:
    """[layers, experts]: the part of each layer's tokens that each expert got."""
    shares: Floats = window.counts / window.counts.sum(axis=1, keepdims=True)
    return shares


def _drift_and_noise(neighbours: Gap, second: Gap, counting_noise: float) -> tuple[float, float]:
    """(q, r); as long as no windows two apart are known, all change beyond the noise of counting is drift.

    Before the first pair without a gap none is known.
    """
    if neighbours.pairs == 0:
        return 0.0, counting_noise
    near, near_steps = neighbours.distance / neighbours.pairs, neighbours.steps / neighbours.pairs
    if second.pairs == 0:
        return max(0.0, near - 2.0 * counting_noise) / near_steps, counting_noise
    far, far_steps = second.distance / second.pairs, second.steps / second.pairs
    drift = max(0.0, far - near) / max(1.0, far_steps - near_steps)
    return drift, max(counting_noise, (near - drift * near_steps) / 2.0)


def _horizon(shares: Floats, drift: float, lasted: float) -> float:
    """Steps; `lasted`: those that windows have seen."""
    skew = float(np.square(shares - 1.0 / shares.shape[1]).sum())
    return lasted if drift * lasted <= skew else skew / drift


def _variances(forecast: Forecast, missed: Floats) -> tuple[float, ...]:
    """The mean of all windows so far, or, once there are enough, one that fades."""
    known = min(float(forecast.windows - 1), MEMORY_WINDOWS - 1.0) if forecast.variances else 0.0
    before = np.array(forecast.variances) if forecast.variances else np.zeros(len(missed))
    return tuple(((known * before + missed) / (known + 1.0)).tolist())


def _counting_noise(window: Window) -> float:
    """Variance of the shares if each token drew its expert by chance: sum of (1 - |p|^2) / tokens over layers.

    p is what was counted, with one token more that all experts share: so that one token alone does not look certain.
    """
    counts, tokens = window.counts, window.counts.sum(axis=1)
    expected = (counts + 1.0 / counts.shape[1]) / (tokens + 1.0)[:, None]
    return float(((1.0 - np.square(expected).sum(axis=1)) / tokens).clip(min=0.0).sum())


def _elapsed(last: Seen, seen: Seen, window: Window) -> float:
    """Steps from window to window; a job that was set back to an earlier step counts the window's own steps."""
    elapsed = seen.middle_step - last.middle_step
    return elapsed if elapsed > 0 else float(window.num_steps)


def _seen(window: Window, last: Seen | None = None) -> Seen:
    """What a window saw, `last` being the one before it."""
    middle = window.first_step + window.num_steps / 2.0
    return Seen(
        shares=_rows(window_shares(window)),
        middle_step=middle,
        tokens=float(min(map(sum, window.tokens))),
        num_steps=window.num_steps,
        after_gap=last is not None and _far(last, middle, window.num_steps),
    )


def _far(last: Seen, middle_step: float, num_steps: int) -> bool:
    """Whether there is a gap between a window and the last one, forward or back."""
    before = num_steps if last.num_steps is None else last.num_steps
    unseen = abs(middle_step - last.middle_step) - (num_steps + before) / 2.0
    return unseen > FEW_WINDOWS * max(num_steps, before)


def _distance(one: Floats, other: Floats) -> float:
    """Squared, summed over layers and experts."""
    return float(np.square(one - other).sum(axis=1).sum())


def _floats(packed: Packed) -> Floats:
    return packed.array.astype(np.float64)


def _rows(shares: Floats) -> Packed:
    return Packed.of(shares / shares.sum(axis=1, keepdims=True), "<f4")
