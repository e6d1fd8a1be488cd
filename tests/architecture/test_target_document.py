"""docs/targets.md names the rules of the frameworks and the baselines that there are, and no others."""

from __future__ import annotations

import re

import pytest
from source_tree import ROOT

from planner.cost.targets import FRAMEWORKS, rule_names
from planner.search.baselines import BASELINES

TEXT = (ROOT / "docs/targets.md").read_text(encoding="utf-8")


def _named(title: str) -> dict[str, str]:
    """What stands in the first column under a heading, and the rest of its row."""
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*)$", section, re.MULTILINE)
    return {name: rest for names, rest in rows for name in re.findall(r"`([^`]+)`", names)}


def test_the_document_names_every_rule():
    assert set(_named("Rules by name")) == {rule for target in FRAMEWORKS for rule in rule_names(target)}


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_the_document_says_whose_rule_it_is(target):
    theirs = (FRAMEWORKS[target].name, "all")
    said = {rule for rule, rest in _named("Rules by name").items() if rest.split(" | ")[0] in theirs}
    assert said == set(rule_names(target))


def test_the_document_names_every_baseline():
    assert set(_named("Baselines")) == set(BASELINES)
