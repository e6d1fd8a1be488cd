"""Measured profiles under the names that clients gave them. Each method is one transaction; all SQL about them is here.

A search keeps the numbers that it resolved when it was asked for; a profile that changes later changes no search.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.database import Database
from api.tables import ProfileRow
from api.values import ProfileEntry
from planner.spec.errors import ConflictError, InputError, NotFoundError, PreconditionError, TooLargeError
from planner.spec.value import content_id
from profiles.catalogue import is_known
from profiles.devices import MeasuredProfile

MAX_PROFILE_BYTES = 2 * 2**20
"""Of one as JSON; with as many samples as a profile may have it is about a fifth of that."""
Accepts = Callable[[str | None], bool]
"""Whether a change may go on: hears the tag of what is there, None for nothing."""


class Kept(NamedTuple):
    """What is there now."""

    entry: ProfileEntry
    is_new: bool
    """Nothing had its name before."""


class ProfileStore:
    """Profiles in order of their names. Times come from outside."""

    def __init__(self, database: Database, now: Callable[[], datetime], max_profiles: int) -> None:
        self._database = database
        self._now = now
        self._max_profiles = max_profiles

    def put(self, name: str, profile: MeasuredProfile, accepts: Accepts = lambda tag: True) -> Kept:
        """Keep a profile, in place of the one that has the name.

        Raises InputError for the name of a preset, TooLargeError, ConflictError where too many are there, and
        PreconditionError where what is there is not accepted.
        """
        if is_known("hardware", name):
            raise InputError.at("path.name", f"{name!r} names a device preset; give the profile a name of its own")
        if len(profile.model_dump_json()) > MAX_PROFILE_BYTES:
            raise TooLargeError(f"the profile is larger than {MAX_PROFILE_BYTES} bytes; leave out samples")
        try:
            return self._put(name, profile, accepts)
        except IntegrityError:  # somebody else has just made the first of this name; now there is one to replace
            return self._put(name, profile, accepts)

    def _put(self, name: str, profile: MeasuredProfile, accepts: Accepts) -> Kept:
        tag = content_id(profile.model_dump(mode="json"))
        with self._database.writing() as session:
            row = _row(session, name, to_change=True)
            _check(name, row, accepts)
            is_new = row is None
            if row is None:
                if (session.scalar(select(func.count()).select_from(ProfileRow)) or 0) >= self._max_profiles:
                    raise ConflictError(f"{self._max_profiles} profiles are kept already; delete one")
                row = ProfileRow(name=name)
                session.add(row)
            if row.tag != tag:
                row.tag, row.profile, row.changed_at = tag, profile, self._now()
            return Kept(_entry(row), is_new)

    def get(self, name: str) -> tuple[MeasuredProfile, str]:
        """The profile and its tag; raises NotFoundError."""
        with self._database.reading() as session:
            row = _row(session, name)
            if row is None:
                raise NotFoundError(f"no measured profile {name!r}")
            return row.profile, row.tag

    def find(self, name: str) -> MeasuredProfile | None:
        """The profile of this name, in capital or small letters; None if there is none."""
        with self._database.reading() as session:
            row = _row(session, name.strip().lower())
            return None if row is None else row.profile

    def delete(self, name: str, accepts: Accepts = lambda tag: True) -> None:
        """Forget a profile; raises NotFoundError, or PreconditionError as `put`."""
        with self._database.writing() as session:
            row = _row(session, name, to_change=True)
            if row is None:
                raise NotFoundError(f"no measured profile {name!r}")
            _check(name, row, accepts)
            session.delete(row)

    def names(self) -> tuple[str, ...]:
        """All names."""
        with self._database.reading() as session:
            return tuple(session.scalars(select(ProfileRow.name).order_by(ProfileRow.name)))

    def page(self, limit: int, after: str | None = None) -> tuple[ProfileEntry, ...]:
        """At most `limit` profiles, those whose names come after `after`."""
        query = select(ProfileRow).order_by(ProfileRow.name).limit(limit)
        with self._database.reading() as session:
            rows = session.scalars(query if after is None else query.where(ProfileRow.name > after))
            return tuple(_entry(row) for row in rows)


def _row(session: Session, name: str, *, to_change: bool = False) -> ProfileRow | None:
    query = select(ProfileRow).where(ProfileRow.name == name)
    return session.scalar(query.with_for_update() if to_change else query)


def _check(name: str, row: ProfileRow | None, accepts: Accepts) -> None:
    tag = None if row is None else row.tag
    if not accepts(tag):
        there = "nothing" if tag is None else f'"{tag}"'
        raise PreconditionError(f"the profile {name!r} is another than the request expects: {there} is there")


def _entry(row: ProfileRow) -> ProfileEntry:
    profile = row.profile
    return ProfileEntry(
        name=row.name,
        tag=row.tag,
        changed_at=row.changed_at,
        device=profile.device.name,
        devices_per_node=profile.devices_per_node,
        measured_on=profile.measurement.date,
    )
