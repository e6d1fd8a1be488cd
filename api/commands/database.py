"""`trimtab database`: what an operator does with the database beside `trimtab serve`."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from api.commands.lines import say
from api.commands.service_options import AsJson, ConfigOption, DatabaseOption
from api.settings import file_of, load_settings


def upgrade(database_url: DatabaseOption = None, config: ConfigOption = None, as_json: AsJson = False) -> None:
    """Bring the tables to this version, as `trimtab serve` does when it starts, and say where the database is."""
    # Here and below, not above: the database takes longer to load than most commands take to run.
    from api.database import open_database, shown_url  # noqa: PLC0415

    url = load_settings(file_of(config), database_url=database_url).database_url
    with closing(open_database(url)) as database:
        place, revision = shown_url(url), database.revision()
    told = {"database": place, "revision": revision}
    say(json.dumps(told, indent=2) if as_json else f"{place} has the tables of revision {revision}")


def backup(
    file: Annotated[Path, typer.Argument(help="The copy; must not be there yet")],
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: AsJson = False,
) -> None:
    """Copy a SQLite database, whole and of one moment, while the service writes; for PostgreSQL there is pg_dump."""
    from api.backup import copy_sqlite  # noqa: PLC0415

    settings = load_settings(file_of(config), database_url=database_url)
    num_bytes = copy_sqlite(settings.database_url, file)
    told = {"file": str(file), "bytes": num_bytes}
    say(json.dumps(told, indent=2) if as_json else f"{file}: {num_bytes:,} bytes, checked")


def database_commands() -> typer.Typer:
    """The group of commands."""
    group = typer.Typer(name="database", help="Upgrade or back up the database of the service.")
    for command in (upgrade, backup):
        group.command()(command)
    return group
