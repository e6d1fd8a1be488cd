"""What a token is: an id to find it by, a secret of 256 random bits, roles. Knows no store and no HTTP.

A token reads `ttk_<id>_<secret>`, so that scanners for leaked secrets and our own log lines know one. Of the secret
only the SHA-256 digest is kept. For passwords, which can be guessed, that would be far too quick a hash; nobody guesses
256 random bits, however quick the hash, and each request has to compute it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from planner.spec.errors import ForbiddenError, InputError
from planner.spec.value import Name, StrEnum, Value

FORM = re.compile(r"ttk_([0-9a-f]{12})_([0-9a-f]{64})")


class Role(StrEnum):
    """What a token is good for. `submit` may read too; `report` may read runs."""

    READ = "read"
    """Look at everything."""
    SUBMIT = "submit"
    """Ask for searches and prices, cancel searches, keep profiles; and read."""
    REPORT = "report"
    """Begin runs and post their windows, and read runs: what the agent in a training job does."""


IMPLIED = {Role.SUBMIT: {Role.READ}}


class Token(Value):
    """A token without its secret."""

    id: Name
    name: Name
    roles: tuple[Role, ...]
    run: str | None = None
    """Name or id of the only run that it may report for."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute."""

    def fault(self, now: datetime) -> str | None:
        """Why it is not valid any more; None: it is."""
        if self.revoked_at is not None:
            return "this token was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return f"this token expired at {self.expires_at:%Y-%m-%d %H:%M} UTC"
        return None


class Caller(NamedTuple):
    """Who asks, and what for it may."""

    name: str
    roles: frozenset[Role]
    run: str | None = None

    def check_reports_for(self, *identities: str) -> None:
        """Raises ForbiddenError unless this caller may report for, and look at, the run with this name and id."""
        if self.run is not None and self.run not in identities:
            raise ForbiddenError(f"this token is only for the run {self.run!r}")


ANYBODY = Caller("anybody", frozenset(Role))
"""Where no token is required."""


def caller_with(token: Token) -> Caller:
    """Who asks with this token."""
    implied = {role for given in token.roles for role in IMPLIED.get(given, ())}
    return Caller(token.name, frozenset({*token.roles, *implied}), token.run)


class Minted(NamedTuple):
    """A new token: its text is shown once, its digest is kept."""

    id: str
    text: str
    digest: str


def mint() -> Minted:
    """A token that nobody has or guesses."""
    token_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    return Minted(token_id, f"ttk_{token_id}_{secret}", digest_of(secret))


def split(text: str) -> tuple[str, str] | None:
    """Id and secret of a token's text; None: it is none."""
    found = FORM.fullmatch(text)
    return None if found is None else (found[1], found[2])


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fits(secret: str, digest: str) -> bool:
    """Whether the digest is of this secret; takes as long whatever is wrong with it."""
    return hmac.compare_digest(digest_of(secret), digest)


def check_roles(roles: Collection[Role], run: str | None) -> None:
    """Raises InputError unless a token may have these roles: at least one, and a run's token only reports for it."""
    if not roles:
        raise InputError.at("--role", f"give at least one of {', '.join(Role)}")
    if run is not None and set(roles) != {Role.REPORT}:
        raise InputError.at("--run", "a token for one run has the role report alone; make another one for other roles")
