"""The one place where text reaches a terminal. Much of it is others': an endpoint's error page, a bad row, a bundle's title. Control
characters in it are shown escaped, so that it can neither move the cursor nor set a title nor look like a line of ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import secrets


class Terminal(Console):
    """Rich's console; every text that it is given, also in a table's cell or title, goes through `shown`."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def plain(self, text: str, style: str | None = None, **options: Any) -> None:
        """A text as it is: neither markup nor highlighted numbers."""
        self.print(text, style=style, highlight=False, markup=False, **options)

    def whole(self, table: Table) -> None:
        """A table, wider than the screen where it must be: it runs on into the next line, for cut numbers would be no numbers."""
        Terminal(width=max(Terminal(width=10_000).measure(table).maximum, self.width)).print(table, highlight=False)


def plain_table(title: str, columns: Sequence[str], n_texts: int = 1) -> Table:
    """A table without lines, whose columns are as wide as they need; those after the first `n_texts` hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="left" if place < n_texts else "right")
    return table


def shown(text: str) -> str:
    """A text as it can be shown; its lines stay lines."""
    return "\n".join(map(secrets.shown, text.split("\n")))


def say(text: str, *, error: bool = False) -> None:
    """A line as it is, neither wrapped nor coloured."""
    print(shown(text), file=sys.stderr if error else sys.stdout)
