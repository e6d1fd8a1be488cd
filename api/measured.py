"""ASGI middleware that counts, times and logs each request, refused ones too, under the id of its operation."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.logs import hidden_secrets
from api.metrics import Metrics
from api.tokens import ANYBODY

log = logging.getLogger("api.requests")
NO_OPERATION = "none"
"""Of requests for what the OpenAPI document does not have: their paths are the clients' and would have no end."""


class Operation(NamedTuple):
    """What requests of some form are for."""

    methods: frozenset[str]
    path: re.Pattern[str]
    id: str


class Measured:
    """Each request is one line of the log and one more of the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, operations: tuple[Operation, ...]) -> None:
        self._app = app
        self._metrics = metrics
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            operation, seconds = self._operation_of(scope), time.monotonic() - began
            self._metrics.answered(scope["method"], operation, status, seconds)
            _tell(scope, operation, status, seconds)

    def _operation_of(self, scope: Scope) -> str:
        """Of the route that answered; where a request was refused before, of the first that would have."""
        if (route := scope.get("route")) is not None:
            return getattr(route, "operation_id", None) or NO_OPERATION
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        fitting = (each for each in self._operations if method in each.methods and each.path.match(scope["path"]))
        return next((each.id for each in fitting), NO_OPERATION)


def operations_of(prefix: str, routers: Iterable[APIRouter]) -> tuple[Operation, ...]:
    """Those of routers that are included under a prefix, in their order."""
    return tuple(
        Operation(frozenset(route.methods or ()), compile_path(prefix + route.path)[0], route.operation_id)
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and route.operation_id
    )


def _tell(scope: Scope, operation: str, status: int, seconds: float) -> None:
    """A line for people; for machines its parts as fields, and the name of the token, if one let the request in."""
    client = ":".join(map(str, scope.get("client") or ("-",)))
    path = _discreet(scope["path"], quote(scope["path"]))
    query = _discreet(raw := scope["query_string"].decode("latin-1"), raw)
    caller = scope.get("caller", ANYBODY)
    fields: dict[str, Any] = {
        "client": client,
        "method": scope["method"],
        "path": path,
        "status": status,
        "seconds": round(seconds, 6),
        "operation": operation,
        **({} if caller is ANYBODY else {"token": caller.name}),
    }
    target = f"{path}?{query}" if query else path
    log.info('%s "%s %s" %d %.3f s', client, scope["method"], target, status, seconds, extra=fields)


def _discreet(text: str, shown: str) -> str:
    """`shown`, unless a secret stands in percent in the text, where the log's handler would not know it."""
    plain = unquote(text)
    hidden = hidden_secrets(plain)
    return shown if hidden == plain else quote(hidden, safe="/=&*")
