"""ASGI middleware for the end of the service: a request that is still open when its time is over gets an answer too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answers import AnswerProblem, headers_of
from api.problems import problem_of
from planner.spec.errors import UnavailableError


class AnswersAtTheEnd:
    """The server cancels what is open after its grace, and would answer it with a bare 500; this says to ask again."""

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool], answer: AnswerProblem) -> None:
        self._app = app
        self._stopping = stopping
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if has_begun or not self._stopping():
                raise
            error = UnavailableError("the service is ending; ask again")
            await self._answer(Request(scope), problem_of(error), headers_of(error))(scope, receive, send)
