"""Delivers windows to the service and fetches decisions, off the training thread. Lives on rank 0 of a job.

Two background threads: one posts the windows, in order, one at a time; the other lets the local policy answer the same
windows. A window that could not be delivered stays in a bounded queue and is posted later. The training thread only
calls `submit` and `answer`, and neither waits.

A service that does not answer, or answers garbage, is *away*; that is logged once, and once more when it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum

from planner.spec.decision import Decision
from planner.spec.errors import InputError, TrimtabError, UnavailableError
from planner.spec.run import Run
from planner.spec.window import Window
from runtime.client import Attachment, PlannerService
from runtime.policy import Policy

logger = logging.getLogger("trimtab.agent")

MAX_WINDOWS_KEPT = 1000
"""Windows that wait for a service that is away; the oldest are given up first."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Between two attempts to reach a service that is away; doubles each time."""


class Trouble(Enum):
    """Why windows cannot be delivered."""

    AWAY = "is away"
    REFUSED = "has no run for us"


class Courier:
    """One run's windows on their way out, and its decisions on their way in."""

    def __init__(
        self, service: PlannerService, attach: Callable[[], Attachment], policy_for: Callable[[Run], Policy]
    ) -> None:
        """`attach` finds or begins the run; it is called by `attach` here, and again until it has succeeded once."""
        self._service = service
        self._find_run = attach
        self._policy_for = policy_for
        self._attachment: Attachment | None = None
        self._policy: Policy | None = None
        self._waiting: deque[Window] = deque()
        self._answers: dict[int, Decision] = {}
        self._local: dict[int, Future[Decision]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._last_attempt = False  # begun after `close`
        self._trouble: Trouble | None = None
        self._pause_s = FIRST_PAUSE_S
        self._thinker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trimtab-policy")
        self._thread: threading.Thread | None = None

    def attach(self) -> Attachment:
        """Ask the service for the run, and wait for it; raises InputError, or UnavailableError: later may be better."""
        try:
            attachment = self._find_run()
        except UnavailableError:
            self._trouble = Trouble.AWAY
            raise
        policy = self._policy_for(attachment.run)
        with self._changed:
            self._attachment, self._policy = attachment, policy
        return attachment

    def submit(self, window: Window) -> None:
        """Take over a window, numbered from the begin of this job; answers to earlier windows are forgotten."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver_all, name="trimtab-courier", daemon=True)
            self._thread.start()
        with self._changed:
            self._answers.clear()
            self._local.clear()
            if self._policy is not None:
                self._local[window.index] = self._thinker.submit(self._policy, self._numbered(window))
            if len(self._waiting) == MAX_WINDOWS_KEPT:
                logger.warning("window %d was never delivered: too many wait", self._waiting.popleft().index)
            self._waiting.append(window)
            self._changed.notify()

    def answer(self, window: Window) -> tuple[Decision, str] | None:
        """What the service decided for the window last submitted, else what the local policy did; None: neither yet."""
        with self._changed:
            decision, local = self._answers.get(window.index), self._local.get(window.index)
        if decision is not None:
            return decision, "service"
        if local is None or not local.done():
            return None
        error = local.exception()
        if error is not None:
            logger.warning("the local policy could not answer window %d: %s", window.index, error)
            return None
        return local.result(), "local policy"

    def close(self, timeout_s: float) -> None:
        """Deliver what can still be delivered within the time, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            self._service.close()
        else:
            self._thread.join(timeout_s)
        self._thinker.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            if self._waiting:
                logger.warning("%d windows were not delivered", len(self._waiting))

    def _numbered(self, window: Window) -> Window:
        """The window as the run counts: a job that attaches to a run goes on after what the run has seen."""
        attachment = self._attachment
        assert attachment is not None
        return window.model_copy(
            update={
                "index": window.index + attachment.next_index,
                "first_step": window.first_step + attachment.next_step,
                "plan_id": window.plan_id or attachment.plan_id,
                "placement": window.placement or attachment.placement,
            }
        )

    def _deliver_all(self) -> None:
        while (window := self._next_window()) is not None:
            try:
                self._deliver(window)
            except UnavailableError as error:
                self._wait_out(Trouble.AWAY, error)
            except InputError as error:
                self._wait_out(Trouble.REFUSED, error)
            except Exception:
                # Whatever it is, it must not end the delivery, and never the training.
                logger.exception("window %d is given up", window.index)
                self._done_with(window)
            else:
                self._note_well()
        self._service.close()

    def _next_window(self) -> Window | None:
        """Wait for a window that can be delivered; None: the job ends, and there is none."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting or (self._last_attempt and self._trouble):
                return None
            self._last_attempt = self._closing
            return self._waiting[0]

    def _deliver(self, window: Window) -> None:
        """One attempt; raises UnavailableError to be repeated, InputError if there is still no run to report to."""
        attachment = self._attachment or self.attach()
        numbered = self._numbered(window)
        try:
            decision = self._service.post_window(attachment.run.id, numbered)
        except InputError as error:
            logger.warning("given up: %s", error)
        else:
            check_answer(decision, numbered)
            with self._changed:
                self._answers[window.index] = decision
        self._done_with(window)

    def _done_with(self, window: Window) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is window:
                self._waiting.popleft()

    def _wait_out(self, trouble: Trouble, error: TrimtabError) -> None:
        """Log what is new, and pause before the next attempt; a job that ends makes one more at once, no second."""
        if self._trouble is not trouble:
            logger.warning("the planner service %s (%s); training goes on", trouble.value, error)
        self._trouble = trouble
        until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        with self._changed:
            while not self._closing and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())

    def _note_well(self) -> None:
        if self._trouble:
            logger.warning("the planner service is back; windows that waited are delivered")
        self._trouble = None
        self._pause_s = FIRST_PAUSE_S


def check_answer(decision: Decision, window: Window) -> None:
    """Raises UnavailableError if a decision cannot belong to this window."""
    if decision.window != window.index:
        raise UnavailableError(f"the answer is for window {decision.window}, not {window.index}")
    if decision.placement is None:
        return
    wanted, given = [len(row) for row in window.tokens], [max(slots) + 1 for slots in decision.placement.layers]
    if wanted != given:
        raise UnavailableError(f"the answer places {given} experts by layer, the model has {wanted}")
