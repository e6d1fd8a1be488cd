"""From plain data to a value, with one kind of error."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from planner.spec.errors import InputError, MalformedError

T = TypeVar("T")


def parse(kind: type[T], data: object, field: str = "") -> T:
    """Check plain data (dict, list, …) and make the value; raises InputError that names the field under `field`."""
    try:
        value = TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise InputError.from_validation(error, field, data) from None
    return value


def read_json(text: str | bytes, field: str) -> Any:
    """Read JSON (NaN and Infinity are refused); raises MalformedError that says where it breaks."""

    def refuse(constant: str) -> None:
        raise MalformedError.at(field, f"is not JSON: {constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:  # not JSON, not UTF-8, or a whole number of thousands of digits
        raise MalformedError.at(field, f"is not JSON: {error}") from None
    except RecursionError:
        raise MalformedError.at(field, "is nested too deeply") from None
