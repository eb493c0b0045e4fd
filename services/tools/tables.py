"""Tables: by rich on a terminal where it is installed, otherwise as plain text with the same words."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tickbus.sanitize import clean, escape

if TYPE_CHECKING:
    from rich.console import RenderableType


_MAX_CELL = 1_000
"""The command that mends a key must fit."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    """A column whose name begins with `>` is aligned to the right."""
    rows: Sequence[tuple[str, ...]]
    empty: str = "none"
    """Shown in place of rows."""


def for_terminal() -> bool:
    """Return whether to use `rich_tables`."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def plain_text(heading: str, tables: Sequence[Table]) -> str:
    return "\n\n".join([escape(heading), *("\n".join(_lines(_shown(table))) for table in tables)])


def _shown(table: Table) -> Table:
    """Return the table with nothing invisible in it: names in Redis are whatever somebody wrote."""
    rows = [tuple(clean(cell, _MAX_CELL) for cell in row) for row in table.rows]
    return Table(escape(table.title), table.columns, rows, clean(table.empty))


def _lines(table: Table) -> list[str]:
    if not table.rows:
        return [f"{table.title}: {table.empty}"]
    names = tuple(name.lstrip(">") for name in table.columns)
    widths = [max(map(len, cells)) for cells in zip(names, *table.rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        aligned = zip(table.columns, cells, widths, strict=True)
        return "  ".join(
            cell.rjust(width) if name.startswith(">") else cell.ljust(width) for name, cell, width in aligned
        ).rstrip()

    return [table.title, "  " + line(names), *("  " + line(row) for row in table.rows)]


def rich_tables(heading: str, tables: Sequence[Table]) -> "RenderableType":
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = [Text(escape(heading))]
    for table in map(_shown, tables):
        if not table.rows:
            parts.append(Text(f"\n{table.title}: {table.empty}"))
            continue
        rich_table = RichTable(
            title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold"
        )
        for name in table.columns:
            rich_table.add_column(
                name.lstrip(">"),
                justify="right" if name.startswith(">") else "left",
                no_wrap=name.startswith(">"),
            )
        for row in table.rows:
            rich_table.add_row(*map(Text, row))
        parts.append(rich_table)
    return Group(*parts)
