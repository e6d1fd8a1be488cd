"""What a picture of a run is drawn from, read from the store in bounded pieces."""

from __future__ import annotations

from api.run_store import RunStore
from planner.view import Life, Mark, life_of, mark_of
from planner.view.run_life import spread

MOST_DECISIONS = 1_000
"""Of the latest windows; with 58 layers of 256 experts, all of them moved each time, reading so many takes 4 s."""
MOST_WINDOWS = 96
"""Whose loads are drawn."""
_PAGE = 50


def life(store: RunStore, run_id: str) -> Life:
    """The latest windows of a run that are kept, with their decisions, and the loads of some; raises NotFoundError."""
    run, indices = store.run(run_id), store.window_indices(run_id)
    latest = indices[-MOST_DECISIONS:]
    marks = _marks(store, run_id, latest) if latest else []
    windows = store.windows_at(run_id, spread(latest, MOST_WINDOWS))
    return life_of(run.name, run.context, run.plan_id, store.num_decisions(run_id), marks, windows)


def _marks(store: RunStore, run_id: str, latest: tuple[int, ...]) -> list[Mark]:
    """Of these windows; those that come in meanwhile are left out."""
    wanted, marks = set(latest), list[Mark]()
    after = latest[0] - 1 if latest[0] else None
    while decisions := store.decisions(run_id, _PAGE, after):
        marks += [mark_of(decision) for decision in decisions if decision.window in wanted]
        after = decisions[-1].window
    return marks
