"""Training jobs: how one begins. How its windows are answered is for `api.decider`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from api.run_store import RunStore
from api.search_store import SearchStore
from planner.online import begin
from planner.spec.errors import InputError, NotFoundError
from planner.spec.run import Run, RunContext, RunRequest
from planner.spec.shortlist import Shortlist


class Runs:
    """Runs on the shortlists of searches. Clock and ids come from outside."""

    def __init__(
        self, searches: SearchStore, store: RunStore, now: Callable[[], datetime], new_id: Callable[[], str]
    ) -> None:
        self._searches = searches
        self._store = store
        self._now = now
        self._new_id = new_id

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

    def _context(self, request: RunRequest) -> RunContext:
        try:
            conditions = self._searches.conditions(request.search_id)
        except NotFoundError as error:
            raise InputError.at("search_id", str(error)) from None
        if not conditions.model.moe_layers:
            raise InputError.at("search_id", "must be a search for a model with experts: a run decides where they are")
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
