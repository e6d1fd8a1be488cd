"""News of searches for all who listen in this process: one look at the store serves them all, however many they are."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator

from fastapi.concurrency import run_in_threadpool

from api.search_store import Mark, SearchStore
from api.values import Search

log = logging.getLogger(__name__)


class SearchNews:
    """Looks every `period_s` as long as somebody listens. Lives in one event loop."""

    def __init__(self, store: SearchStore, period_s: float) -> None:
        self._store = store
        self._period_s = period_s
        self._listeners: Counter[str] = Counter()
        self._marks: dict[str, Mark] = {}
        self._latest: dict[str, Search] = {}
        self._looked = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def of(self, search: Search) -> AsyncGenerator[Search, None]:
        """The search after each look, changed or not, without end."""
        self._listeners[search.id] += 1
        try:
            while True:
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.create_task(self._look_on())
                await self._looked.wait()
                yield self._latest.get(search.id, search)
        finally:
            self._listeners[search.id] -= 1
            if not self._listeners[search.id]:
                for kept in (self._listeners, self._marks, self._latest):
                    kept.pop(search.id, None)

    async def _look_on(self) -> None:
        while self._listeners:
            await asyncio.sleep(self._period_s)
            try:
                await self._look()
            except Exception:  # whatever it is, listeners must not hang
                log.exception("listeners to searches hear nothing for a moment")
            finally:
                looked, self._looked = self._looked, asyncio.Event()
                looked.set()

    async def _look(self) -> None:
        marks = await run_in_threadpool(self._store.marks, tuple(self._listeners))
        changed = [search_id for search_id, mark in marks.items() if self._marks.get(search_id) != mark]
        found = await run_in_threadpool(self._store.searches, changed) if changed else ()
        for search in found:
            if search.id in self._listeners:
                self._latest[search.id], self._marks[search.id] = search, marks[search.id]
