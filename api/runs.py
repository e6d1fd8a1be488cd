"""Training jobs: how one begins, and how a window becomes a decision that is kept exactly once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import NamedTuple

from api.run_store import RunStore, Standing
from api.search_store import SearchStore
from planner.online import Pricing, begin, decide_at
from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError, NotFoundError
from planner.spec.run import Run, RunContext, RunRequest
from planner.spec.shortlist import Shortlist
from planner.spec.window import Window

OnDecision = Callable[[Action, float], None]
RUNS_AT_HAND = 64
"""Runs that are kept in memory, each with its prices and its last state: some megabytes."""


class Decided(NamedTuple):
    """The answer to a window."""

    decision: Decision
    is_repeated: bool
    """It was given before, for a window of this index."""


@dataclass(frozen=True)
class _AtHand:
    """A run as this process knows it; true as long as the store has the same version."""

    standing: Standing
    pricing: Pricing

    def precedes(self, window: Window) -> bool:
        """Whether the window is newer than all that were answered, so that it cannot be one of them."""
        last = self.standing.state.last_window
        return last is None or window.index > last


class Runs:
    """The online stage over the store. Clock and ids come from outside.

    Runs that were asked about last stay in memory, beside the store. Any number of processes may serve one store: it
    keeps nothing of whoever decided on an old version, and then the run is read anew.
    """

    def __init__(
        self,
        searches: SearchStore,
        store: RunStore,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        on_decision: OnDecision = lambda action, seconds: None,
    ) -> None:
        """`on_decision` hears of each new decision, and after how many seconds it was kept."""
        self._searches = searches
        self._store = store
        self._now = now
        self._new_id = new_id
        self._on_decision = on_decision
        self._at_hand: OrderedDict[str, _AtHand] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, request: RunRequest) -> Run:
        """A new run on the shortlist of its search; raises InputError, and ConflictError without shortlist."""
        context = self._context(request)
        plan_id = request.plan_id or context.plans[0].id
        if plan_id not in {plan.id for plan in context.plans}:
            raise InputError.at("plan_id", f"must be a plan of the shortlist of search {request.search_id}")
        state = begin(context, plan_id)
        run = Run(
            id=self._new_id(),
            name=request.name,
            search_id=request.search_id,
            created_at=self._now(),
            plan_id=plan_id,
            placement=state.placement,
            context=context,
        )
        self._store.begin(run, state)
        return run

    def decide(self, run_id: str, window: Window) -> Decided:
        """The decision for a window: the one that was made before, if the index was there before.

        Deciding happens outside any transaction; whoever finds that the run has moved on meanwhile decides again, so
        each decision knows all that were made before it.
        """
        began = monotonic()
        with self._lock:
            known = self._at_hand.get(run_id)
        while True:
            if known is None or not known.precedes(window):
                version, earlier = self._store.answered(run_id, window.index)
                if earlier is not None:
                    return Decided(earlier, is_repeated=True)
                known = self._known(run_id, version)
                if known.standing.version != version:
                    continue
            standing = known.standing
            decision, state = decide_at(known.pricing, window, standing.state)
            if self._store.record(run_id, standing.version, window, decision, state):
                self._keep(run_id, _AtHand(Standing(standing.context, state, standing.version + 1), known.pricing))
                self._on_decision(decision.action, monotonic() - began)
                return Decided(decision, is_repeated=False)
            known = None

    def _known(self, run_id: str, version: int) -> _AtHand:
        """The run as it stood at `version`, or as it stands in the store by now; raises NotFoundError."""
        with self._lock:
            found = self._at_hand.get(run_id)
        if found is None:
            standing = self._store.standing(run_id)
            found = _AtHand(standing, Pricing(standing.context))
        elif found.standing.version != version:
            found = _AtHand(self._store.standing(run_id), found.pricing)
        self._keep(run_id, found)
        return found

    def _keep(self, run_id: str, found: _AtHand) -> None:
        with self._lock:
            self._at_hand[run_id] = found
            self._at_hand.move_to_end(run_id)
            while len(self._at_hand) > RUNS_AT_HAND:
                self._at_hand.popitem(last=False)

    def _context(self, request: RunRequest) -> RunContext:
        try:
            conditions = self._searches.conditions(request.search_id)
        except NotFoundError as error:
            raise InputError.at("search_id", str(error)) from None
        shortlist = self._searches.shortlist(request.search_id)
        if not isinstance(shortlist, Shortlist):
            raise InputError.at("search_id", f"this search failed: {shortlist.detail}")
        return RunContext(
            model=conditions.model,
            cluster=conditions.cluster,
            training=conditions.training,
            plans=tuple(entry.plan for entry in shortlist.plans),
            extra_slots_per_rank=request.extra_slots_per_rank,
            shadow_slots_per_rank=request.shadow_slots_per_rank,
            token_split=request.token_split,
        )
