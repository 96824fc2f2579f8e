"""Which columns of a table a terminal shows."""

from __future__ import annotations

from bench.report.tables import Table
from bench.report.write import columns_that_fit

COLUMNS = [
    "row",
    "method",
    "beta",
    "seeds",
    "win rate %",
    "LC win rate %",
    "vs start",
    "over seeds",
    "SEs",
    "p (Holm)",
    "rating",
    "length",
]
ROW = [
    "1",
    "kto",
    "0.1",
    "3",
    "41.1 [38.7, 43.6] *",
    "40.7",
    "+16.2 [+12.3, +20.0]",
    "[+1, +2]",
    "+9",
    "0.01",
    "7.3",
    "25",
]
TABLE = Table(COLUMNS, [ROW], {})


def shown(width: int) -> list[str]:
    return [COLUMNS[k] for k in columns_that_fit(TABLE, width)]


def test_a_wide_terminal_shows_all_columns() -> None:
    assert shown(200) == COLUMNS


def test_at_80_columns_the_columns_that_matter_stay_in_their_order() -> None:
    at_80 = shown(80)
    assert at_80 == ["row", "method", "beta", "seeds", "win rate %", "vs start", "p (Holm)"]
    assert shown(88) == [*at_80, "rating"]


def test_a_narrow_terminal_keeps_the_row_its_method_and_its_win_rate() -> None:
    assert shown(40) == ["row", "method", "beta", "win rate %"]
