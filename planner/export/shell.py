"""Arguments of a program, and shell scripts that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import NamedTuple


class Argument(NamedTuple):
    """One option with its values, `--option value value`."""

    option: str
    values: tuple[str, ...] = ()

    def words(self) -> tuple[str, ...]:
        """As the program gets them."""
        return (self.option, *self.values)


Arguments = tuple[Argument, ...]


def argument(option: str, *values: object) -> Argument:
    """An option with values of any kind."""
    return Argument(option, tuple(str(value) for value in values))


def arrays(groups: Mapping[str, Arguments]) -> str:
    """Each group as an array of bash, one option a line; empty groups too, for the script uses their names."""
    return "\n".join(f"{name}=(\n{_lines(arguments)})\n" for name, arguments in groups.items())


def continued(*lines: str) -> str:
    """One command over several lines."""
    return " \\\n    ".join(lines) + "\n"


def _lines(arguments: Arguments) -> str:
    return "".join(f"    {' '.join(quote(word) for word in each.words())}\n" for each in arguments)
