"""Old windows: their token counts are removed, in small bites, by one of the services on a database at a time.

Decisions stay, so an index that comes again gets the decision that it got before; searches, plans and runs stay too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, or_, select, update

from api.database import Database
from api.tables import ChoreRow, WindowRow

log = logging.getLogger(__name__)
CHORE = "old windows"
BITE = 50
"""Windows that are removed in one transaction: some megabytes, some milliseconds."""
PAUSE_S = 0.2
"""Between bites, for those who report: 250 windows a second go at most, more than come in."""
PERIOD_S = 60.0
"""Between looks where nothing is old."""
END_S = 2.0
"""What a bite gets when the service ends; one that is not whole is undone."""
TURN_S = 120.0
"""How long a service has the chore for itself after its last bite."""


class OldWindows:
    """The windows of a database that are older than `keep_days`. Each method is one transaction."""

    def __init__(self, database: Database, now: Callable[[], datetime], holder: str, keep_days: float) -> None:
        self._database = database
        self._now = now
        self._holder = holder
        self._keep = timedelta(days=keep_days)

    def any(self) -> bool:
        """Whether there is one; reading locks nobody out."""
        with self._database.reading() as session:
            return session.scalar(select(WindowRow.number).where(self._old()).limit(1)) is not None

    def remove_some(self) -> int:
        """Remove at most `BITE` of them; how many. 0 where another service is at it."""
        with self._database.writing(alone=False) as session:
            now = self._now()
            free = or_(ChoreRow.holder == self._holder, ChoreRow.lease_until.is_(None), ChoreRow.lease_until < now)
            taken = (
                update(ChoreRow)
                .where(ChoreRow.name == CHORE, free)
                .values(holder=self._holder, lease_until=now + timedelta(seconds=TURN_S))
                .returning(ChoreRow.name)
            )
            if session.execute(taken).scalar() is None:
                return 0
            oldest = select(WindowRow.number).where(self._old()).order_by(WindowRow.received_at).limit(BITE)
            numbers = session.scalars(oldest).all()
            if numbers:
                session.execute(delete(WindowRow).where(WindowRow.number.in_(numbers)))
            return len(numbers)

    def _old(self) -> ColumnElement[bool]:
        return WindowRow.received_at < self._now() - self._keep


class Retention:
    """Removes old windows in the background while the service lives."""

    def __init__(self, windows: OldWindows, on_removed: Callable[[int], None]) -> None:
        """`on_removed` hears how many windows each bite took."""
        self._windows = windows
        self._on_removed = on_removed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trimtab-retention", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the bite that is being taken; one that waits for the database for long is left to it."""
        self._closing.set()
        self._thread.join(END_S)

    def _work(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            try:
                removed = self._windows.remove_some() if self._windows.any() else 0
            except Exception:  # what is old today is old in a minute too, and nobody else would remove it
                log.exception("old windows could not be removed; the next look is in %g s", PERIOD_S)
                removed = 0
            if removed:
                self._on_removed(removed)
            pause_s = PAUSE_S if removed == BITE else PERIOD_S
