"""Options of the commands that work on a service: its settings and its database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML (TRIMTAB_CONFIG)")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="Of the service, for SQLAlchemy (TRIMTAB_DATABASE_URL; sqlite:///trimtab.db)",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout")]
