"""`trimtab config`: what the service would run with, and where each setting is from."""

from __future__ import annotations

import json

from api.commands.lines import say
from api.commands.service_options import AsJson, ConfigOption
from api.commands.terminal import show
from api.settings import PREFIX, Settings, file_of, load_settings, origins
from planner.view import Column, Table


def config(
    file: ConfigOption = None,
    as_json: AsJson = False,
) -> None:
    """Print the settings of the service, each with where it is from and what it means."""
    # Here, not above: the database takes longer to load than most commands take to run.
    from api.database import hidden_password  # noqa: PLC0415

    chosen = file_of(file)
    found = load_settings(chosen)
    values = found.model_dump() | {"database_url": hidden_password(found.database_url)}
    if as_json:
        say(json.dumps(values, indent=2))
        return
    from_where = origins(chosen)
    rows = tuple(
        (name, _shown(values[name]), from_where[name], " ".join((field.description or "").split()))
        for name, field in Settings.model_fields.items()
    )
    show(Table("Settings", tuple(map(Column, ("setting", "value", "from", "meaning"))), rows))
    say(f"Each can be set by a variable, as {PREFIX}PORT=9000, or in a file, as port = 9000.")


def _shown(value: object) -> str:
    """As a variable of the environment takes it; a dash where nothing is set."""
    if value is None or value == ():
        return "–"
    return json.dumps(value) if isinstance(value, tuple) else str(value)
