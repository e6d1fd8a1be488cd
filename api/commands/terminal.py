"""What a person sees: tables on stdout, progress and messages on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from api.commands.lines import printable, say
from planner.view import Column, Table

WIDTH_OF_FILES = 160
"""Columns where stdout is no terminal."""


def show(
    *tables: Table, highlight_first: bool = False, whole_lines: bool = False, droppable: str | None = "id"
) -> None:
    """Print tables to stdout; with `whole_lines` no cell is folded where stdout is no terminal, as wide as it gets.

    `droppable`: the column that a narrow terminal may do without.
    """
    plain = [_plain(table) for table in tables]
    widest = max(map(_width, plain), default=0) if whole_lines else 0
    console = Console(width=None if sys.stdout.isatty() else max(WIDTH_OF_FILES, widest))
    for table in plain:
        with console.capture() as caught:
            console.print(_rendered(fitted(table, console.width, droppable), highlight_first))
        say("\n".join(line.rstrip() for line in caught.get().splitlines()))


def _plain(table: Table) -> Table:
    return table._replace(rows=tuple(tuple(printable(cell) for cell in row) for row in table.rows))


def fitted(table: Table, width: int, droppable: str | None = "id") -> Table:
    """The table as it is, or turned on its side if only that fits, or else without this column; cells fold then."""
    if _width(table) <= width:
        return table
    turned = _turned(table)
    return turned if _width(turned) <= width else _without(table, droppable)


def _width(table: Table) -> int:
    """Characters that no cell needs to fold in."""
    cells = zip([column.title for column in table.columns], *table.rows, strict=True)
    return sum(max(map(cell_len, column)) + len("   ") for column in cells)


def _turned(table: Table) -> Table:
    """A row for each column after the first, which becomes the head."""
    head, *others = zip([column.title for column in table.columns], *table.rows, strict=True)
    columns = (Column(head[0]), *(Column(title, numeric=True) for title in head[1:]))
    return Table(table.title, columns, tuple(others))


def _without(table: Table, title: str | None) -> Table:
    kept = [number for number, column in enumerate(table.columns) if column.title != title]
    rows = tuple(tuple(row[number] for number in kept) for row in table.rows)
    return Table(table.title, tuple(table.columns[number] for number in kept), rows)


def _rendered(table: Table, highlight_first: bool) -> RichTable:
    rendered = RichTable(
        title=Text(table.title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        min_width=cell_len(table.title) or None,
    )
    for column in table.columns:
        cells = [row[len(rendered.columns)] for row in table.rows]
        rendered.add_column(
            Text(column.title),
            justify="right" if column.numeric else "left",
            overflow="fold",
            min_width=max(map(cell_len, cells), default=0) if column.numeric else None,
        )
    for number, row in enumerate(table.rows):
        style = "bold green" if highlight_first and number == 0 else None
        rendered.add_row(*(Text(cell) for cell in row), style=style)
    return rendered


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """A function that shows progress from 0 to 1 on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda progress, message: None
        return
    fixed, rest = RichColumn(no_wrap=True, min_width=4), RichColumn(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        SpinnerColumn(),
        TimeElapsedColumn(table_column=RichColumn(no_wrap=True, min_width=7)),
        BarColumn(bar_width=24, table_column=RichColumn(no_wrap=True, min_width=24)),
        TextColumn("{task.percentage:>3.0f}%", table_column=fixed),
        TextColumn("{task.description}", table_column=rest, markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda progress, message: bar.update(task, completed=progress, description=f"{title}: {message}")
