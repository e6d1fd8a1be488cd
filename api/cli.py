"""The command `trimtab`. What goes wrong becomes one line on stderr and an exit code, never a traceback.

0: success · 2: bad input · 3: no plan fits in memory · 1: an error of Trimtab's own · 130: stopped
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer

from api.problems import meaning
from planner.spec.errors import CancelledError, TrimtabError

_USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
"""UsageError: of click, or of the copy that newer versions of typer bring along."""


_COMMANDS = {
    "plan": "plan",
    "explain": "explain",
    "estimate": "price",
    "diff": "explain",
    "export": "export",
    "picture": "price",
    "timeline": "price",
    "profile": "profile",
    "import_galvatron": "import_galvatron",
    "replay": "replay",
    "serve": "serve",
    "config": "config",
    "validate": "validate",
}
"""Functions, and the modules of `api.commands` that have them."""
_GROUPS = {"token": "token_commands", "database": "database_commands"}
"""Modules of `api.commands`, and their functions that make the group."""


def build(wanted: str | None = None) -> typer.Typer:
    """The command with its subcommands, or only with the `wanted` one, if there is such a one: no other is loaded."""
    app = typer.Typer(
        name="trimtab",
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Plans the parallelism of Transformer training, and keeps re-planning while the training runs.",
    )
    app.callback()(_root)
    name = (wanted or "").replace("-", "_")
    is_one = name in _COMMANDS or name in _GROUPS
    for function, module in _COMMANDS.items():
        if not is_one or function == name:
            app.command()(_loaded(module, function))
    for module, function in _GROUPS.items():
        if not is_one or module == name:
            app.add_typer(_loaded(module, function)())
    return app


def _loaded(module: str, function: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(import_module(f"api.commands.{module}"), function)
    return found


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
        code = build(next(iter(arguments), None))(
            list(arguments) or ["--help"], prog_name="trimtab", standalone_mode=False
        )
    except _USAGE_ERROR as error:
        return _fail(2, error.format_message().rstrip("."))
    except TrimtabError as error:
        from api.commands.options import shown  # noqa: PLC0415 - not above: loads far more than some commands need

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
