"""`trimtab database`: what an operator does with the database beside `trimtab serve`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from api.commands.lines import say
from api.commands.service_options import ConfigOption, DatabaseOption
from api.settings import file_of, load_settings


def upgrade(database_url: DatabaseOption = None, config: ConfigOption = None) -> None:
    """Bring the tables to this version, as `trimtab serve` does when it starts, and say where the database is."""
    # Here and below, not above: the database takes longer to load than most commands take to run.
    from api.database import open_database, shown_url  # noqa: PLC0415

    url = load_settings(file_of(config), database_url=database_url).database_url
    with closing(open_database(url)) as database:
        say(f"{shown_url(url)} has the tables of revision {database.revision()}")


def backup(
    file: Annotated[Path, typer.Argument(help="The copy; must not be there yet")],
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy a SQLite database, whole and of one moment, while the service writes; for PostgreSQL there is pg_dump."""
    from api.backup import copy_sqlite  # noqa: PLC0415

    settings = load_settings(file_of(config), database_url=database_url)
    say(f"{file}: {copy_sqlite(settings.database_url, file):,} bytes, checked")


def database_commands() -> typer.Typer:
    """The group of commands."""
    group = typer.Typer(name="database", help="Upgrade or back up the database of the service.")
    for command in (upgrade, backup):
        group.command()(command)
    return group
