"""Files of a finished sweep in `sweeps/<name>/`, and the report on the terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from bench.output_files import OutputFiles
from bench.records import grouped
from bench.report import figures, findings, page, paper, published
from bench.report.analysis import Analysis, analyse, comparison_columns, labelled, other_numbers
from bench.report.completions import samples
from bench.report.groups import Grid, Group, method_name, pool
from bench.report.passports import passport_lines
from bench.report.rows import CellRow, Sweep
from bench.report.tables import (
    FAIRNESS,
    FINDINGS,
    HOW_TO_READ,
    JUDGES,
    OPPONENTS,
    Table,
    comparison_table,
    markdown,
    print_titled,
)
from bench.terminal import Terminal

SHORT_LINES = 12  # Most lines of the certificate and the findings on a terminal.


@dataclass(frozen=True)
class Paths:
    """Folder and figures of a written report.

    `table` is the table for the terminal, with a short certificate and short findings.
    """

    folder: Path
    figures: list[Path]
    table: Table
    unwritten: list[str]  # One line per file that could not be written, with the reason.
    page: Path | None = None
    page_fault: str = ""  # Why there is no page, in one line. The command does not fail for it.

    @property
    def for_tracker(self) -> list[Path]:
        return [self.folder / "table.md", self.folder / "table.csv", *self.figures]


def write_files(sweep: Sweep, rows: Sequence[CellRow], results: Path) -> Paths:
    """Write the files of a sweep and each cell's findings.json; the same rows give the same bytes.

    A sweep has table.md .csv .tex, methods.tex, references.bib, differences.csv, pairs.csv, other_numbers.csv,
    published.csv, cells.parquet, plan.json, fairness.json, findings.md, figures/, completions/ and report.html.
    """
    folder, out = results / "sweeps" / sweep.name, OutputFiles(results)
    analysis = analyse(sweep, rows, results)
    pooled, store, compared = analysis.pooled, analysis.store, analysis.published
    written = analysis.full_table(link=True)
    shown = analysis.table.with_notes(
        {
            published.PUBLISHED: published.lines(compared, f"{folder}/table.md"),
            JUDGES: passport_lines(sweep, results),
            **_shortened(analysis.certificate.short(), analysis.finding_lines, folder),
        }
    )
    text = markdown(sweep.title, f"python -m bench {sweep.command}", written) + published.markdown(compared)
    out.write(folder / "table.md", text)
    out.write(folder / "table.tex", paper.latex(written, sweep))
    out.write(folder / "methods.tex", paper.methods(sweep))
    out.write(folder / "references.bib", paper.references(sweep))
    out.write(
        folder / "fairness.json",
        json.dumps(analysis.certificate.to_json(analysis.facts), indent=1, ensure_ascii=False),
    )
    out.write(folder / "findings.md", findings.markdown(sweep.title, rows, analysis.findings))
    for row in rows:
        path = results / "cells" / row.cell.name / "findings.json"
        if (found := analysis.findings.get(row.cell.key)) is not None:
            out.write(path, json.dumps(list(findings.to_json(found)), indent=1, allow_nan=False))
        else:
            out.remove(path)
    out.write(folder / "table.csv", csv_text(analysis.flat))
    out.write(
        folder / "differences.csv",
        csv_text(
            [
                labelled(label, pooled) | _against_start(group)
                for label, part in pooled.parts.items()
                for group in part.groups
                if group.against_start
            ]
        ),
    )
    out.write(folder / "pairs.csv", csv_text(analysis.pairs))
    for name, lines in {
        "other_numbers.csv": other_numbers(pooled),
        "published.csv": published.csv_lines(compared),
    }.items():
        if lines:
            out.write(folder / name, csv_text(lines))
        else:
            out.remove(folder / name)
    out.write(folder / "cells.parquet", _parquet(analysis.flat))
    out.write(folder / "plan.json", json.dumps(_plan(sweep), indent=1))
    for row in rows:
        if sample := samples(row, store):
            out.write(folder / "completions" / f"{row.cell.name}.md", sample)
    drawn = _write_figures(out, pooled, sweep.title, folder / "figures")
    unwritten = [*out.lines(), *paper.unknown_columns(written, sweep)]
    return Paths(folder, drawn, shown, unwritten, *_write_page(analysis, folder / "report.html"))


def _write_page(analysis: Analysis, path: Path) -> tuple[Path | None, str]:
    """(path of the page, "") or (None, why it was not written). A page from before is then removed."""
    out = OutputFiles(analysis.results)
    try:
        if out.write(path, page.render(analysis)):
            return path, ""
        return None, "; ".join(out.lines())
    except Exception as error:  # The numbers are in the other files, and must reach their reader.
        out.remove(path)
        return None, f"not written: {path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _write_figures(out: OutputFiles, pooled: Grid, title: str, folder: Path) -> list[Path]:
    """Paths of the PNGs written. Figures that this sweep no longer has are removed."""
    drawn = figures.draw(pooled, title)
    for path in folder.glob("*_by_*") if folder.is_dir() and not folder.is_symlink() else ():
        if path.name not in drawn:
            out.remove(path)
    written = [folder / name for name, content in drawn.items() if out.write(folder / name, content)]
    return [path for path in written if path.suffix == ".png"]


def _shortened(certificate: list[str], finding_lines: list[str], folder: Path) -> dict[str, list[str]]:
    """The first SHORT_LINES lines of certificate and findings by heading, and where the others are."""
    shown = {FAIRNESS: certificate[:SHORT_LINES]}
    shown[FINDINGS] = finding_lines[: SHORT_LINES - len(shown[FAIRNESS])]
    left = len(certificate) + len(finding_lines) - len(shown[FAIRNESS]) - len(shown[FINDINGS])
    if left:
        last = FINDINGS if len(certificate) <= SHORT_LINES and finding_lines else FAIRNESS
        shown[last] = [*shown[last], f"{left} more lines on fairness and findings are in {folder}/table.md."]
    return shown


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), content)
    return content.getvalue()


def _against_start(group: Group) -> dict[str, Any]:
    """Row of differences.csv: a group's difference to its start model with all its intervals.

    bench/stats/estimates.py explains each interval.
    """
    comparison = group.against_start
    assert comparison is not None
    row = {
        "model": group.cell.model.name,
        "data": group.cell.data.name,
        "method": method_name(group.cell),
        "beta": getattr(group.cell.method, "beta", None),
        "fraction": group.cell.data.fraction,
    }
    return row | comparison_columns(comparison)


def _plan(sweep: Sweep) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "question": sweep.question,
        "command": sweep.command,
        "cells": [
            {
                "key": cell.key,
                "name": cell.name,
                "config": cell.cell.model_dump(mode="json"),
                "stages": [
                    {"kind": stage.kind, "key": stage.key, "label": stage.label} for stage in cell.stages
                ],
            }
            for cell in sweep.cells
        ],
    }


def print_report(sweep: Sweep, paths: Paths, notes: Sequence[str], summary: str) -> None:
    console = Terminal(soft_wrap=True)
    print_table(sweep.title, paths.table, f"{paths.folder}/table.md")
    for note in notes:
        console.plain(note, "dim")
    console.plain(summary)
    for line in paths.unwritten:
        console.plain(line, "red")
    console.plain(paths.page_fault or f"page     {paths.page}", "red" if paths.page_fault else None)
    console.plain(f"table    {paths.folder}/table.md .csv .tex")
    for figure in paths.figures:
        console.plain(f"figure   {figure} .svg")
    console.plain(f"findings {paths.folder}/findings.md")
    console.plain(f"samples  {paths.folder}/completions/")


def print_comparison(sweep: Sweep, rows: Sequence[CellRow]) -> None:
    print_table(sweep.title, comparison_table(pool(rows), sweep.expectations, sweep.max_cut))


MATTERS = (
    "row",
    "method",
    "win rate %",
    "vs start",
    "p (Holm)",
    "p (of these trainings)",
    "rating",
    "KL nats",
    "length",
    "LC win rate %",
    "equal-length %",
    "reward acc. %",
)


AGAINST = re.compile(rf" vs ({'|'.join(OPPONENTS)}) %$")  # A win rate's column that names its opponent.


def columns_that_fit(table: Table, width: int) -> list[int]:
    """Indices of the columns that fit in `width` characters, in table order.

    The row's first columns and the first number of each evaluation are taken first, then the settings, then
    the columns of MATTERS.
    """
    widths = [max(map(len, texts)) + 2 for texts in zip(_heads(table), *table.rows, strict=True)]
    names = [AGAINST.sub(" %", table.placed(column)[1]) for column in table.columns]
    n_settings = table.columns.index("seeds") + 1 if "seeds" in table.columns else 2
    of_label: dict[str, list[int]] = {}
    for k, column in enumerate(table.columns):
        of_label.setdefault(table.placed(column)[0], []).append(k)
    headlines = [of_label[label][0] for label in table.evaluations if label in of_label]
    order = sorted(
        range(len(widths)),
        key=lambda k: (
            k >= n_settings,
            MATTERS.index(names[k]) if names[k] in MATTERS else len(MATTERS),
            k,
        ),
    )
    first = [k for k in order if AGAINST.sub(" %", table.columns[k]) in MATTERS[:3]] + headlines
    chosen: list[int] = []
    for k in [*first, *(k for k in order if k not in first)]:
        if sum(widths[one] for one in chosen) + widths[k] - 2 <= width:
            chosen.append(k)
    return sorted(chosen)


def _heads(table: Table) -> list[str]:
    """The longest line of each column's head."""
    return [max(table.placed(column), key=len) for column in table.columns]


