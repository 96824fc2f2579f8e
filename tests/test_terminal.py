"""What others wrote reaches the terminal with its control characters escaped."""

from __future__ import annotations

import pytest
from rich.table import Table

from bench.terminal import Terminal, say

FOREIGN = "page \x1b[2J\x1b]0;title\x07 of\u202e others\r\b"
SHOWN = r"page \x1b[2J\x1b]0;title\x07 of\u202e others\x0d\x08"


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{FOREIGN}\nnext")
    say(FOREIGN, error=True)
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"{SHOWN}\nnext\n", f"{SHOWN}\n")


def test_tables_titles_and_lines_of_the_screen_are_escaped_alike(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=FOREIGN, box=None)
    table.add_column(FOREIGN, no_wrap=True)
    table.add_row(FOREIGN)
    console = Terminal(width=300)
    console.print(table)
    console.print(FOREIGN, highlight=False, markup=False)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 4
    assert not set(out) & set("\x1b\x07\r\b\u202e")
