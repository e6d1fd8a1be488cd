"""The online stage: forecast, placement, policy; pure functions of windows and state.

`begin` makes the state of a run, `decide` answers each window with a decision and the next state, `replay` tries the
policy on recorded loads.
"""

from planner.online.policy import decide
from planner.online.replay import replay, replay_context
from planner.online.state import RunState, begin

__all__ = ["RunState", "begin", "decide", "replay", "replay_context"]