def _named(table: Table, columns: Sequence[str]) -> str:
    """Names of columns in words, each evaluation's after its label."""
    by_label = grouped(table.placed(column) for column in columns)
    return "; ".join(
        f"{label}: {', '.join(names)}" if label else ", ".join(names) for label, names in by_label.items()
    )


def print_table(title: str, table: Table, where: str = "") -> None:
    """Print a title, the table and the lines under it.

    A terminal shows only the columns that fit, and names the others and the file (`where`) with all columns.
    Piped output has all columns. The label of an evaluation stands above the names of its columns.
    """
    console = Terminal(soft_wrap=True)
    if console.is_terminal and where:
        kept = columns_that_fit(table, console.width)
        left = [column for k, column in enumerate(table.columns) if k not in kept]
        rows = [[row[k] for k in kept] for row in table.rows]
        hidden = (
            [f"Columns that do not fit on this screen: {_named(table, left)}. All columns are in {where}."]
            if left
            else []
        )
        notes = {HOW_TO_READ: [*hidden, *table.notes.get(HOW_TO_READ, ())]}
        table = replace(
            table, columns=[table.columns[k] for k in kept], rows=rows, notes={**table.notes, **notes}
        )
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        head = "\n".join(filter(None, table.placed(column)))
        shown.add_column(
            head, justify="left" if column == "method" else "right", no_wrap=True, vertical="bottom"
        )
    for row in table.rows:
        shown.add_row(*row)
    print_titled(title, shown, table.notes, table.above)
