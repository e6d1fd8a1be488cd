"""Delivers windows to the service and fetches decisions, off the training thread. Lives on rank 0 of a job.

Two daemon threads: one posts the windows, in order, one at a time; the other waits for the local policy, which thinks
about the same windows in a process of its own. A window that could not be delivered stays in a bounded queue and is
posted later. The training thread only calls `submit` and `answer`, and neither waits.

What the service does is told once when it changes, not for each window: it is *away* (does not answer, or answers
garbage), *does not let us in* (our token was revoked, say), has *no run for us*, decides what *does not fit* this job,
has windows of *another job* in our run, or is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum

from planner.spec.decision import Decision
from planner.spec.errors import ForbiddenError, InputError, UnavailableError
from planner.spec.run import Run
from planner.spec.window import Window
from runtime.client import Attachment, PlannerService
from runtime.joining import check_decision
from runtime.policy import Policy, Thinker

logger = logging.getLogger("trimtab.agent")

MAX_WINDOWS_KEPT = 1000
"""Windows that wait for a service that is away; the oldest are given up first."""
MAX_COUNTS_KEPT = 4_000_000
"""Token counts and slots in these windows, at up to 36 bytes each in Python: 140 MB."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Between two attempts to reach a service that is away; doubles each time."""
LONGEST_PAUSE_ASKED_S = 600.0
"""A service that asks for a longer pause (Retry-After) gets this one."""


class Trouble(Enum):
    """What is wrong with the service."""

    AWAY = "is away"
    CLOSED = "does not let us in"
    REFUSED = "has no run for us"
    MISFIT = "decides what does not fit this job"
    SHARED = "has windows of another job in our run"


