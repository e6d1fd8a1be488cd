"""The one error tree. Entry points translate it once: to exit codes and to HTTP problems.

TrimtabError
├── InputError            the input cannot be right; names the field and what would be right
│   └── MalformedError    the input cannot even be read (not JSON, no such file)
├── NoPlanFitsError       sound input, but every plan exceeds the memory; carries the nearest miss
├── NotFoundError         nothing has this id
├── ConflictError         the thing exists, but its state forbids the request
├── PreconditionError     the thing is another than the request expects
├── TooLargeError         above a limit that the service declares
├── ForbiddenError        who asks may not do this
│   └── UnauthenticatedError  it is not known who asks
├── TooManyRequestsError  who asks, asks too often
├── UnavailableError      a service that is needed does not answer
├── CancelledError        the user stopped the work
├── RankFailedError       a process of a training job on this machine raised or died
└── InternalError         a promise of Trimtab's own is broken: a bug
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

MOST_PROBLEMS = 20
"""That one error names; the others are counted."""


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
    """The input cannot be right. `num_more`: complaints beyond the problems that are named."""

    def __init__(self, *problems: Problem, num_more: int = 0) -> None:
        self.problems = problems
        self.num_more = num_more
        super().__init__("; ".join([*map(str, problems), *([f"and {num_more} more"] if num_more else [])]))

    @classmethod
    def at(cls, field: str, message: str) -> InputError:
        """The error for one field."""
        return cls(Problem(field, message))

    @classmethod
    def from_validation(cls, error: ValidationError, root: str = "", data: object = None) -> InputError:
        """Translate pydantic's complaint; `root` names the value (`cluster`, say), `data` is what it was read from."""
        return cls.from_details((dict(item) for item in error.errors(include_url=False)), root, data)

    @classmethod
    def from_details(cls, details: Iterable[Mapping[str, object]], root: str = "", data: object = None) -> InputError:
        """Translate the entries of pydantic's `errors()`; one problem for each field, however many ways it is wrong.

        Beyond the first fields, entries are counted and not looked at: there may be one for each value of a body.
        """
        messages: dict[str, list[str]] = {}
        given: dict[str, list[str]] = {}
        num_more = 0
        for item in details:
            if len(messages) > MOST_PROBLEMS:
                num_more += 1
            elif not _follows_from_others(item):
                problem = _problem(root, item, data)
                messages.setdefault(problem.field, []).append(problem.message)
                given.setdefault(problem.field, []).extend(_got(item))
        problems = [
            Problem(field, ", or: ".join(dict.fromkeys(said)) + "".join(dict.fromkeys(given[field])))
            for field, said in messages.items()
        ]
        return cls(*problems[:MOST_PROBLEMS], num_more=num_more + len(problems[MOST_PROBLEMS:]))

    def under(self, root: str) -> InputError:
        """The same problems, with their fields seen from one level further out."""
        problems = (Problem(f"{root}.{p.field}" if p.field else root, p.message) for p in self.problems)
        return type(self)(*problems, num_more=self.num_more)


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
            f"the nearest miss is {self.summary}: stage {self.stage} needs "
            f"{(self.limit_bytes + self.missing_bytes) / 2**30:.2f} GiB, has {self.limit_bytes / 2**30:.2f} GiB and so "
            f"lacks {self.missing_bytes / 2**30:.2f} GiB"
        )


class NoPlanFitsError(TrimtabError):
    """No plan of the space fits in the memory of the devices."""

    def __init__(self, nearest_miss: NearestMiss) -> None:
        self.nearest_miss = nearest_miss
        super().__init__(
            f"no plan fits in memory; {nearest_miss}; add devices or memory, shorten the sequence, "
            "or let the host keep the optimizer's state (offload)"
        )

    def __reduce__(self) -> tuple[type[NoPlanFitsError], tuple[NearestMiss]]:
        return (type(self), (self.nearest_miss,))


class NotFoundError(TrimtabError):
    """Nothing has this id."""


class ConflictError(TrimtabError):
    """The state of the thing forbids the request."""


class PreconditionError(TrimtabError):
    """The thing has changed since the client looked at it."""


class TooLargeError(TrimtabError):
    """Above a declared limit."""


class ForbiddenError(TrimtabError):
    """Who asks may not do this."""


class UnauthenticatedError(ForbiddenError):
    """It is not known who asks: no token, or none that is valid."""


class TooManyRequestsError(TrimtabError):
    """Who asks, asks too often; `retry_after_s` seconds from now it may go on."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def __reduce__(self) -> tuple[type[TooManyRequestsError], tuple[str, float]]:
        return (type(self), (str(self), self.retry_after_s))


class UnavailableError(TrimtabError):
    """A service that is needed does not answer. `retry_after_s`: for how long it asked to be left alone, 0 if not."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def __reduce__(self) -> tuple[type[UnavailableError], tuple[str, float]]:
        return (type(self), (str(self), self.retry_after_s))


class CancelledError(TrimtabError):
    """The user stopped the work."""


