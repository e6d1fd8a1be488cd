"""Files that a user names: found, read and parsed, with one error for each way to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.spec.errors import MalformedError
from planner.spec.parse import read_json


def looks_like_file(text: str) -> bool:
    """Whether this names a file rather than a preset or shorthand: it is one, or it is written like one."""
    return text.endswith(".json") or "/" in text or Path(text).exists()


def read_json_file(path: Path, field: str) -> dict[str, Any]:
    """The JSON object in a file; raises MalformedError at `field`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MalformedError.at(field, f"cannot read {path}: {error.strerror or error}") from None
    try:
        data = read_json(text, field)
    except MalformedError as error:
        raise MalformedError.at(field, f"{path} {error.problems[0].message}") from None
    if not isinstance(data, dict):
        raise MalformedError.at(field, f"{path} must hold a JSON object, it holds {type(data).__name__}")
    return data
