"""Tokens in the database. Each method is one transaction; all SQL about tokens is here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import or_, select, update

from api.database import Database
from api.tables import TokenRow
from api.tokens import Minted, Role, Token, check_roles
from planner.spec.errors import InputError, NotFoundError

USE_NOTED_EVERY = timedelta(minutes=1)
"""The last use is written at most so often: a request costs no write."""


class Found(NamedTuple):
    """A token and the digest of its secret."""

    token: Token
    digest: str


class TokenStore:
    """Tokens in order of their making. The clock comes from outside."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def add(
        self, minted: Minted, name: str, roles: Collection[Role], run: str | None, expires_at: datetime | None
    ) -> Token:
        """Keep a new token; raises InputError for roles that no token has, or a time that is over."""
        check_roles(roles, run)
        now = self._now()
        if expires_at is not None and expires_at <= now:
            raise InputError.at("--expires", "must be in the future")
        row = TokenRow(
            id=minted.id,
            name=name,
            digest=minted.digest,
            roles=" ".join(role for role in Role if role in roles),
            run=run,
            created_at=now,
            expires_at=expires_at,
        )
        token = _token(row)
        with self._database.writing() as session:
            session.add(row)
        return token

    def find(self, token_id: str) -> Found | None:
        """The token of this id, valid or not."""
        with self._database.reading() as session:
            row = session.scalar(select(TokenRow).where(TokenRow.id == token_id))
            return None if row is None else Found(_token(row), row.digest)

    def all(self) -> tuple[Token, ...]:
        """All tokens, oldest first, also those that are no longer valid."""
        with self._database.reading() as session:
            return tuple(map(_token, session.scalars(select(TokenRow).order_by(TokenRow.number))))

    def note_use(self, token: Token) -> None:
        """Remember that it was used now, to the minute."""
        now = self._now()
        if token.last_used_at is not None and now - token.last_used_at < USE_NOTED_EVERY:
            return
        is_older = or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at <= now - USE_NOTED_EVERY)
        with self._database.writing(alone=False) as session:
            session.execute(update(TokenRow).where(TokenRow.id == token.id, is_older).values(last_used_at=now))

    def revoke(self, named: str) -> Token:
        """End the token of this id, or the only one of this name that is not ended; again, it changes nothing.

        Raises NotFoundError, and InputError where several have the name.
        """
        with self._database.writing() as session:
            rows = list(session.scalars(select(TokenRow).where(or_(TokenRow.id == named, TokenRow.name == named))))
            rows = [row for row in rows if row.id == named] or [row for row in rows if row.revoked_at is None] or rows
            if not rows:
                raise NotFoundError(f"no token has the id or the name {named!r}; see trimtab token list")
            live = [row for row in rows if row.revoked_at is None]
            if len(live) > 1:
                ids = ", ".join(row.id for row in live)
                raise InputError.at("token", f"{len(live)} tokens have the name {named!r}; give the id of one: {ids}")
            for row in live:
                row.revoked_at = self._now()
            return _token((live or rows)[-1])


def _token(row: TokenRow) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        roles=tuple(Role(role) for role in row.roles.split()),
        run=row.run,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