class RankFailedError(TrimtabError):
    """A rank raised or died. Its text carries the rank's traceback, `summary` says it in one line."""

    def __init__(self, summary: str, trace: str = "") -> None:
        self.summary = summary
        self.trace = trace
        super().__init__(f"{summary}\n{trace}" if trace else summary)

    def __reduce__(self) -> tuple[type[RankFailedError], tuple[str, str]]:
        return (type(self), (self.summary, self.trace))


class InternalError(TrimtabError):
    """A promise of Trimtab's own is broken."""


# A validator of a whole value may begin its message with the field that is wrong: "runs[2].strategy: must …".
_NAMED_FIELD = re.compile(r"(?P<field>[a-z_]+(\[\d+\])?(\.[a-z_]+(\[\d+\])?)*): ")


def _follows_from_others(item: Mapping[str, object]) -> bool:
    """Whether a sequence is called too short, or a default not made, only because of what is said by itself."""
    if item["type"] == "default_factory_not_called":
        return True
    given = item.get("input")
    return item["type"] == "too_short" and isinstance(given, list | tuple) and len(given) > 0


def _path(item: Mapping[str, object], data: object) -> list[str]:
    """The way into the input: pydantic's location without the names that it gives to the members of unions."""
    location = item["loc"]
    assert isinstance(location, tuple)
    if data is None:
        return [str(part) for part in location]
    path: list[str] = []
    here = data
    for part in location:
        in_mapping = isinstance(here, Mapping) and part in here
        if in_mapping or (isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)):
            here = here[part]  # type: ignore[index]
        elif item["type"] != "missing" or part != location[-1]:
            continue
        path.append(str(part))
    return path


def _problem(root: str, item: Mapping[str, object], data: object) -> Problem:
    path = ".".join(_shown(part) for part in (root, *_path(item, data), *_tag(item)) if part != "")
    message = str(item["msg"]).removeprefix("Value error, ")
    named = _NAMED_FIELD.match(message) if item["type"] == "value_error" else None
    if named:
        path, message = f"{path}.{named['field']}".lstrip("."), message[named.end() :]
    return Problem(path or "input", _PLAIN.get(str(item["type"])) or _counted(item) or _SHOULD.sub("must", message))


def _tag(item: Mapping[str, object]) -> tuple[str, ...]:
    """The field that says which of several forms is meant, where it is what is wrong."""
    context = item.get("ctx")
    if not str(item["type"]).startswith("union_tag_") or not isinstance(context, Mapping):
        return ()
    quoted = _QUOTED.fullmatch(str(context["discriminator"]))
    return (quoted["name"],) if quoted else ()


def _counted(item: Mapping[str, object]) -> str | None:
    """In our words what pydantic says with limits, with what is allowed, with the tags of a union or with a pattern."""
    context = item.get("ctx")
    if not isinstance(context, Mapping):
        return None
    told: str | None = None
    match item["type"]:
        case "too_short":
            at_least = context["min_length"]
            told = f"must have at least {at_least} {'entry' if at_least == 1 else 'entries'}"
        case "too_long":
            told = f"must have at most {context['max_length']} entries"
        case "union_tag_invalid":
            tags = str(context["expected_tags"]).replace(", ", " or ")
            told = f"must be {tags}, got {context['tag']!r:.{_SHOWN_CHARACTERS}}"
        case "union_tag_not_found":
            told = "is required"
        case "greater_than_equal" if isinstance(context["ge"], float):
            told = f"must be greater than or equal to {context['ge']:g}"
        case "less_than_equal" if isinstance(context["le"], float):
            told = f"must be less than or equal to {context['le']:g}"
        case "literal_error":
            told = "must be " + _ENUM_MEMBER.sub(r"\g<value>", str(context["expected"]))
        case "string_pattern_mismatch" if context["pattern"] == NO_NUL:
            told = "must not hold the character NUL"
    return told


# What pydantic calls by the names of Python's types.
_PLAIN = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
}
NO_NUL = r"^[^\x00]*$"
"""What any text must be that goes to the database: PostgreSQL knows no text with the character NUL."""
_ENUM_MEMBER = re.compile(r"<\w+\.\w+: (?P<value>'[^']*')>")
_QUOTED = re.compile(r"'(?P<name>\w+)'")
_SHOULD = re.compile(r"^(Input|String) should\b")
_SHOWN_CHARACTERS = 80
"""Of a value in a message, and of a name in a path."""


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _got(item: Mapping[str, object]) -> list[str]:
    """What stands in the place of the right value, as JSON calls it; nothing where the message itself shows it."""
    given, kind = item.get("input"), str(item["type"])
    if isinstance(given, bool) and kind != "value_error":
        return [f", got {str(given).lower()}"]
    if isinstance(given, str | int | float) and kind != "value_error":
        return [f", got {_shown(repr(given))}"]
    if not kind.endswith("_type"):
        return []
    names = {type(None): "null", dict: "an object", list: "a list", tuple: "a list"}
    return [f", got {names[type(given)]}"] if type(given) in names else []
