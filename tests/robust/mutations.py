"""JSON from valid JSON: something dropped, replaced, repeated, moved or added, at any place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 2, 3, 64, 1000, 2**20, 2**24, 2**31, 2**53 - 1, 2**53, 2**62, 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1e-9, 5e-324, 1e-30, 1e30, 1.7e308, -1.5, "", "0", "max", "encoder", "x" * 5000),
    *(
        "\0",
        "\u202e",
        "é",
        "ﬀ",
        "𝕏",
        "../../etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "%s%n",
        "{}",
        "$ref",
    ),
    *([], {}, [[]], [0], [None], {"": {}}, {"preset": "mixtral-8x7b"}, [1] * 300, [[0.5, 0.5]]),
)
"""What people and programs put in by mistake or out of spite."""
NUMBERS = (1, 2, 3, 5, 7, 8, 12, 96, 100, 4096, 2**17, 2**31, 2**53 - 1)
ODD_KEYS = ("", "x", "id", "__class__", "a.b", "a/b~c")
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    '"\\ud800"',
    "1" * 5000,
    "[" * 3000,
    "{",
    "",
    "'x'",
    "\ufeff0",
    "01",
)
"""What stands for a value in a text that is no JSON, or none that every reader reads alike."""
Path = tuple[str | int, ...]


def places(value: Any, way: Path = ()) -> Iterator[Path]:
    """Every place below the top of a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*way, key)
        yield from places(below, (*way, key))


def at(value: Any, way: Path) -> Any:
    """What stands there."""
    for key in way:
        value = value[key]
    return value


@st.composite
def mutated(draw: st.DrawFn, valid: Any, changes: int = 3) -> Any:
    """The valid value with one to `changes` changes."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, changes))):
        ways = list(places(value))
        if not ways:
            break
        way = draw(st.sampled_from(ways))
        _change(draw, value, ways, way)
    return value


@st.composite
def renumbered(draw: st.DrawFn, valid: Any) -> Any:
    """The valid value with one to three other numbers, most of them possible ones."""
    value = copy.deepcopy(valid)
    ways = [way for way in places(value) if type(at(value, way)) in (int, float)]
    for way in draw(st.lists(st.sampled_from(ways), min_size=1, max_size=3)) if ways else ():
        at(value, way[:-1])[way[-1]] = draw(st.sampled_from(NUMBERS))
    return value


def _change(draw: st.DrawFn, value: Any, ways: list[Path], way: Path) -> None:
    *outer, key = way
    holder, odd = at(value, tuple(outer)), copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    match draw(st.sampled_from(("replace", "replace", "drop", "repeat", "move", "add"))):
        case "drop":
            del holder[key]
        case "repeat" if isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * draw(st.sampled_from((1, 2, 50)))
        case "move":
            holder[key] = copy.deepcopy(at(value, draw(st.sampled_from(ways))))
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(ODD_KEYS))] = odd
        case _:
            holder[key] = odd


@st.composite
def mangled(draw: st.DrawFn, valid: Any) -> bytes:
    """The text of a valid value with a raw token in the place of one of its values, a key twice, or cut off."""
    value = copy.deepcopy(valid)
    way = draw(st.sampled_from(list(places(value))))
    at(value, way[:-1])[way[-1]] = "HERE"
    text = json.dumps(value)
    match draw(st.sampled_from(("raw", "raw", "twice", "cut", "latin"))):
        case "twice":
            return text.replace("{", '{"model": 0, "tokens": 0, "nodes": 0, ', 1).replace('"HERE"', "1").encode()
        case "cut":
            return text[: draw(st.integers(0, len(text)))].encode()
        case "latin":
            return text.replace("HERE", "\xff\xfe").encode("latin-1")
        case _:
            return text.replace('"HERE"', draw(st.sampled_from(RAW))).encode()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
"""Any JSON."""