class Courier:
    """One run's windows on their way out, and its decisions on their way in."""

    def __init__(
        self, service: PlannerService, find_run: Callable[[], Attachment], policy_for: Callable[[Run], Policy]
    ) -> None:
        """`find_run` finds or begins the run; it is called in the background until it has succeeded once."""
        self._service = service
        self._find_run = find_run
        self._policy_for = policy_for
        self._attachment: Attachment | None = None
        self._first_attempt: Future[Attachment] = Future()
        self._thinker: Thinker | None = None
        self._waiting: deque[Window] = deque()
        self._counts_waiting = 0
        self._answer: tuple[int, Decision] | None = None  # index as the job counts
        self._changed = threading.Condition()
        self._closing = False
        self._last_attempt = False  # begun after `close`
        self._posted: Window | None = None  # the last one that may have arrived
        self._trouble: Trouble | None = None
        self._pause_s = FIRST_PAUSE_S
        self._thread = self._started()

    def attach(self) -> Attachment:
        """Wait for the first attempt to find the run; raises InputError, or UnavailableError: later may be better."""
        return self._first_attempt.result()

    def submit(self, window: Window) -> None:
        """Take over a window, numbered from the begin of this job; answers to earlier windows are forgotten."""
        if not self._thread.is_alive() and not self._closing:
            logger.error("the thread that delivers windows has died; another one takes over")
            self._thread = self._started()
        with self._changed:
            self._answer = None
            if self._thinker is not None:
                self._thinker.submit(window)
            self._waiting.append(window)
            self._counts_waiting += _counts(window)
            while len(self._waiting) > 1 and (
                len(self._waiting) > MAX_WINDOWS_KEPT or self._counts_waiting > MAX_COUNTS_KEPT
            ):
                logger.warning("window %d was never delivered: too many wait", self._waiting[0].index)
                self._forget_first()
            self._changed.notify()

    def answer(self, window: Window, early: bool = False) -> tuple[Decision, str] | None:
        """What the service decided for the window last submitted, else what the local policy did; None: neither yet.

        `early`: there is time to hear from a service with which nothing is wrong, so the local policy is not asked.
        """
        with self._changed:
            if self._answer is not None and self._answer[0] == window.index:
                return self._answer[1], "service"
            thinker, attachment = self._thinker, self._attachment
        if thinker is None or attachment is None or (early and self._trouble is None):
            return None
        decision = thinker.decision(window.index + attachment.next_index)
        return None if decision is None else (decision, "local policy")

    def close(self, timeout_s: float) -> None:
        """Deliver what can still be delivered within the time, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thinker is not None:
            self._thinker.close()
        with self._changed:
            if self._waiting:
                logger.warning("%d windows were not delivered", len(self._waiting))

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="trimtab-courier", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        if not self._first_attempt.done():
            self._attempt_first()
        while (window := self._next_window()) is not None:
            try:
                self._deliver(window)
            except UnavailableError as error:
                self._note(Trouble.AWAY, error)
                self._pause(error.retry_after_s)
            except ForbiddenError as error:
                self._note(Trouble.CLOSED, error)
                self._pause(0.0)
            except InputError as error:
                self._note(Trouble.REFUSED, error)
                self._pause(0.0)
            except Exception:
                # Whatever it is, it must not end the delivery, and never the training.
                logger.exception("window %d is given up", window.index)
                self._done_with(window)

    def _attempt_first(self) -> None:
        try:
            self._first_attempt.set_result(self._attach())
        except UnavailableError as error:
            self._trouble = Trouble.AWAY  # whoever waits for the first attempt tells it
            self._first_attempt.set_exception(error)
        except BaseException as error:  # whoever waits must hear of it
            self._first_attempt.set_exception(error)

    def _attach(self) -> Attachment:
        attachment = self._find_run()
        thinker = Thinker(self._policy_for(attachment.run), self._numbered)
        with self._changed:
            self._attachment, self._thinker = attachment, thinker
        return attachment

    def _numbered(self, window: Window) -> Window:
        """The window as the run counts: a job that attaches to a run goes on after what the run has seen."""
        attachment = self._attachment
        assert attachment is not None
        return window.model_copy(
            update={
                "index": window.index + attachment.next_index,
                "first_step": window.first_step + attachment.next_step,
                "placed_step": None if window.placed_step is None else window.placed_step + attachment.next_step,
                "plan_id": window.plan_id or attachment.plan_id,
                "placement": window.placement or attachment.placement,
            }
        )

    def _next_window(self) -> Window | None:
        """Wait for a window that can be delivered; None: the job ends, and there is none."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting or (
                self._last_attempt and self._trouble in (Trouble.AWAY, Trouble.CLOSED, Trouble.REFUSED)
            ):
                return None
            self._last_attempt = self._closing
            return self._waiting[0]

    def _deliver(self, window: Window) -> None:
        """One attempt; raises UnavailableError to be repeated, InputError if there is still no run to report to."""
        attachment = self._attachment or self._attach()
        numbered = self._numbered(window)
        is_first, self._posted = self._posted is not window, window
        try:
            decision, is_repeated = self._service.post_window(attachment.run.id, numbered)
        except InputError as error:
            logger.warning("given up: %s", error)
            self._done_with(window)
            return
        self._done_with(window)
        if is_repeated and is_first:
            what = (
                f"window {numbered.index} of run {attachment.run.name!r} was there already: each job needs its own run"
            )
            self._note(Trouble.SHARED, InputError.at("run", what))
            return
        try:
            check_decision(decision, numbered, attachment.run.context)
        except InputError as error:
            self._note(Trouble.MISFIT, error)
            return
        with self._changed:
            self._answer = (window.index, decision)
        self._note_well()

    def _done_with(self, window: Window) -> None:
        self._pause_s = FIRST_PAUSE_S
        with self._changed:
            if self._waiting and self._waiting[0] is window:
                self._forget_first()

    def _forget_first(self) -> None:
        self._counts_waiting -= _counts(self._waiting.popleft())

    def _note(self, trouble: Trouble, error: Exception) -> None:
        """Log what is new."""
        if self._trouble is not trouble:
            logger.warning("the planner service %s (%s); training goes on", trouble.value, error)
        self._trouble = trouble

    def _pause(self, asked_s: float) -> None:
        """Wait before the next attempt; a job that ends makes one more at once, no second."""
        until = time.monotonic() + max(self._pause_s, min(asked_s, LONGEST_PAUSE_ASKED_S))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        with self._changed:
            while not self._closing and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _note_well(self) -> None:
        if self._trouble:
            logger.warning("the planner service is back; windows that waited are delivered")
        self._trouble = None


def _counts(window: Window) -> int:
    slots = 0 if window.placement is None else sum(map(len, window.placement.layers))
    return slots + sum(map(len, window.tokens))
