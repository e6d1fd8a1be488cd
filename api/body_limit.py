"""ASGI middleware that refuses request bodies above a limit, counting what really arrives, before they are parsed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answers import CLIENT_GONE
from api.json_limits import JsonLimits
from planner.spec.errors import TooLargeError, TrimtabError

QUICK_LOOK_BYTES = 2**18
"""Above which a body is looked at beside the event loop: 16 MiB of brackets take a third of a second."""
Refuse = Callable[[TrimtabError], Response]


class BodyLimit:
    """Reads each body before the application does, at most `max_bytes` of it, and looks how much its JSON holds.

    What is above a limit is answered with `refuse(error)`; a client that goes before its body is over, with a status
    that nobody reads but the metrics.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, json_limits: JsonLimits, refuse: Refuse) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._json_limits = json_limits
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            messages = await self._read(receive)
            if messages[-1]["type"] == "http.disconnect":
                await Response(status_code=CLIENT_GONE)(scope, receive, send)
                return
            body = b"".join(message.get("body", b"") for message in messages)
            if len(body) > QUICK_LOOK_BYTES:
                await run_in_threadpool(self._json_limits.check, body)
            else:
                self._json_limits.check(body)
        except TrimtabError as error:
            await self._refuse(error)(scope, receive, send)
            return
        await self._app(scope, _replay(messages, receive), send)

    async def _read(self, receive: Receive) -> list[Message]:
        messages: list[Message] = []
        num_bytes = 0
        while not messages or messages[-1].get("more_body", False):
            messages.append(await receive())
            num_bytes += len(messages[-1].get("body", b""))
            if num_bytes > self._max_bytes:
                raise TooLargeError(f"the body is larger than the {self._max_bytes} bytes that this service accepts")
        return messages


def _replay(messages: list[Message], receive: Receive) -> Callable[[], Awaitable[Message]]:
    """First what was read already, then whatever comes."""
    waiting = iter(messages)

    async def replay() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replay
