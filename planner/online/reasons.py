"""Why a decision was taken: one sentence with its numbers."""

from __future__ import annotations

import numpy as np

from planner.online.calibration import Calibration
from planner.online.candidates import Candidate
from planner.spec.decision import Action

NOTHING_FASTER = "nothing to gain: no placement that was found makes the step faster under the expected load"
ONE_RANK = "nothing to balance: the plan has no expert parallelism, every device holds all experts"
UNEQUAL_RANKS = "nothing to move: MoE layers of this plan differ in expert-parallel size, no one placement fits them"

NOTHING_FITS = "; what is in force does not fit in memory under the expected load, and nothing that was found does"


def late(index: int, last: int) -> str:
    """A window that is not newer than what was counted."""
    return f"window {index} comes after window {last}: it changes nothing"


def act(chosen: Candidate, account_s: float) -> str:
    """A move that is made: because it is expected to pay, or because of what was lost without it."""
    offer = f"{_what(chosen)} saves {_seconds(chosen.gain_s)} a step and costs {_cost(chosen)}"
    payback = chosen.cost_s / chosen.gain_s
    if chosen.net_s > 0 or chosen.cost_s == 0.0:
        return (
            f"{offer}: paid back after {_steps(payback)}, and the gain is expected to last {_steps(chosen.life_steps)}"
        )
    return (
        f"{offer}: the gain is expected to last {_steps(chosen.life_steps)} and to pay it back only after "
        f"{_steps(payback)}, but waiting has cost so much that {_seconds(account_s)} may be spent, "
        f"{_number(account_s / chosen.cost_s)} times the cost"
    )


def remedy(chosen: Candidate) -> str:
    """A move that is made for the sake of memory, whatever the time it takes."""
    change = "saves" if chosen.gain_s >= 0 else "loses"
    return (
        f"what is in force does not fit in memory under the expected load: {_what(chosen)} fits, "
        f"{change} {_seconds(abs(chosen.gain_s))} a step and costs {_cost(chosen)}"
    )


def not_yet(best: Candidate, account_s: float, advance_s: float) -> str:
    """A move that is not made, now."""
    offer = f"{_what(best)} would save {_seconds(best.gain_s)} a step and cost {_cost(best)}"
    if best.net_s <= 0:
        return f"{offer}: not paid back within the {_steps(best.life_steps)} that the gain is expected to last"
    return (
        f"{offer}: worth it if the gain lasts, but of what was lost so far only {_seconds(max(0.0, account_s))} may be "
        f"spent; waits for {_seconds(advance_s)}"
    )


def clock(calibration: Calibration) -> str:
    """In which seconds gains are told, where these are not those of the predictions; or why they are."""
    ratio, measured = calibration
    if measured is None:
        return ""
    if ratio != measured:
        return (
            f"; measured steps take {_number(measured)} times as long as predicted, so model or cluster are not those "
            "of this job, and gains are told as predicted"
        )
    return f"; gains are scaled to this job, whose steps take {_number(ratio)} times as long as predicted"


def _what(candidate: Candidate) -> str:
    if candidate.action is Action.SWITCH_PLAN:
        return f"switching to plan {candidate.plan.summary}"
    if not candidate.num_moves and candidate.refilled:
        return f"changing what {_count(candidate.refilled, 'shadow slot')} hold"
    if not candidate.num_moves:
        return "splitting the tokens of replicas anew"
    layers = len(set(candidate.copies.layer.tolist())) if candidate.copies else 0
    return f"moving {_count(candidate.num_moves, 'expert')} in {_count(layers, 'layer')}"


def _cost(candidate: Candidate) -> str:
    standstill = candidate.standstill
    if standstill is None:
        return _seconds(candidate.cost_s)
    source = "measured" if standstill.measured else "assumed"
    if not candidate.transfer_s:
        return f"{_seconds(candidate.cost_s)} ({source})"
    return f"{_seconds(candidate.cost_s)} ({_seconds(standstill.seconds)} of it standstill, {source})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _steps(value: float) -> str:
    number = _number(value)
    return "less than a step" if value < 1.0 else f"{number} step" if number == "1" else f"{number} steps"


def _seconds(value: float) -> str:
    if value >= 1.0 or value == 0.0:
        return f"{_number(value)} s"
    return f"{_number(value * 1e3)} ms" if value >= 1e-3 else f"{_number(value * 1e6)} us"


def _number(value: float) -> str:
    """Three digits that mean something, and never as a power of ten: 1,750; 40.2; 0.0001."""
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 100.0:
        return f"{rounded:,.0f}"
    return np.format_float_positional(rounded, trim="-")
