"""ASGI middleware: headers that keep browsers from doing with our answers what they are not for.

A route that sets one of these headers itself is left alone. Redirects name a path: all lead to this service.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import allowed

ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
"""`same-origin`, not `no-referrer`: with the latter, browsers do not say from where a form comes."""
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
"""A picture may have styles and pictures of its own, and no script."""

_OWN_PLACE = re.compile(r"^https?://[^/]*/*(?=/)")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def page_policy(*script_hashes: str) -> str:
    """For pages: everything from this service; scripts inside the page only with these hashes, styles freely.

    Swagger UI shows icons, and pictures that it has fetched, from data: addresses; ReDoc searches in a worker that it
    makes itself (blob:).
    """
    scripts = " ".join(["'self'", *(f"'{each}'" for each in script_hashes)])
    return (
        f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def script_hashes(page: str) -> tuple[str, ...]:
    """Of the scripts that stand in a page, as `page_policy` takes them."""
    digests = (hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(page))
    return tuple(f"sha256-{base64.b64encode(digest).decode()}" for digest in digests)


class SafeHeaders:
    """Sets what no route has set."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers.setdefault(name, value)
                if "location" in headers:  # starlette's own redirects are made with the Host that a client sends
                    headers["location"] = _OWN_PLACE.sub("", headers["location"])
                headers.setdefault("Content-Security-Policy", _policy(headers.get("content-type", "")))
                if allowed(scope["method"], scope["path"]).roles:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, safely)


def _policy(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    return {"text/html": page_policy(), "image/svg+xml": SVG_POLICY}.get(kind, DATA_POLICY)
