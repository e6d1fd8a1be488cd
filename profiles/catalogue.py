"""The data files of this package: one JSON file for each preset, found by name or alias. Knows no meaning of them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from planner.spec.errors import NotFoundError
from planner.spec.parse import read_json

Shelf = Literal["hardware", "models", "software"]


def names(shelf: Shelf) -> list[str]:
    """All presets of a shelf in alphabetical order, without their aliases."""
    entries = (files("profiles") / shelf).iterdir()
    return sorted(entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json"))


def content(shelf: Shelf, name: str) -> dict[str, Any]:
    """The file of a preset; `name` must be one of `names`."""
    data = read_json((files("profiles") / shelf / f"{name}.json").read_bytes(), name)
    assert isinstance(data, dict)
    return data


def find(shelf: Shelf, wanted: str) -> str:
    """The name of the preset that `wanted` names or is an alias of, in capital or small letters.

    Raises NotFoundError that lists close matches, or all names without their aliases where none is close.
    """
    known = _spellings(shelf)
    found = known.get(wanted.strip().lower())
    if found is None:
        kind = {"hardware": "device", "models": "model", "software": "stack"}[shelf]
        raise NotFoundError(f"no {kind} preset is named {wanted!r}; {_suggestion(wanted, known)}")
    return found


def is_known(shelf: Shelf, wanted: str) -> bool:
    """Whether this is a preset's name or alias, in capital or small letters."""
    return wanted.strip().lower() in _spellings(shelf)


@cache
def _spellings(shelf: Shelf) -> dict[str, str]:
    """Names and aliases, and the name that each means; the files do not change while a program runs."""
    known = {name: name for name in names(shelf)}
    known.update({alias: name for name in list(known) for alias in content(shelf, name)["aliases"]})
    return known


def _suggestion(wanted: str, known: Mapping[str, str]) -> str:
    close = get_close_matches(wanted.strip().lower(), sorted(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(set(known.values())))}"
