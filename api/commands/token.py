"""`trimtab token`: who may come in to a service that requires tokens. Works on the service's database, beside it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from api.commands.lines import say
from api.commands.service_options import AsJson, ConfigOption, DatabaseOption
from api.commands.terminal import show
from api.settings import file_of, load_settings
from api.tokens import Role, Token, mint
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.value import Name
from planner.view import Column, Table

if TYPE_CHECKING:
    from api.token_store import TokenStore

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def token_commands() -> typer.Typer:
    """The group with its commands."""
    app = typer.Typer(name="token", help="Make, list and revoke tokens of a service.", no_args_is_help=True)
    for command in (create, list_, revoke):
        app.command(command.__name__.rstrip("_"))(command)
    return app


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the token is for, as prometheus or alice")],
    role: Annotated[
        list[str],
        typer.Option(
            help="read, submit (searches, estimates; reads too) or report (agents); may be given several times"
        ),
    ],
    run: Annotated[
        str | None, typer.Option(metavar="NAME|ID", help="With --role report: only for the run of this name or id")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="Valid for so long, as 12h, 30d or 2w; without it, until revoked")
    ] = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a token. It is printed once, and kept nowhere: only its digest is."""
    roles = tuple(parse(Role, each, "--role") for each in role)
    parse(Name, name, "NAME")
    if run is not None:
        parse(Name, run, "--run")
    expires_at = None if expires is None else datetime.now(timezone.utc) + _duration(expires)
    minted = mint()
    with _opened(database_url, config) as store:
        token = store.add(minted, name, roles, run, expires_at)
    if as_json:
        say(json.dumps({**_data(token), "token": minted.text}, indent=2))
        return
    say(minted.text)
    print(f"Token {token.id} ({_roles(token)}); keep it now, it is not shown again.", file=sys.stderr)


def list_(database_url: DatabaseOption = None, config: ConfigOption = None, as_json: AsJson = False) -> None:
    """List all tokens, without their secrets."""
    with _opened(database_url, config) as store:
        tokens = store.all()
    if as_json:
        say(json.dumps({"items": [_data(token) for token in tokens]}, indent=2))
        return
    titles = ("id", "name", "roles", "state", "made", "last used")
    now = datetime.now(timezone.utc)
    rows = tuple(
        (token.id, token.name, _roles(token), _state(token, now), _time(token.created_at), _time(token.last_used_at))
        for token in tokens
    )
    show(Table("Tokens", tuple(map(Column, titles)), rows), droppable=None)


def revoke(
    token: Annotated[str, typer.Argument(metavar="ID|NAME", help="As trimtab token list shows it")],
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: AsJson = False,
) -> None:
    """End a token; services refuse it within 5 seconds."""
    with _opened(database_url, config) as store:
        revoked = store.revoke(token)
    say(json.dumps(_data(revoked), indent=2) if as_json else f"Revoked {revoked.id} ({revoked.name})")


@contextmanager
def _opened(database_url: str | None, config: ConfigOption) -> Iterator[TokenStore]:
    # Here, not above: the database takes longer to load than most commands take to run.
    from api.database import existing_database, utc_now  # noqa: PLC0415
    from api.token_store import TokenStore  # noqa: PLC0415

    database = existing_database(load_settings(file_of(config), database_url=database_url).database_url)
    try:
        yield TokenStore(database, utc_now)
    finally:
        database.close()


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9]\d{0,4})([mhdw])", text)
    if found is None:
        raise InputError.at("--expires", f"must be a number with m, h, d or w, as 12h or 30d, got {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _data(token: Token) -> dict[str, object]:
    return token.model_dump(mode="json")


def _roles(token: Token) -> str:
    return ", ".join(token.roles) + (f" for the run {token.run}" if token.run is not None else "")


def _state(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return f"revoked {_time(token.revoked_at)}"
    if token.expires_at is None:
        return "valid"
    return f"{'expired' if token.fault(now) else 'valid until'} {_time(token.expires_at)}"


def _time(time: datetime | None) -> str:
    return "–" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"
