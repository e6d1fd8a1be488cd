"""From a RUNS file to its rows; every wrong row is named by its number and id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from planner.spec.errors import InputError, MalformedError, Problem
from planner.spec.parse import parse, read_json
from profiles.runs.plausible import implausible
from profiles.runs.record import RunRecord

SHOWN_PROBLEMS = 20
"""Problems of one file that are told one by one."""


def read_runs(file: Path | str | bytes) -> tuple[RunRecord, ...]:
    """All rows of a RUNS file (a path) or of its text (bytes): a list, or an object with a list as `runs`.

    Raises MalformedError where it cannot be read, and InputError that names wrong rows (by number and id) and fields.
    """
    if isinstance(file, bytes):
        text, field = file, "runs"
    else:
        field = str(file)
        try:
            text = Path(file).read_bytes()
        except OSError as error:
            raise MalformedError.at("runs", f"cannot read {file}: {error.strerror or error}") from None
    return records(read_json(text, field))


def records(data: object) -> tuple[RunRecord, ...]:
    """The rows of parsed JSON; raises InputError as `read_runs` does."""
    rows = data["runs"] if isinstance(data, Mapping) and "runs" in data else data
    if not isinstance(rows, list):
        raise InputError.at("runs", f'must be a list of rows, or an object with "runs": [...], is {_kind(rows)}')
    found: list[RunRecord] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        try:
            found.append(_record(row, _place(number, row)))
        except InputError as error:
            problems += error.problems
    problems += _twins(rows)
    if problems:
        rest = [Problem("runs", f"{len(problems) - SHOWN_PROBLEMS} more are wrong")] * (len(problems) > SHOWN_PROBLEMS)
        raise InputError(*problems[:SHOWN_PROBLEMS], *rest)
    return tuple(found)


def _record(row: object, place: str) -> RunRecord:
    record = parse(RunRecord, row, place)
    if problems := implausible(record):
        raise InputError(*problems).under(place)
    return record


def _place(number: int, row: object) -> str:
    """How errors call a row: by its number from 0, as in JSON paths, and its id where it has one."""
    own = row.get("id") if isinstance(row, Mapping) else None
    return f"runs[{number}] ({own})" if isinstance(own, str) and own else f"runs[{number}]"


def _twins(rows: Iterable[object]) -> list[Problem]:
    first: dict[str, int] = {}
    problems = []
    for number, row in enumerate(rows):
        own = row.get("id") if isinstance(row, Mapping) else None
        if isinstance(own, str) and first.setdefault(own, number) != number:
            problems.append(Problem(f"{_place(number, row)}.id", f"must be unique, runs[{first[own]}] has it too"))
    return problems


def _kind(value: object) -> str:
    return {dict: "an object without them", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
