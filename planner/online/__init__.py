"""The online stage: forecast, placement, policy; pure functions of windows and state.

`begin` makes the state of a run, `decide` answers each window with a decision and the next state (`decide_at` with
prices that are kept between windows), `replay` tries the policy on recorded loads.
"""

from planner.online.policy import decide, decide_at
from planner.online.pricing import Pricing
from planner.online.replay import replay, replay_context
from planner.online.state import RunState, begin

__all__ = ["Pricing", "RunState", "begin", "decide", "decide_at", "replay", "replay_context"]
