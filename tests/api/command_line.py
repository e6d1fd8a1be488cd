"""The command in this process, and what it writes."""

import logging
from typing import NamedTuple

from api.cli import run


class Result(NamedTuple):
    code: int
    out: str
    err: str


def trimtab(capsys, *arguments: object) -> Result:
    """Run `trimtab` with these arguments."""
    capsys.readouterr()
    handlers = logging.root.handlers[:]
    try:
        code = run([str(argument) for argument in arguments])
    finally:
        logging.root.handlers[:] = handlers  # `serve` writes to a stream that is the test's, and ends with it
    written = capsys.readouterr()
    return Result(code, written.out, written.err)
