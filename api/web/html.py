"""Templates of this package as answers. Everything that is put into one is escaped, and pages fetch nothing from
elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated

from fastapi import Depends
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from api import short_names
from api.access_guard import caller_of
from api.tokens import ANYBODY, Caller, Role
from api.web import words
from planner.view import quantities

Who = Annotated[Caller, Depends(caller_of)]
"""Who was let in, as a parameter of a route."""
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "private, no-cache",
}
"""Of every page: only the service's own files, no frames, nothing kept for others; `SafeHeaders` adds the rest."""


class Html:
    """Renders pages. A name that a template does not get is an error, never an empty place."""

    def __init__(self, version: str, now: Callable[[], datetime]) -> None:
        self._templates = Environment(
            loader=PackageLoader("api.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(version=version)
        self._templates.filters.update(
            ago=lambda then: words.ago(then, now()),
            utc=words.utc,
            model_name=short_names.model_name,
            cluster_name=short_names.cluster_name,
            framework=words.framework_name,
            sentence=words.sentence,
            seconds=quantities.seconds,
            percent=quantities.percent,
            significant=quantities.significant,
        )

    def page(
        self,
        template: str,
        who: Caller | None,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: object,
    ) -> HTMLResponse:
        """One page for whoever asks, None: not known; `values` are what its template names."""
        known = None if who is ANYBODY else who
        may_submit = who is not None and Role.SUBMIT in who.roles
        text = self._templates.get_template(template).render(values, who=known, may_submit=may_submit)
        return HTMLResponse(text, status, {**HEADERS, **(headers or {})})
