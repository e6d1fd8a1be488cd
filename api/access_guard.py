"""ASGI middleware at the door: who asks, may they, and not too often. Nothing of a body is read before that."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.access import SAFE_METHODS, Access, RunNames, allowed
from api.answers import AnswerProblem, headers_of
from api.database import NO_DATABASE, is_away
from api.problems import problem_of
from api.rate_limit import RateLimit
from api.settings import is_loopback
from api.tokens import ANYBODY, FORM, Caller
from planner.spec.errors import ForbiddenError, TrimtabError, UnauthenticatedError, UnavailableError

COOKIE = "trimtab_token"
SIGN_IN = "/sign-in"
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d+)?")
"""An address in brackets or a name, and perhaps a port."""


class AccessGuard:
    """Lets in who may come in; `caller_of` then says who it is. `access` None: everybody may do everything.

    `hosts`: what the service may be called beside loopback's own names; None: anything.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access | None,
        names: RunNames,
        hosts: Collection[str] | None,
        rate: RateLimit,
        answer: AnswerProblem,
    ) -> None:
        self._app = app
        self._access = access
        self._names = names
        self._hosts = hosts
        self._rate = rate
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = await self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        try:
            if self._hosts is not None:
                check_host(request.headers.get("host"), self._hosts)
            check_same_site(request)
            request.scope["caller"] = await self._let_in(request)
        except UnauthenticatedError as error:
            return _to_sign_in(request) if wants_page(request) else self._refused(request, error)
        except TrimtabError as error:
            return self._refused(request, error)
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            return self._refused(request, UnavailableError(NO_DATABASE))
        return None

    def _refused(self, request: Request, error: TrimtabError) -> Response:
        return self._answer(request, problem_of(error), headers_of(error))

    async def _let_in(self, request: Request) -> Caller:
        """Who asks; raises the errors that refuse."""
        # The scope's path, as the router sees it: request.url is made with the Host header, which the client chooses.
        path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
        roles, run_id = allowed(request.method, path)
        address = request.client.host if request.client else ""
        if not roles:
            if request.method not in SAFE_METHODS or (path == SIGN_IN and COOKIE in request.cookies):
                # the token is looked up
                self._rate.check("address", address)
            return ANYBODY
        if FORM.search(unquote(f"{path}?{query}")):
            raise UnauthenticatedError(
                "a token in an address ends up in logs and histories: revoke this one, make another, and send it as "
                "Authorization: Bearer"
            )
        if self._access is None:
            await self._count("address", address, run_id)
            return ANYBODY
        token_id, caller = await self._caller(self._access, request, address)
        await self._count("token", token_id, run_id)
        if not roles & caller.roles:
            raise ForbiddenError(f"this needs a token with the role {' or '.join(sorted(roles))}")
        if run_id is not None or request.method in SAFE_METHODS:  # else it begins one: the route knows its name
            await self._access.check_run(caller, run_id, request.query_params.get("name", ""))
        return caller

    async def _caller(self, access: Access, request: Request, address: str) -> tuple[str, Caller]:
        """(Id of the token, who asks); raises UnauthenticatedError.

        Whoever brings a token that is not known yet counts by the address, before the store is asked.
        """
        is_counted = False
        try:
            text = token_of(request)
            if not access.knows(text):
                is_counted = True
                self._rate.check("address", address)
            return await access.caller(text)
        except UnauthenticatedError:
            if not is_counted:
                self._rate.check("address", address)
            raise

    async def _count(self, kind: str, who: str, run_id: str | None) -> None:
        """Count a request: about a run that is known to exist by itself, all others of the same client together."""
        if run_id is not None and self._names.has(run_id):
            self._rate.check(kind, who, run_id)
            return
        self._rate.check(kind, who)
        if run_id is not None:
            await self._names.find(run_id)


def caller_of(request: Request) -> Caller:
    """Who was let in with this request: for routes."""
    caller = request.scope["caller"]
    assert isinstance(caller, Caller)
    return caller


def token_of(request: Request) -> str:
    """The token that a request brings, in its header or, from a browser, in its cookie; raises UnauthenticatedError."""
    header = request.headers.get("authorization")
    if header is None:
        if (cookie := request.cookies.get(COOKIE)) is not None:
            return cookie
        raise UnauthenticatedError(
            "this service needs a token: send Authorization: Bearer ttk_…, or sign in at /sign-in"
        )
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthenticatedError("the header must be Authorization: Bearer ttk_…")
    return text.strip()


def check_host(host: str | None, allowed_hosts: Collection[str]) -> None:
    """Raises ForbiddenError for a Host that is neither one of loopback's own names nor allowed.

    A page of another site can make its own name mean our address (DNS rebinding), and is of our site then for the
    browser, which always sends a Host.
    """
    if host is None:
        return
    found = _HOST.fullmatch(host)
    name = (found[1] or found[2]).lower() if found else ""
    if not is_loopback(name) and name not in allowed_hosts:
        raise ForbiddenError(
            f"this service is open to its own machine alone and is called localhost or 127.0.0.1, not {host[:80]!r}; "
            "the setting allowed_hosts adds names"
        )


def check_same_site(request: Request) -> None:
    """Raises ForbiddenError for what changes something and comes from a page of another site.

    Browsers say so: Sec-Fetch-Site, or Origin in older ones. A cookie alone, with neither, is not enough either.
    Others send neither, and bring their token with each request.
    """
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        ours = site == "same-origin"
    elif "origin" in request.headers:
        ours = _is_own(request.headers["origin"], request.headers.get("host"))
    else:
        ours = "authorization" in request.headers or COOKIE not in request.cookies
    if not ours:
        raise ForbiddenError(
            "what changes something must be sent from a page of this service; open the page here, and try again"
        )


def _is_own(origin: str, host: str | None) -> bool:
    """The scheme is left out: behind a proxy with TLS, the service sees another than the browser."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def wants_page(request: Request) -> bool:
    """Whether a person waits for a page."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def _to_sign_in(request: Request) -> RedirectResponse:
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope["path"] + (f"?{query}" if query else "")
    there = "" if FORM.search(unquote(path)) else f"?next={quote(path, safe='/')}"
    return RedirectResponse(SIGN_IN + there, 303)
