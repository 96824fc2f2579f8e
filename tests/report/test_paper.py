"""What a paper takes over: every text is escaped, bold is earned, columns are chosen, works are known, and it compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outer import outer
from tiny import plans

from bench.config import JUDGES, METHODS
from bench.report import Sweep, Table
from bench.report.paper import (
    BOLD,
    chosen_columns,
    escaped,
    latex,
    methods,
    references,
    unknown_columns,
    works,
)

NASTY = r"a_b^c~d\e{f}$g#h&i%j<k>l|m\"n`o'p--q,,r''s ≈ * † ß é β 中文 " + "\u200b\x07 \N{PILE OF POO}\nnext"
COLUMNS = [
    "row",
    "method",
    "beta",
    "seeds",
    "win rate vs chosen %",
    "vs start",
    "p (Holm)",
    "KL nats",
    "length",
]
ROWS = [
    ["1", "start", "", "3", "10.0 [8.0, 12.0]", "-", "-", "-", "30.0"],
    ["2", "kto †", "0.1", "3", "41.1 [38.7, 43.6] *", "+31.1 [+28.0, +34.2]", "<0.0001", "0.25", "29.9"],
    ["3", "dpo", "1", "2/3 !", "11.0 [9.0, 13.0]", "-1.0 [-3.0, +1.0] ≈", "0.0123", "1.50", "131.5"],
]
NOTES = {
    "How to read this table": ["A * marks the highest.", NASTY],
    "Fairness": ["All equal.", "† Steps differ."],
}
TABLE = Table(COLUMNS, ROWS, NOTES)
SWEEP = Sweep("kto_beta-0a", f"Which beta {NASTY}?", "+sweep=kto_beta", [])


@given(st.text())
def test_no_character_of_a_text_becomes_a_command(text: str) -> None:
    """Without our own commands and their braces, nothing is left that TeX reads as more than a letter."""
    known = r"\\(?:text(?:backslash|ascii(?:tilde|circum|grave)|less|greater|bar|quotedbl)\{\}|ldots\{\}|[%&_#{}$])"
    maths = r"\$(?:\\approx|\^\{\*\}|\^\{\\dagger\}|\\(?:pi|sigma|beta|lambda))\$"
    left = re.sub(f"{maths}|{known}", "", escaped(text))
    left = re.sub(r"(?<=[-,'])\{\}", "", left)
    assert not set(left) & set('\\{}$^~#&%_<>|"`\n\r\t') and all(
        ord(c) < 0x180 or c in "–—‘’“”" for c in left
    )


def test_numbers_stand_in_siunitx_columns_with_intervals_beside_them() -> None:
    tex = latex(TABLE, SWEEP)
    assert r"S[table-format=2.1]@{\,}lS[table-format=+2.1]@{\,}lS[table-format=1.4]S[table-format=1.2]" in tex
    assert (
        r"3 & dpo & 1 & 2/3 ! & 11.0 & $[9.0, 13.0]$ & -1.0 & $[-3.0, +1.0]$ $\approx$ & 0.0123 & 1.50 & 131.5 \\"
        in tex
    )
    assert r"1 & start & {} & 3 & 10.0 & $[8.0, 12.0]$ & {--} & & {--} & {--} & 30.0 \\" in tex
    assert r"{\textless{}0.0001}" in tex and r"kto $^{\dagger}$" in tex
    assert not any(line.startswith("next") for line in tex.splitlines())  # a comment is one line
    assert r"\label{tab:kto-beta-0a}" in tex and r"\caption{Which beta a\_b\textasciicircum{}c" in tex
    assert r"\item $^{\dagger}$ Steps differ." in tex and r"\item All equal" not in tex


def test_the_best_is_bold_only_where_it_is_told_apart() -> None:
    alone = latex(TABLE, SWEEP)
    assert r"\bfseries 41.1 & $[38.7, 43.6]$ &" in alone and BOLD.split("(")[0] in alone
    assert "$^{*}$ marks" not in alone  # no star is left to explain
    several = [*ROWS[:2], [*ROWS[2][:4], "40.0 [39.0, 41.0] *", *ROWS[2][5:]]]
    level = latex(replace(TABLE, rows=several), SWEEP)
    assert r"\bfseries" not in level and r"41.1 & $[38.7, 43.6]$ $^{*}$" in level and "$^{*}$ marks" in level
    assert r"\bfseries" not in latex(replace(TABLE, rows=ROWS[1:2]), SWEEP)  # nothing to be told apart from


def test_columns_are_chosen_by_the_beginnings_of_their_names() -> None:
    chosen, unknown = chosen_columns(TABLE, ["method", "KL", "Win Rate", "p", "nope", "ro"])
    assert chosen.columns == ["method", "KL nats", "win rate vs chosen %", "p (Holm)"] and unknown == [
        "nope",
        "ro",
    ]
    assert chosen.rows[1] == ["kto †", "0.25", "41.1 [38.7, 43.6] *", "<0.0001"]
    some = replace(SWEEP, columns=("method", "nope"))
    tex = latex(TABLE, some)
    assert "{method} \\\\" in tex and unknown_columns(TABLE, SWEEP) == []
    (line,) = unknown_columns(TABLE, some)
    assert line.startswith("columns: no column of this table begins with 'nope'; its columns: row, method")
    of_suite = Table(
        ["row", "a/win rate %", "b/win rate %", "b/length"], [["1", "1", "2", "3"]], {}, ("a", "b")
    )
    assert chosen_columns(of_suite, ["win rate"])[0].columns == ["a/win rate %", "b/win rate %"]
    assert chosen_columns(of_suite, ["b/length"])[0].columns == ["b/length"]


def test_every_work_that_is_cited_is_known_and_every_known_one_is_cited() -> None:
    named = {key for kind in (*METHODS.values(), *JUDGES.values()) for key in kind.cites}
    text = (Path(__file__).parents[2] / "bench/papers/references.bib").read_text(encoding="utf-8")
    assert set(re.findall(r"^@misc\{([^,]+),", text, re.MULTILINE)) == named
    assert all(kind.cites for name, kind in METHODS.items() if kind.trains and name != "reward_model")


def test_the_paragraph_and_the_references_come_from_the_settings() -> None:
    cells = plans("method=dpo,kto,spin", "seed=0,1", "data.fraction=0.5")
    sweep = replace(SWEEP, cells=cells)
    text, bib = methods(sweep), references(sweep)
    cited = {key for keys in re.findall(r"\\cite\{([^}]+)\}", text) for key in keys.split(",")}
    assert cited == set(re.findall(r"^@misc\{([^,]+),", bib, re.MULTILINE))
    assert cited == {"rafailov2023dpo", "ethayarajh2024kto", "chen2024spin"}
    assert "There are 2 seeds" in text and "Shares of the labels 0.5" in text and "learning rate" in text


@outer
def test_all_of_it_compiles_with_nasty_names(tmp_path: Path) -> None:
    if not shutil.which("pdflatex") or not shutil.which("bibtex"):
        pytest.skip("pdflatex and bibtex are not installed: texlive-latex-extra, texlive-science")
    rows = [[*row[:1], f"{row[1]} {NASTY}", *row[2:]] for row in ROWS]
    sweep = replace(SWEEP, cells=plans("method=dpo,kto,simpo", "seed=0,1"))
    suite = Table(
        ["row", "method", "a_b/win rate %", "c/rating"],
        [["1", "x", "1.0 [0.5, 2.0] *", "2.34"]],
        {},
        ("a_b", "c"),
    )
    _, hubs = works([])
    assert not hubs
    for name, table in (("table", replace(TABLE, rows=rows)), ("suite", suite)):
        (tmp_path / f"{name}.tex").write_text(latex(table, replace(sweep, name=name)), encoding="utf-8")
    (tmp_path / "methods.tex").write_text(methods(sweep), encoding="utf-8")
    (tmp_path / "references.bib").write_text(references(sweep), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{textcomp}"
        r"\usepackage{booktabs,siunitx,threeparttable,adjustbox,url}\begin{document}"
        r"\input{table}\input{suite}\input{methods}\bibliographystyle{plain}\bibliography{references}\end{document}"
    )
    tex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"]
    for command in (tex, ["bibtex", "main"], tex, tex):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    log = (tmp_path / "main.log").read_text(encoding="utf-8", errors="replace")
    assert "Overfull" not in log and "undefined" not in log and "Missing character" not in log
    assert (tmp_path / "main.pdf").stat().st_size > 10_000
