"""The way in for browsers: a page that takes a token and keeps it in a cookie that no script can read.

The cookie goes along only with requests from our own pages (SameSite=Strict), and api.access_guard looks once more from
which page a request comes.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from api.access import Access
from api.access_guard import COOKIE, SIGN_IN
from api.tokens import ANYBODY, Caller
from api.web.html import Html
from planner.spec.errors import UnauthenticatedError

Next = Annotated[str, Query(max_length=2000)]


class SignIn:
    """Routes /sign-in and /sign-out. `access` None: no token is required."""

    def __init__(self, access: Access | None, html: Html) -> None:
        self._access = access
        self._html = html

    def router(self) -> APIRouter:
        """All routes; they are for people, and stand in no document for programs."""
        router = APIRouter(include_in_schema=False)
        router.add_api_route(SIGN_IN, self.ask, methods=["GET"])
        router.add_api_route(SIGN_IN, self.sign_in, methods=["POST"])
        router.add_api_route("/sign-out", self.sign_out, methods=["POST"])
        return router

    async def ask(self, request: Request, next: Next = "/") -> Response:
        """The form; or who is signed in, and the way out."""
        given = request.cookies.get(COOKIE)
        if self._access is None or given is None:
            return self._shown(next, ANYBODY if self._access is None else None)
        try:
            _, caller = await self._access.caller(given)
        except UnauthenticatedError as error:
            return self._shown(next, None, str(error))
        return self._shown(next, caller)

    async def sign_in(
        self,
        request: Request,
        token: Annotated[str, Form(max_length=1000)] = "",
        next: Annotated[str, Form(max_length=2000)] = "/",
    ) -> Response:
        """Keep the token in the cookie, if it is one, and go on to where the person wanted to go."""
        try:
            if self._access is not None:
                await self._access.caller(token.strip())
        except UnauthenticatedError as error:
            return self._shown(next, None, str(error), status=401)
        answer = RedirectResponse(own_path(next), 303)
        if self._access is not None:
            secure = request.url.scheme == "https"
            answer.set_cookie(COOKIE, token.strip(), path="/", httponly=True, secure=secure, samesite="strict")
        return answer

    async def sign_out(self) -> Response:
        """Forget the cookie."""
        answer = RedirectResponse(SIGN_IN, 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    def _shown(self, next_path: str, caller: Caller | None, fault: str = "", status: int = 200) -> HTMLResponse:
        values = {"next": own_path(next_path), "fault": fault, "is_open": self._access is None}
        return self._html.page("sign_in.html", caller, status, {"cache-control": "no-store"}, **values)


def own_path(given: str) -> str:
    """The path, if it is one of this service, and else the start page: nobody is led elsewhere."""
    is_own = given.startswith("/") and not given.startswith("//") and given.isprintable() and "\\" not in given
    return given if is_own else "/"
