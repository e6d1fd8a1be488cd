"""The command `trimtab`. What goes wrong becomes one line on stderr and an exit code, never a traceback.

0: success · 2: bad input · 3: no plan fits in memory · 1: an error of Trimtab's own · 130: stopped
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from api.commands.config import config
from api.commands.database import database_commands
from api.commands.explain import diff, explain
from api.commands.export import export
from api.commands.import_galvatron import import_galvatron
from api.commands.options import shown
from api.commands.plan import plan
from api.commands.price import estimate, picture, timeline
from api.commands.profile import profile
from api.commands.replay import replay
from api.commands.serve import serve
from api.commands.token import token_commands
from api.commands.validate import validate
from api.problems import meaning
from planner.spec.errors import CancelledError, TrimtabError

_USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
"""UsageError: of click, or of the copy that newer versions of typer bring along."""


_COMMANDS = (
    plan,
    explain,
    estimate,
    diff,
    export,
    picture,
    timeline,
    profile,
    import_galvatron,
    replay,
    serve,
    config,
    validate,
)


def build() -> typer.Typer:
    """The command with its subcommands."""
    app = typer.Typer(
        name="trimtab",
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Plans the parallelism of Transformer training, and keeps re-planning while the training runs.",
    )
    app.callback()(_root)
    for command in _COMMANDS:
        app.command()(command)
    app.add_typer(token_commands())
    app.add_typer(database_commands())
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"trimtab {version('trimtab')}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of the command itself; the help text stands in `build`."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    stopped = meaning(CancelledError()).exit_code
    try:
        code = build()(list(arguments) or ["--help"], prog_name="trimtab", standalone_mode=False)
    except _USAGE_ERROR as error:
        return _fail(2, error.format_message().rstrip("."))
    except TrimtabError as error:
        return _fail(meaning(error).exit_code, shown(error))
    except (KeyboardInterrupt, typer.Abort):
        code = stopped
    except BrokenPipeError:
        # Whoever read our output has gone; let the interpreter's last flush go nowhere too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if code == stopped:
        # Newer versions of typer turn Ctrl-C into this code and say nothing.
        return _fail(stopped, "stopped")
    return code if isinstance(code, int) else 0


def _fail(code: int, message: str) -> int:
    print(f"trimtab: {message}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
