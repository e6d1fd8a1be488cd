"""One error tree, drawn in the docstring as it is in the code; nothing of ours is raised from outside it."""

from __future__ import annotations

import ast
import builtins
import inspect
import re

from source_tree import PACKAGES, modules, name, tree

from planner.spec import errors


def _drawn() -> list[tuple[int, str]]:
    """(depth, class) in the order of the drawing."""
    lines = re.findall(r"^([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    return [(len(indent) // 4, class_name) for indent, class_name in lines]


def _built(base: type, depth: int = 0) -> list[tuple[int, str]]:
    below = [line for child in _children(base) for line in _built(child, depth + 1)]
    return [(depth, base.__name__), *below]


def _children(base: type) -> list[type]:
    """Direct subclasses in the order in which the file defines them."""
    classes = [kind for kind in vars(errors).values() if inspect.isclass(kind) and base in kind.__bases__]
    return sorted(classes, key=lambda kind: inspect.getsourcelines(kind)[1])


def test_the_docstring_draws_the_tree_as_it_is():
    drawn = _drawn()
    assert drawn[0] == (0, "TrimtabError")
    assert sorted(drawn) == sorted(_built(errors.TrimtabError))
    assert [line for line in drawn if line[0] == 1] == [line for line in _built(errors.TrimtabError) if line[0] == 1]


def test_no_exception_of_ours_stands_outside_the_tree():
    standard = {kind for kind in vars(builtins).values() if inspect.isclass(kind) and issubclass(kind, BaseException)}
    standard_names = {kind.__name__ for kind in standard}
    strangers = [
        f"{name(path)}: {node.name}"
        for path in modules(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        and node.name != "TrimtabError"
        and standard_names & {ast.unparse(base) for base in node.bases}
    ]
    assert not strangers
