"""Pictures as answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response

_BEGINNING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 640" role="img"><title>…</title>…</svg>'


class SvgResponse(Response):
    """A picture; whatever stands in it, nothing in it runs and nothing is fetched for it."""

    media_type = "image/svg+xml"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Forbid everything but inline styles."""
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
        super().init_headers({**(headers or {}), **policy, "x-content-type-options": "nosniff"})


def picture_of(what: str) -> dict[str, Any]:
    """How OpenAPI describes an answer that is a picture."""
    return {"description": what, "content": {SvgResponse.media_type: {"example": _BEGINNING}}}
