"""Prints text on the terminal, with control characters escaped.

Much of the text comes from outside: an endpoint's error page, a bad row, a bundle's title. Escaped, it cannot
move the cursor, set the terminal's title or imitate a line of bench.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import secrets


class Terminal(Console):
    """Rich's console. All its text, also in cells and titles of tables, goes through `shown`."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def plain(self, text: str, style: str | None = None, **options: Any) -> None:
        """Print a text without markup and without highlighted numbers."""
        self.print(text, style=style, highlight=False, markup=False, **options)

    def whole(self, table: Table) -> None:
        """Print a whole table.

        A row that is wider than the screen continues in the next line, so no number is cut.
        """
        Terminal(width=max(Terminal(width=10_000).measure(table).maximum, self.width)).print(
            table, highlight=False
        )


def plain_table(title: str, columns: Sequence[str], n_texts: int = 1) -> Table:
    """A table without lines and with columns as wide as their content.

    The columns after the first `n_texts` hold numbers and are aligned to the right.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="left" if place < n_texts else "right")
    return table


def shown(text: str) -> str:
    """The text with secrets removed and control characters escaped, except line ends."""
    return "\n".join(map(secrets.shown, text.split("\n")))


def say(text: str, *, error: bool = False) -> None:
    """Print a line, neither wrapped nor coloured, to stdout or (`error`) to stderr."""
    print(shown(text), file=sys.stderr if error else sys.stdout)
