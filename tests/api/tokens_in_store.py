"""Tokens for tests, put into the store as the command does."""

from datetime import datetime, timezone

from api.database import Database
from api.token_store import TokenStore
from api.tokens import Role, mint

LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)


def token(database: Database, *roles: str, run: str | None = None, expires_at: datetime | None = None) -> str:
    """The text of a new token."""
    minted = mint()
    TokenStore(database, lambda: LONG_AGO).add(minted, " ".join(roles), [Role(role) for role in roles], run, expires_at)
    return minted.text


def bearer(text: str) -> dict[str, str]:
    """The header that brings a token."""
    return {"Authorization": f"Bearer {text}"}


def id_of(text: str) -> str:
    """What a token is found by."""
    return text.split("_")[1]
