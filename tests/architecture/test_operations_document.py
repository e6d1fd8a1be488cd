"""docs/operations.md has every setting and every metric. Run as a program, this file renews the table of settings."""

from __future__ import annotations

import inspect
import re
import sys

from source_tree import ROOT

from api.commands.serve import serve
from api.metrics import Metrics
from api.settings import Settings

DOCUMENT = ROOT / "docs" / "operations.md"
PART = re.compile(r"(?<=<!-- settings: begin -->\n).*?(?=<!-- settings: end -->)", re.DOTALL)
OF_THE_QUEUE = {"trimtab_database_up", "trimtab_searches", "trimtab_queue_age_seconds"}
"""Metrics that need a database to be read."""


def default(field):
    """As a person would write it."""
    if field.default_factory is not None:
        return "one per CPU core"
    return "" if field.default is None else f"`{field.default}`"


def table():
    """All settings with their defaults, as Markdown."""
    rows = [
        f"| `{name}` | {default(field)} | {' '.join((field.description or '').split())} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | default | what |", "|---|---|---|", *rows]) + "\n"


def test_the_table_of_settings_is_up_to_date():
    [found] = PART.findall(DOCUMENT.read_text())
    assert found == table(), "write it anew: python tests/architecture/test_operations_document.py"


def test_the_settings_that_are_options_are_named_and_no_others():
    [told] = re.findall(r"^Some are options of `trimtab serve` too: (.*)", DOCUMENT.read_text(), re.MULTILINE)
    options = [name for name in inspect.signature(serve).parameters if name in Settings.model_fields]
    assert re.findall(r"`--([a-z-]+)`", told) == [name.replace("_", "-") for name in options]


def test_every_metric_is_in_the_document_and_no_other():
    rows = re.findall(r"^\| `(trimtab_\w+)` \| (?:`\w+`(?:, )?)* ?\| ", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted({*map(exposed, Metrics().registry.collect())} - {""} | OF_THE_QUEUE)


def exposed(family):
    """What a query names: a counter's one series, which ends in _total; the family of a histogram; "" if not ours."""
    if not family.name.startswith("trimtab_"):
        return ""
    return f"{family.name}_total" if family.type == "counter" else family.name


if __name__ == "__main__":
    written = PART.sub(lambda _: table(), DOCUMENT.read_text())
    DOCUMENT.write_text(written)
    sys.stdout.write(f"{DOCUMENT.name} has {len(Settings.model_fields)} settings\n")
