"""What the files and the page of a sweep show, computed once from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import fairness, findings, published
from bench.report.csv_rows import flat_rows
from bench.report.groups import Grid, pool
from bench.report.passports import passport_lines
from bench.report.rows import CellRow, Sweep
from bench.report.tables import FAIRNESS, FINDINGS, JUDGES, Table, comparison_table
from bench.stats import estimates
from bench.store.store import Store


@dataclass(frozen=True)
class Analysis:
    """Numbers and words about a sweep.

    `table` has the notes on how to read it and what was expected, without those on judges, fairness and
    findings. `flat` holds the rows of table.csv, `pairs` those of pairs.csv.
    """

    sweep: Sweep
    rows: Sequence[CellRow]
    results: Path
    store: Store
    pooled: Grid
    facts: Sequence[fairness.CellFacts]
    certificate: fairness.Certificate
    findings: Mapping[str, Sequence[findings.Finding]]  # By cell key.
    table: Table
    flat: Sequence[Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    published: Sequence[published.ComparedTable]

    @property
    def finding_lines(self) -> list[str]:
        return findings.lines(self.pooled.groups, self.findings)

    def full_table(self, *, link: bool = False) -> Table:
        """The table with all its notes. `link` writes passports as Markdown links."""
        notes = {
            JUDGES: passport_lines(self.sweep, self.results, link=link),
            FAIRNESS: self.certificate.lines(),
            FINDINGS: self.finding_lines,
        }
        return self.table.with_notes(notes)


def analyse(sweep: Sweep, rows: Sequence[CellRow], results: Path, store: Store | None = None) -> Analysis:
    """Pool the rows, compare them, certify their fairness and look for findings.

    `store`: the store of `results`, where one is open already.
    """
    pooled, store = pool(rows), store or Store(results / "store")
    facts = [fairness.known(row, group, sweep.axes, store) for group in pooled.groups for row in group.rows]
    certificate = fairness.certify(facts, sweep.axes)
    table = comparison_table(pooled, sweep.expectations, sweep.max_cut)
    marks = [
        f" {fairness.MARK}" if any(r.cell.key in certificate.differs for r in group.rows) else ""
        for group in pooled.groups
    ]
    table.rows[:] = [
        [number, method + mark, *rest]
        for (number, method, *rest), mark in zip(table.rows, marks, strict=True)
    ]
    line = {row.cell.key: group.number for group in pooled.groups for row in group.rows}
    flat = [
        {"row": line[row["key"]], **row, "differs": certificate.words(row["key"])} for row in flat_rows(rows)
    ]
    pairs = _pairs(pooled)
    configs = {row.cell.key: row.cell.cell.model_dump(mode="json") for row in rows}
    return Analysis(
        sweep,
        rows,
        results,
        store,
        pooled,
        facts,
        certificate,
        findings.of_rows(rows, store, sweep.max_cut),
        table,
        flat,
        pairs,
        published.compare(sweep.published, published.numbers_of(configs, flat, pairs)),
    )


def _pairs(pooled: Grid) -> list[dict[str, Any]]:
    """Rows of pairs.csv."""
    names = {group.key: group.name for group in pooled.groups}
    numbers = {group.key: group.number for group in pooled.groups}
    return [
        {
            **labelled(label, pooled),
            "first_row": numbers[a],
            "second_row": numbers[b],
            "first": names[a],
            "second": names[b],
            **comparison_columns(pair),
        }
        for label, part in pooled.parts.items()
        for (a, b), pair in part.pairs.items()
        if pair is not None
    ]


def other_numbers(pooled: Grid) -> list[dict[str, Any]]:
    """Rows of other_numbers.csv: ratings, reward accuracy, KL and others, compared as the win rate is.

    `family` says over which tests p is corrected: all rows against their start models (`start`), or all
    `pairs` of rows, for one number in one evaluation.
    """
    lines = []
    for label, part in pooled.parts.items():
        of = {group.key: group for group in part.groups}
        for name, pairs in part.other_pairs.items():
            compared = [
                ("start", group, of.get(group.rows[0].start_key), group.others_against_start.get(name))
                for group in part.groups
            ] + [("pairs", of[a], of[b], pair) for (a, b), pair in pairs.items()]
            lines += [
                {
                    **labelled(label, pooled),
                    "number": name,
                    "family": family,
                    "first_row": first.number,
                    "second_row": second.number,
                    "first": first.name,
                    "second": second.name,
                    **comparison_columns(comparison),
                }
                for family, first, second, comparison in compared
                if comparison is not None and second is not None
            ]
    return lines


def labelled(label: str, pooled: Grid) -> dict[str, str]:
    """The column with the label of an evaluation; none where every row has one judge."""
    return {"evaluation": label} if pooled.evaluations else {}


def comparison_columns(of: estimates.Comparison) -> dict[str, Any]:
    """Columns of differences.csv and pairs.csv with a comparison's three intervals."""
    row: dict[str, Any] = {"n_seeds": of.n_seeds, "n_items": of.n_items, "p_holm": of.p_holm}
    for name, difference in (("combined", of.combined), ("seeds", of.seeds), ("prompts", of.prompts)):
        for part in ("value", "standard_error", "low", "high", "t", "df", "p"):
            row[f"{name}_{part}"] = getattr(difference, part) if difference else None
    return row
