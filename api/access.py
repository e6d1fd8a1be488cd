"""Who may do what: one table of rules, and how a token becomes a caller. Knows no HTTP beyond method and path.

What no rule names is guarded: reading needs the role `read`, everything else `submit`. So a route that somebody adds
and forgets here is closed to whoever has no token, never open.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.routing import compile_path

from api.remembered import remember
from api.token_store import Found, TokenStore
from api.tokens import Caller, Role, Token, caller_with, fits, split
from planner.spec.errors import NotFoundError, UnauthenticatedError

log = logging.getLogger(__name__)
BELIEVED_S = 5.0
"""How long a token is believed without asking the database again: a revocation takes effect within this."""
TOKENS_AT_HAND = 4096
"""Tokens that are remembered, and as many ids that no token has."""
RUNS_AT_HAND = 16_384
"""Runs whose names are remembered."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN: frozenset[Role] = frozenset()
"""Needs no token."""


class Rule(NamedTuple):
    """Who may send such a request: whoever has one of these roles; `OPEN`: anybody."""

    methods: frozenset[str]
    path: re.Pattern[str]
    roles: frozenset[Role]


def _rule(methods: str, path: str, *roles: Role) -> Rule:
    names = frozenset(methods.split()) | ({"HEAD"} if "GET" in methods else frozenset())
    return Rule(names, compile_path(path)[0], frozenset(roles))


ANY_PATH = "/{path:path}"
RULES = (
    _rule("GET", "/healthz"),
    _rule("GET", "/readyz"),
    _rule("GET", "/openapi.json"),
    _rule("GET", "/docs"),
    _rule("GET", "/redoc"),
    _rule("GET", "/static/{path:path}"),
    _rule("GET", "/assets/{path:path}"),
    _rule("GET POST", "/sign-in"),
    _rule("POST", "/sign-out"),
    _rule("POST", "/v1/runs", Role.REPORT),
    _rule("POST", "/v1/runs/{run_id}/windows", Role.REPORT),
    _rule("GET", "/v1/runs", Role.READ, Role.REPORT),
    _rule("GET", "/v1/runs/{run_id}", Role.READ, Role.REPORT),
    _rule("GET", "/v1/runs/{run_id}/{part}", Role.READ, Role.REPORT),
    _rule(" ".join(sorted(SAFE_METHODS)), ANY_PATH, Role.READ),
)
"""The first that fits holds."""
ELSE = frozenset({Role.SUBMIT})
"""For what none fits."""


class Allowed(NamedTuple):
    """What a request needs, and the run that its path names."""

    roles: frozenset[Role]
    run_id: str | None = None


def allowed(method: str, path: str) -> Allowed:
    """Which roles may send this request, by the first rule that fits; paths are those that the router sees."""
    for rule in RULES:
        if method in rule.methods and (found := rule.path.match(path)):
            return Allowed(rule.roles, found.groupdict().get("run_id"))
    return Allowed(ELSE)


class RunNames:
    """Runs that exist, and their names, which never change. For one event loop, as `Access`."""

    def __init__(self, run_name: Callable[[str], str]) -> None:
        """`run_name(id)` raises NotFoundError."""
        self._run_name = run_name
        self._known: OrderedDict[str, str] = OrderedDict()

    def has(self, run_id: str) -> bool:
        """Whether it is known already that this run exists."""
        return run_id in self._known

    async def find(self, run_id: str) -> str:
        """The run's name; "" for a run that is not there."""
        if "\0" in run_id:  # nothing in a database is called so, and PostgreSQL would not look
            return ""
        if run_id not in self._known:
            try:
                remember(self._known, run_id, await run_in_threadpool(self._run_name, run_id), RUNS_AT_HAND)
            except NotFoundError:
                return ""
        return self._known[run_id]


class Access:
    """Callers by their tokens, as the store has them or had a moment ago.

    For one event loop: the store is asked in other threads, what is remembered is touched in the loop's own.
    """

    def __init__(
        self,
        store: TokenStore,
        names: RunNames,
        now: Callable[[], datetime],
        clock_s: Callable[[], float] = monotonic,
    ) -> None:
        """`clock_s` only goes forward."""
        self._store = store
        self._names = names
        self._now = now
        self._clock_s = clock_s
        self._known: OrderedDict[str, tuple[float, Found]] = OrderedDict()
        self._unknown: OrderedDict[str, tuple[float, None]] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Found | None]] = {}
        self._uses: dict[str, Token] = {}
        self._noting: asyncio.Task[None] | None = None

    def knows(self, text: str) -> bool:
        """Whether a token with this id was found before; its secret may be wrong, and it may have ended."""
        parts = split(text)
        return parts is not None and parts[0] in self._known

    async def caller(self, text: str) -> tuple[str, Caller]:
        """(Id of the token, who asks with it); raises UnauthenticatedError that says what is wrong with it."""
        parts = split(text)
        if parts is None:
            raise UnauthenticatedError(
                "this is no token of Trimtab; one reads ttk_… as trimtab token create printed it"
            )
        token_id, secret = parts
        found = await self._found(token_id)
        if found is None or not fits(secret, found.digest):
            raise UnauthenticatedError("this token is not known here; trimtab token list shows those that are")
        fault = found.token.fault(self._now())
        if fault is not None:
            raise UnauthenticatedError(f"{fault}; ask for a new one (trimtab token create)")
        return token_id, caller_with(found.token)

    async def check_run(self, caller: Caller, run_id: str | None, name: str) -> None:
        """Raises ForbiddenError where a token of one run asks for another: by its id, or else by its name."""
        if caller.run is not None and caller.run != run_id:
            caller.check_reports_for(name if run_id is None else await self._names.find(run_id))

    async def _found(self, token_id: str) -> Found | None:
        asked_at, found = self._known.get(token_id) or self._unknown.get(token_id) or (None, None)
        if asked_at is None or self._clock_s() - asked_at > BELIEVED_S:
            if token_id not in self._lookups:
                self._lookups[token_id] = asyncio.create_task(self._look_up(token_id))
            return await asyncio.shield(self._lookups[token_id])
        return found

    async def _look_up(self, token_id: str) -> Found | None:
        """Ask the store: once for all who wait for the same token."""
        try:
            asked_at = self._clock_s()
            found = await run_in_threadpool(self._store.find, token_id)
        finally:
            del self._lookups[token_id]
        if found is None:
            self._known.pop(token_id, None)
            remember(self._unknown, token_id, (asked_at, None), TOKENS_AT_HAND)
            return None
        remember(self._known, token_id, (asked_at, found), TOKENS_AT_HAND)
        if found.token.fault(self._now()) is None:
            self._uses[token_id] = found.token
            if self._noting is None or self._noting.done():
                self._noting = asyncio.create_task(self._note_uses())
        return found

    async def _note_uses(self) -> None:
        """Write, one after the other, which tokens were used: no request waits for that, nor more than one thread."""
        while self._uses:
            await run_in_threadpool(self._note_use, self._uses.popitem()[1])

    def _note_use(self, token: Token) -> None:
        try:
            self._store.note_use(token)
        except SQLAlchemyError as error:  # busy, say: whoever may come in is not kept out by that
            log.warning("the use of token %s was not noted: %s", token.id, type(error).__name__)
