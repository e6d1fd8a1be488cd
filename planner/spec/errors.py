"""The one error tree. Entry points translate it once: to exit codes and to HTTP problems.

TrimtabError
├── InputError            the input cannot be right; names the field and what would be right
│   └── MalformedError    the input cannot even be read (not JSON, no such file)
├── NoPlanFitsError       sound input, but every plan exceeds the memory; carries the nearest miss
├── NotFoundError         nothing has this id
├── ConflictError         the thing exists, but its state forbids the request
├── TooLargeError         above a limit that the service declares
├── UnavailableError      a service that is needed does not answer
├── CancelledError        the user stopped the work
└── InternalError         a promise of Trimtab's own is broken: a bug
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ValidationError


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input: `field` is a dotted path into it, `message` says what would be right."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class TrimtabError(Exception):
    """Root of everything that Trimtab raises on purpose."""


class InputError(TrimtabError):
    """The input cannot be right."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))

    @classmethod
    def at(cls, field: str, message: str) -> InputError:
        """The error for one field."""
        return cls(Problem(field, message))

    @classmethod
    def from_validation(cls, error: ValidationError, root: str = "") -> InputError:
        """Translate pydantic's complaint; `root` names the value that was read (`cluster`, say)."""
        return cls(*(_problem(root, dict(item)) for item in error.errors(include_url=False)))

    def under(self, root: str) -> InputError:
        """The same problems, with their fields seen from one level further out."""
        return type(self)(*(Problem(f"{root}.{p.field}" if p.field else root, p.message) for p in self.problems))


class MalformedError(InputError):
    """The input cannot be read at all."""


@dataclass(frozen=True)
class NearestMiss:
    """The plan that came closest to fitting, and the stage that lacks memory."""

    summary: str
    stage: int
    missing_bytes: int
    limit_bytes: int

    def __str__(self) -> str:
        return (
            f"the nearest miss is {self.summary}: stage {self.stage} lacks "
            f"{self.missing_bytes / 2**30:.2f} GiB of {self.limit_bytes / 2**30:.2f} GiB"
        )


class NoPlanFitsError(TrimtabError):
    """No plan of the space fits in the memory of the devices."""

    def __init__(self, nearest_miss: NearestMiss) -> None:
        self.nearest_miss = nearest_miss
        super().__init__(f"no plan fits in memory; {nearest_miss}; add devices or memory, or shorten the sequence")

    def __reduce__(self) -> tuple[type[NoPlanFitsError], tuple[NearestMiss]]:
        return (type(self), (self.nearest_miss,))


class NotFoundError(TrimtabError):
    """Nothing has this id."""


class ConflictError(TrimtabError):
    """The state of the thing forbids the request."""


class TooLargeError(TrimtabError):
    """Above a declared limit."""


class UnavailableError(TrimtabError):
    """A service that is needed does not answer."""


class CancelledError(TrimtabError):
    """The user stopped the work."""


class InternalError(TrimtabError):
    """A promise of Trimtab's own is broken."""


# A validator of a whole value may begin its message with the field that is wrong: "runs[2].strategy: must …".
_NAMED_FIELD = re.compile(r"(?P<field>[a-z_]+(\[\d+\])?(\.[a-z_]+(\[\d+\])?)*): ")


def _problem(root: str, item: dict[str, object]) -> Problem:
    location = item["loc"]
    assert isinstance(location, tuple)
    path = ".".join(str(part) for part in (root, *location) if part != "")
    message = str(item["msg"]).removeprefix("Value error, ")
    named = _NAMED_FIELD.match(message) if item["type"] == "value_error" else None
    if named:
        path, message = f"{path}.{named['field']}".lstrip("."), message[named.end() :]
    if item["type"] == "missing":
        message = "is required"
    elif item["type"] == "extra_forbidden":
        message = "is not a known field"
    given = item.get("input")
    if isinstance(given, str | int | float | bool) and item["type"] != "value_error":
        message = f"{message}, got {given!r}"
    return Problem(path or "input", message)
