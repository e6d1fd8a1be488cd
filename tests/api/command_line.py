"""The command in this process, and what it writes."""

from typing import NamedTuple

from api.cli import run


class Result(NamedTuple):
    code: int
    out: str
    err: str


def trimtab(capsys, *arguments: object) -> Result:
    """Run `trimtab` with these arguments."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    written = capsys.readouterr()
    return Result(code, written.out, written.err)
