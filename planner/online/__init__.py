"""The online stage: forecast, placement, policy; pure functions of windows and state.

`begin` makes the state of a run, `decide` answers each window with a decision and the next state (`decide_at` with
prices that are kept between windows), `replay` tries the policy, and those of others, on a recorded trace.
"""

from planner.online.policy import decide, decide_at
from planner.online.pricing import Pricing
from planner.online.recorded.job import replay_context
from planner.online.recorded.replay import replay
from planner.online.recorded.trace import Trace, trace_of
from planner.online.state import RunState, begin

__all__ = ["Pricing", "RunState", "Trace", "begin", "decide", "decide_at", "replay", "replay_context", "trace_of"]
