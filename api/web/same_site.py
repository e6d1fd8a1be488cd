"""Whether a form that changes something was sent from a page of this service, and not from somebody else's.

A browser says so itself: with `Sec-Fetch-Site` where it trusts the connection, and with `Origin` on every form that is
posted. What says neither is refused: programs have the API.

Source: OWASP, Cross-Site Request Forgery Prevention Cheat Sheet, "Fetch Metadata" and "Verifying Origin".
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request


def require_same_site(request: Request) -> None:
    """Raises HTTPException 403 for a request from anywhere else."""
    site = request.headers.get("sec-fetch-site")
    said = site == "same-origin" if site is not None else _is_own(request)
    if not said:
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            "this form must be sent from a page of this service; open the page here, and send it again",
        )


def _is_own(request: Request) -> bool:
    """The scheme is left out: behind a proxy with TLS, the service sees another than the browser."""
    try:
        origin = urlsplit(request.headers.get("origin", "")).netloc
    except ValueError:
        return False
    return bool(origin) and origin == request.headers.get("host")
