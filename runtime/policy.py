"""The same policy as the service's, run beside the training: for the time when the service is away."""

from __future__ import annotations

from collections.abc import Callable

from planner.online import begin, decide
from planner.spec.decision import Decision
from planner.spec.run import Run
from planner.spec.window import Window

Policy = Callable[[Window], Decision]
"""Answers the windows of one run, in order; remembers what it needs."""


def local_policy(run: Run) -> Policy:
    """The policy of `planner.online` for this run, from its beginning."""
    state = begin(run.context, run.plan_id)

    def answer(window: Window) -> Decision:
        nonlocal state
        decision, state = decide(window, state, run.context)
        return decision

    return answer
