"""ASGI middleware that answers HEAD as GET, without the body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Routes know GET alone; whoever asks for the head of an answer gets it, and no stream is kept open for that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        # A copy: the server looks into its own while the answer is sent, and must see that no body is missing.
        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, head)
        finally:
            scope.update({"route": asked["route"]} if "route" in asked else {})  # for the middleware outside
