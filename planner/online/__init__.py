"""The online stage: forecast, placement, policy; pure functions of windows and state.

`begin` makes the state of a run, `decide` answers each window with a decision and the next state.
"""

from planner.online.policy import decide
from planner.online.state import RunState, begin

__all__ = ["RunState", "begin", "decide"]
