"""Templates of this package as answers. Everything that is put into one is escaped, and pages fetch nothing from
elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from api.web import words
from planner.view import quantities

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
            model_name=words.model_name,
            cluster_name=words.cluster_name,
            framework=words.framework_name,
            sentence=words.sentence,
            seconds=quantities.seconds,
            percent=quantities.percent,
            significant=quantities.significant,
        )

    def page(
        self, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: object
    ) -> HTMLResponse:
        """One page; `values` are what its template names."""
        text = self._templates.get_template(template).render(values)
        return HTMLResponse(text, status, {**HEADERS, **(headers or {})})
