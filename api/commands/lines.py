"""Single lines for a person; light, for commands that have to be quick."""

from __future__ import annotations


def say(text: str) -> None:
    """Print a line to stdout, as it is."""
    print(text, flush=True)


def printable(text: str) -> str:
    """The text with its control characters escaped, as in "a\\x1b[2J"."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
