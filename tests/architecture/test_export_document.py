"""docs/exports.md names the rules of exporting and the files that there are, and no others."""

from __future__ import annotations

import re

import pytest
from source_tree import ROOT

from planner.export import export_rule_names
from planner.spec.export import ExportTarget

TEXT = (ROOT / "docs/exports.md").read_text(encoding="utf-8")
NAMES = {
    ExportTarget.MEGATRON: "Megatron-LM",
    ExportTarget.TORCHTITAN: "torchtitan",
    ExportTarget.DEEPSPEED: "DeepSpeed",
    ExportTarget.GALVATRON: "Galvatron",
}


@pytest.mark.parametrize("target", ExportTarget)
def test_the_document_names_every_rule_and_whose_it_is(target):
    section = TEXT.split("## What cannot be written\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert {rule for rule, whose in rows if NAMES[target] in whose or whose == "all"} == set(export_rule_names(target))


def test_the_document_names_every_file():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "planner/export").glob("*.py"))
    written = set(
        re.findall(r'"((?:megatron|torchtitan|deepspeed|galvatron)[\w.-]*\.(?:sh|toml|json|py|yaml))"', sources)
    )
    named = set(re.findall(r"`((?:megatron|torchtitan|deepspeed|galvatron)[\w.-]*\.(?:sh|toml|json|py|yaml))`", TEXT))
    assert written == named
