"""Log lines with the id of the request that they belong to: text for people, or JSON for machines.

No secret gets into a line: what looks like a token, or like a password in an address, is replaced, also in tracebacks.
A request's id is its `X-Request-ID`, if it has one of a sane form, or a new one; the answer carries it too.
"""

from __future__ import annotations

import logging
import re
import sys
from logging.config import dictConfig
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS

from api.tokens import FORM

ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
ID_HEADER = "X-Request-ID"
LogFormat = Literal["text", "json"]
"""Lines for people, or one JSON object a line for machines."""
TEXT = "%(asctime)s %(levelname)-7s %(correlation_id)s %(name)s: %(message)s"
JSON_FIELDS = "%(levelname)s %(name)s %(message)s %(correlation_id)s"
_SECRETS = (
    (FORM, r"ttk_\1_***"),
    (re.compile(r"(://[^\s/:@]*:)[^\s/@]+@"), r"\1***@"),
    (re.compile(r'([?&](?:ssl)?password=)(?:\\.|[^\s&"\\])+'), r"\1***"),  # to the end of a string in JSON, not beyond
)


class DiscreetHandler(logging.StreamHandler):  # type: ignore[type-arg]  # no class with parameters in Python 3.10
    """Writes lines to stderr, without the secrets that got into them."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        """The whole line, whatever formatter made it."""
        return hidden_secrets(super().format(record))


def hidden_secrets(text: str) -> str:
    """The text with stars for secrets; the id of a token stays."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def is_accepted_id(given: str) -> bool:
    """Whether a client's id may stand in our log: short, and nothing that looks like another line."""
    return ACCEPTED_ID.match(given) is not None


def install_logs(form: LogFormat) -> None:
    """Let everything that this process logs go to stderr in one form."""
    dictConfig(settings(form))


def settings(form: LogFormat) -> dict[str, Any]:
    """For logging.config.dictConfig."""
    formatters: dict[str, Any] = {
        "text": {"format": TEXT},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": JSON_FIELDS,
            "timestamp": "time",
            "rename_fields": {"levelname": "level", "name": "logger", "correlation_id": "request"},
            "reserved_attrs": [*RESERVED_ATTRS, "color_message"],
        },
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request": {"()": "asgi_correlation_id.CorrelationIdFilter", "default_value": "-"}},
        "formatters": {form: formatters[form]},
        "handlers": {"stderr": {"()": DiscreetHandler, "formatter": form, "filters": ["request"]}},
        "root": {"handlers": ["stderr"], "level": logging.INFO},
        "loggers": {name: {"level": logging.WARNING} for name in ("alembic", "asgi_correlation_id")},
    }
