"""How strictly the service reads JSON: as the planner does, and no text that could not be written again."""

from __future__ import annotations

import json
from typing import Any

from planner.spec.errors import MalformedError
from planner.spec.parse import read_json


def read_body(body: bytes, field: str = "body") -> Any:
    """Data of a request's body, or a text in it: no NaN, no lone surrogates; raises MalformedError at `field`."""
    data = read_json(body, field)
    if b"\\u" in body:
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise MalformedError.at(field, f"is not JSON: {error}") from None
    return data
