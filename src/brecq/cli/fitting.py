"""A table that is readable on a narrow terminal too: there its rows become sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

LONGEST = 14
"""Letters of a word that stay together; longer ones, such as names of layers, are folded."""


class FittingTable(Table):
    """A table, or where its numbers and words do not fit side by side a paragraph for each row:

    `rounding to nearest  top-1 %: 95.31, agreement %: 98.44, time: 16 s`
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        padding = 2 * len(self.columns) - (0 if self.pad_edge else 2)
        if sum(map(_needs, self.columns)) + padding + self._extra_width <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text(str(self.title), style="bold")
        for cells in zip(*(map(str, column.cells) for column in self.columns), strict=True):
            facts = (
                f"{name}: {cell}" if name else cell
                for name, cell in zip((_name(column) for column in self.columns[1:]), cells[1:], strict=True)
                if cell
            )
            yield Text.assemble((cells[0], "bold"), "  " if cells[0] else "", ", ".join(facts))
        yield ""


def _name(column: Column) -> str:
    return " ".join(str(column.header).split())


def _needs(column: Column) -> int:
    """The letters that a column cannot do without."""
    longest = max(map(len, _pieces(column)), default=0)
    return longest if column.no_wrap else min(longest, LONGEST)


def _pieces(column: Column) -> Iterator[str]:
    """Lines of what is not wrapped, words of other text."""
    for text in (column.header, *column.cells):
        yield from str(text).splitlines() if column.no_wrap else str(text).split()
