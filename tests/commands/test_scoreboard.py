"""`do=scoreboard`: a line for every published table, from committed tables, and what it counts."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from tiny import ROOT

from bench.cli.compose import open_command
from bench.commands import SOME_FAILED
from bench.commands.scoreboard import (
    ARTICLES,
    ScoreboardLine,
    headline,
    main,
    markdown,
    noise_counts,
    scoreboard,
)
from bench.papers import Word, tables

COMMITTED = ROOT / "results" / "sweeps"


@pytest.fixture(scope="module")
def lines() -> list[ScoreboardLine]:
    """The scoreboard of the committed tables."""
    made, problems = scoreboard(COMMITTED)
    assert not problems
    return made


def test_a_line_for_every_table_and_folders_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    for sweep in ("spa_ablation", "halos"):
        shutil.copytree(
            COMMITTED / sweep,
            results / "sweeps" / sweep,
            ignore=shutil.ignore_patterns("completions", "figures"),
        )
    (results / "sweeps" / "torn").mkdir()
    (results / "sweeps" / "torn" / "plan.json").write_text("{")
    assert main(open_command(["scoreboard", f"results={results}", "tracker=none"])) == SOME_FAILED
    out = capsys.readouterr().out
    assert f"{results}/sweeps/torn cannot be read: " in out
    with (results / "scoreboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    wanted = {table.id for table in tables().values() if table.article and not table.is_settings}
    assert {line["table"] for line in lines} == wanted and {line["article"] for line in lines} == set(
        ARTICLES
    )
    assert all(line[key] for line in lines for key in ("title", "source", "sweep", "scale", "command"))
    by_table = {line["table"]: line for line in lines}
    assert (by_table["spa_fig4_no_seed"]["scale"], by_table["spa_fig4_no_seed"]["rows_run"]) == ("world", "2")
    assert by_table["spa_fig4_no_seed"]["command"] == "python -m bench +sweep=spa_ablation"
    assert by_table["dpo_tldr_temperature"]["sweep"] == "no sweep"
    assert (
        by_table["spa_table1_main"]["rows_run"] == "0"
        and by_table["spa_table1_main"]["command"] == "python -m bench +sweep=spa"
    )
    text = (results / "scoreboard.md").read_text()
    assert "| - |" in text and "|  |" not in text
    first = headline(scoreboard(results / "sweeps")[0])[0]
    assert first in out and first in text


def test_orders_within_their_papers_noise_are_counted_by_the_rule() -> None:
    """SPA's table 6: +12.2 points over the seed's DPO, then +0.03 and +1.2 on standard errors of 2."""
    table6, spin, figure = (
        tables()[name] for name in ("spa_table6_ablation", "spin_mt_bench_and_bb", "spin_data_size")
    )
    assert noise_counts([table6]) == {"within": 2, "beyond": 1}
    assert noise_counts([spin]) == {"no standard error": 5}
    assert noise_counts([figure]) == {"slip or picture": 3}
    assert noise_counts([table6, table6, spin]).total() == 11


def test_each_table_is_counted_once_and_a_single_training_never(lines: list[ScoreboardLine]) -> None:
    published = {line.table.id: line.table for line in lines}
    total = sum(len(list(table.compared())) for table in published.values())
    assert f"Of {total} orders" in headline(lines)[0]
    halos = next(line for line in lines if line.sweep == "halos")
    assert halos.compared.count()[Word.SAME] and not any(
        one.verdict.counts for one in halos.compared.contrasts
    )
    assert "on one training)" in halos.verdicts


def test_roles_of_committed_sweeps_fit_one_row_each(lines: list[ScoreboardLine]) -> None:
    assert not [line.table.id for line in lines if line.compared.count()[Word.AMBIGUOUS]]


def test_the_committed_scoreboard_is_that_of_the_committed_tables(lines: list[ScoreboardLine]) -> None:
    """Otherwise: `python -m bench scoreboard`."""
    assert (ROOT / "results" / "scoreboard.md").read_text() == markdown(lines)
