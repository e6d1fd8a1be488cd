"""How well the load is forecast on SmartMoE's recorded trace: error, and what uncertainty and life are worth.

Error: sum over experts of |forecast - what came|, mean over layers and windows: of the next window, and of those of the
forecast's own horizon, at most HORIZON_WINDOWS on. Beside it what is easily had: the last window, the mean of all,
exponential smoothing. Windows are of 1, 2, 5, 10 and 25 samples (10 steps apart), in the first tenth of the trace,
where the load drifts, and after it.

Uncertainty: the part of windows and layers whose squared error is below what `Forecast.variances` said, times a factor;
and what the errors come to in all, over what was said (1: right on average).

Life: for every placement that the policy chooses (8 ranks, 1 extra slot), for which part of the steps that it was said
to last the new placement is really better than the old one, and whether it gained in all what it cost.

Run: .venv/bin/python benchmarks/bench_forecast.py. The trace is read from ../shared and nothing is measured without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from table import Row, show

from planner.online import Pricing, begin, decide_at, replay_context
from planner.online.forecast import Forecast, begin_forecast, update_forecast, window_shares
from planner.online.pricing import seats_of
from planner.spec.window import Window
from profiles import cluster_from_shorthand, resolve_cluster

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
HORIZON_WINDOWS = 10
STEPS = 10
"""From sample to sample of the trace."""

Floats = np.ndarray


def windows_of(tokens: Floats, samples: int) -> list[Window]:
    """Windows of so many samples."""
    length = samples * STEPS
    return [
        Window(
            index=index,
            first_step=index * length,
            num_steps=length,
            tokens=tuple(map(tuple, tokens[index * samples : (index + 1) * samples].sum(axis=0).tolist())),
        )
        for index in range(len(tokens) // samples)
    ]


def forecasts_of(windows: list[Window]) -> list[Forecast]:
    """The forecast after each window."""
    found = [begin_forecast(windows[0])]
    for window in windows[1:]:
        found.append(update_forecast(found[-1], window))
    return found


def smoothed(shares: Floats, weight: float) -> Floats:
    """Exponential smoothing."""
    found = [shares[0]]
    for seen in shares[1:]:
        found.append(found[-1] + weight * (seen - found[-1]))
    return np.array(found)


def mean_of_all(shares: Floats) -> Floats:
    return np.cumsum(shares, axis=0) / np.arange(1, len(shares) + 1)[:, None, None]


BASELINES: dict[str, Callable[[Floats], Floats]] = {
    "last window": lambda shares: shares,
    "mean of all": mean_of_all,
    "smoothed, 0.3": lambda shares: smoothed(shares, 0.3),
    "smoothed, 0.5": lambda shares: smoothed(shares, 0.5),
    "smoothed, 0.7": lambda shares: smoothed(shares, 0.7),
}


def error(forecast: Floats, shares: Floats, at: list[int], ahead: list[int]) -> float:
    """Mean over windows `at`, each forecast for 1 .. `ahead` windows on."""
    each = [
        np.abs(forecast[index] - shares[index + 1 : index + 1 + most]).sum(axis=-1).mean()
        for index, most in zip(at, ahead, strict=True)
    ]
    return float(np.mean(each)) if each else float("nan")


def errors(tokens: Floats) -> None:
    """Print the table of errors."""
    print(
        f"{'samples':>7} {'forecast':>14} {'next, early':>12} {'next, late':>11} {'life, early':>12} {'life, late':>11}"
    )
    for samples in (1, 2, 5, 10, 25):
        windows = windows_of(tokens, samples)
        shares = np.array([window_shares(window) for window in windows])
        found = forecasts_of(windows)
        lives = [int(min(HORIZON_WINDOWS, max(1.0, each.horizon_steps / (samples * STEPS)))) for each in found]
        tenth, last = max(2, len(windows) // 10), len(windows) - 1
        early, late = list(range(1, tenth)), list(range(tenth, last))
        ways = {"trimtab": np.array([each.array for each in found])}
        ways |= {name: way(shares) for name, way in BASELINES.items()}
        for name, forecast in ways.items():
            cells = [error(forecast, shares, part, [1] * len(part)) for part in (early, late)]
            cells += [error(forecast, shares, part, [lives[at] for at in part]) for part in (early, late)]
            print(f"{samples:>7} {name:>14} " + " ".join(f"{cell:>11.4f}" for cell in cells))


def calibration(tokens: Floats) -> None:
    """Print how often errors stay within what was said."""
    print(
        "\nuncertainty: parts of layers and windows with squared error below 1, 2, 4 times the variance; error / said"
    )
    for samples in (1, 5, 10):
        windows = windows_of(tokens, samples)
        found = forecasts_of(windows)
        said = np.array([each.variances for each in found[1:-1]])
        came = np.array([window_shares(window) for window in windows[2:]])
        missed = np.square(np.array([each.array for each in found[1:-1]]) - came).sum(axis=-1)
        parts = [float((missed <= factor * said).mean()) for factor in (1, 2, 4)]
        print(f"{samples:>7} " + " ".join(f"{part:>7.3f}" for part in parts) + f" {missed.sum() / said.sum():>7.3f}")


def lives(tokens: Floats, ranks: int = 8, extra_slots: int = 1) -> tuple[float, float, int]:
    """(part of the steps said for which a placement was better, part of the moves that paid, moves)."""
    context = replay_context(tokens, 2, resolve_cluster(cluster_from_shorthand("1x8:a100-sxm-80g")), ranks, extra_slots)
    pricing, state, plan = Pricing(context), begin(context), context.plans[0]
    windows = windows_of(tokens, 1)
    held, paid = [], []
    for index, window in enumerate(windows):
        before = state.placement
        decision, state = decide_at(pricing, window, state)
        until = min(len(windows), index + 1 + max(1, round(decision.horizon_steps / STEPS)))
        if not decision.moves or before is None or decision.placement is None or until == index + 1:
            continue
        old, new = seats_of(before), seats_of(decision.placement)
        shares = [window_shares(each) for each in windows[index + 1 : until]]
        seconds = [
            [price.seconds for price in pricing.steps(plan, [(load, seats) for load in shares])] for seats in (old, new)
        ]
        gains = np.subtract(*seconds)
        held.append(float((gains > 0).mean()))
        paid.append(float(gains.sum() * STEPS > decision.cost_s))
    return float(np.mean(held)), float(np.mean(paid)), len(held)


def rows() -> list[Row]:
    """For the table of all benchmarks."""
    if not TRACE.exists():
        return [Row("forecast on the trace", "", f"no trace at {TRACE.name}", None)]
    with np.load(TRACE) as trace:
        held, paid, moves = lives(trace["tokens"])
    return [
        Row(
            "trace, 8 ranks, 1 extra slot: steps of the said life for which a placement was better",
            "",
            f"{held:.2f}",
            None,
        ),
        Row(
            f"the same: of {moves} times that experts moved, part that paid within the said life",
            "",
            f"{paid:.2f}",
            None,
        ),
    ]


if __name__ == "__main__":
    if TRACE.exists():
        with np.load(TRACE) as trace:
            errors(trace["tokens"])
            calibration(trace["tokens"])
    print()
    show(rows())
