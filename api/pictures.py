"""Pictures as answers."""

from __future__ import annotations

from typing import Any

from fastapi import Response

_BEGINNING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 640" role="img"><title>…</title>…</svg>'


class SvgResponse(Response):
    """A picture; `SafeHeaders` sees to it that nothing in it runs and nothing is fetched for it."""

    media_type = "image/svg+xml"


def picture_of(what: str) -> dict[str, Any]:
    """How OpenAPI describes an answer that is a picture."""
    return {"description": what, "content": {SvgResponse.media_type: {"example": _BEGINNING}}}
