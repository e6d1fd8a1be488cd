"""One HTTP request with bounds on everything: how long it may take in all, and how much may come back.

The time limits of HTTP libraries count from one piece of an answer to the next; a service that sends a byte now and
then holds such a caller for ever. Here the whole exchange has one limit, from looking up the name to the last byte.
Redirects are not followed: they are answers like any other.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx

from planner.spec.errors import InputError, UnavailableError
from planner.spec.parse import read_json

MAX_ANSWER_BYTES = 64 * 2**20
"""A decision for 60 layers of 320 slots has 2 MB with all that it can hold."""


class Answer(NamedTuple):
    """What came back. `retry_after_s`: what its header of that name says; 0: nothing that can be understood."""

    path: str
    status: int
    reason: str
    content: bytes
    retry_after_s: float
    is_repeated: bool
    """The service has given this answer before (Idempotent-Replayed)."""

    @property
    def is_success(self) -> bool:
        """Whether the request was accepted."""
        return httpx.codes.is_success(self.status)

    def json(self) -> Any:
        """The content as plain data; raises UnavailableError if it is none."""
        try:
            return read_json(self.content, "answer")
        except InputError as error:
            raise UnavailableError(f"{self.path}: {error}") from None

    def failure(self) -> UnavailableError:
        """The error that says what the problem document says, or at least the status."""
        return UnavailableError(self.detail(), self.retry_after_s)

    def detail(self) -> str:
        """Status, and what the problem document says."""
        said = self._document().get("detail")
        return f"{self.status} {self.reason}" + (f": {str(said)[:500]}" if said else "")

    def problems(self) -> list[tuple[str, str]]:
        """Field and message of what the problem document finds wrong with the request; [] if it does not say."""
        errors = self._document().get("errors")
        return [
            (str(error["field"]), str(error["message"])[:500])
            for error in (errors if isinstance(errors, list) else [])
            if isinstance(error, dict) and "field" in error and "message" in error
        ]

    def _document(self) -> dict[str, Any]:
        try:
            content = read_json(self.content, "answer")
        except InputError:
            return {}
        return content if isinstance(content, dict) else {}


class Requester:
    """Sends requests to one address, each over a connection of its own. Not for a thread with a running event loop."""

    def __init__(self, url: str, token: str | None) -> None:
        """Raises InputError for no HTTP address."""
        try:
            scheme = httpx.URL(url).scheme
        except httpx.InvalidURL as error:
            raise InputError.at("service", f"is no address: {error}") from None
        if scheme not in ("http", "https"):
            raise InputError.at("service", f"must be an http or https address, got {url!r}")
        self._url = url
        self._headers = {"Accept-Encoding": "identity", "Connection": "close"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls: ssl.SSLContext | bool = httpx.create_ssl_context() if scheme == "https" else False

    def send(self, method: str, path: str, body: str | None, timeout_s: float) -> Answer:
        """The answer, whatever its status; raises UnavailableError if none came in time, or none that is HTTP."""

        async def within_time() -> Answer:
            return await asyncio.wait_for(self._exchange(method, path, body), timeout_s)

        try:
            return asyncio.run(within_time())
        except (TimeoutError, asyncio.TimeoutError):
            raise UnavailableError(f"no answer within {timeout_s:.3g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise UnavailableError(f"{type(error).__name__}: {error}") from None

    async def _exchange(self, method: str, path: str, body: str | None) -> Answer:
        headers = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        content = bytearray()
        async with (
            httpx.AsyncClient(base_url=self._url, headers=headers, timeout=None, verify=self._tls) as client,
            client.stream(method, path, content=body) as response,
        ):
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MAX_ANSWER_BYTES:
                    raise UnavailableError(f"{path}: the answer is larger than {MAX_ANSWER_BYTES} bytes")
        retry_after_s = _seconds(response.headers.get("Retry-After", ""))
        is_repeated = response.headers.get("Idempotent-Replayed") == "true"
        return Answer(path, response.status_code, response.reason_phrase, bytes(content), retry_after_s, is_repeated)


def _seconds(retry_after: str) -> float:
    """A Retry-After header, which holds seconds or a date; 0 for anything else."""
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
