"""House rules that a machine can check and that ruff and import-linter do not."""

from __future__ import annotations

import ast
import re

import pytest
from source_tree import PACKAGES, calls, imported, modules, name, tree

EVERYTHING = (*PACKAGES, "tests", "benchmarks")
FILES_AND_PROCESSES = {"os", "io", "pathlib", "shutil", "tempfile", "subprocess", "sqlite3"}
NETWORK = {"socket", "urllib", "http", "httpx"}
SYNONYMS = {
    "gpu": "device",
    "gpus": "devices",
    "microbatch": "micro_batch",
    "microbatches": "micro_batches",
    "seqlen": "sequence_length",
    "bsz": "batch_size",
    "gbs": "global_batch_size",
    "cfg": "the name of the value",
    "assignment": "placement",
    "hparams": "training",
}
"""Words of the field that docs/glossary.md replaces by one of its own."""


def test_files_stay_short():
    long = {name(path): lines for path in modules(*EVERYTHING) if (lines := path.read_text().count("\n")) > 400}
    assert not long, "a file of more than 400 lines wants a missing idea"


def test_no_module_is_a_drawer_for_odds_and_ends():
    drawers = [
        name(path) for path in modules(*EVERYTHING) if re.search(r"utils?|helpers?|common|manager|misc", path.stem)
    ]
    assert not drawers


def test_only_entry_points_print():
    printed = [
        f"{name(path)}:{line}"
        for path in modules("planner", "runtime", "profiles")
        for line, called in calls(path)
        if called == "print"
    ]
    assert not printed


def test_nothing_is_put_off_in_a_comment():
    # The words are put together here, lest this file find itself.
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
    notes = [
        f"{name(path)}:{number}"
        for path in modules(*EVERYTHING)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if words.search(line)
    ]
    assert not notes


def test_no_function_changes_a_module():
    changes = [
        f"{name(path)}:{node.lineno}"
        for path in modules(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Global)
    ]
    assert not changes


def test_no_import_of_ours_hides_in_a_function():
    """Below the entry points, where waiting for an import until it is needed would only hide a cycle."""
    hidden = [
        f"{name(path)}:{function.lineno} imports {imports}"
        for path in modules("planner", "runtime", "profiles")
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for imports in imported(function)
        if imports.split(".")[0] in PACKAGES
    ]
    assert not hidden


def test_the_planner_does_no_input_and_no_output():
    touched = [
        f"{name(path)} imports {imports}"
        for path in modules("planner")
        for imports in imported(tree(path))
        if imports.split(".")[0] in FILES_AND_PROCESSES | NETWORK
    ]
    opened = [f"{name(path)}:{line}" for path in modules("planner") for line, called in calls(path) if called == "open"]
    assert not touched + opened


def test_the_planner_takes_randomness_as_an_argument():
    """Equal input gives equal plans: no generator without a seed, none that all share."""
    shared = re.compile(r"(random|(np|numpy)\.random)\.(?!default_rng|Generator)\w+")
    drawn = [
        f"{name(path)}:{node.lineno}"
        for path in modules("planner")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (shared.fullmatch(called := ast.unparse(node.func)) or (called.endswith("default_rng") and not node.args))
    ]
    assert not drawn


@pytest.mark.parametrize("word", SYNONYMS)
def test_one_thing_has_one_word(word):
    """Identifiers of the planner and of the service use the glossary's word; text for other programs may differ."""
    pattern = re.compile(rf"(^|_){word}(_|$)")
    used = {
        f"{name(path)}:{line} {identifier}"
        for path in modules("planner", "api")
        for line, identifier in _identifiers(tree(path))
        if pattern.search(identifier.lower())
    }
    assert not used, f"say {SYNONYMS[word]}"


def _identifiers(node):
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.lineno, child.id
        elif isinstance(child, ast.arg):
            yield child.lineno, child.arg
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.lineno, child.name
