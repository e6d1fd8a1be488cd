"""The README names the commands that there are."""

from __future__ import annotations

import re

from source_tree import ROOT

from api.cli import build


def test_every_command_that_the_readme_names_exists_and_none_is_missing():
    app = build()
    commands = {command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    commands |= {group.typer_instance.info.name for group in app.registered_groups}
    named = set(re.findall(r"trimtab\s+([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named == commands
