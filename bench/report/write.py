"""What a sweep leaves in `sweeps/<name>/`, and what is printed at its end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from bench.output_files import OutputFiles
from bench.report import fairness, figures, findings
from bench.report.completions import samples
from bench.report.csv_rows import flat_rows
from bench.report.groups import Group, Pooled, method_name, pool
from bench.report.passports import passport_lines
from bench.report.rows import Row, Sweep
from bench.report.tables import Table, comparison_table, latex, markdown
from bench.stats import estimates
from bench.store.store import Store
from bench.terminal import Terminal

SHORT_LINES = 12  # of certificate and findings on a terminal


@dataclass(frozen=True)
class Paths:
    """Where a report lies; `table` is the one that was written, `aids` its certificate and findings in short."""

    folder: Path
    figures: list[Path]
    table: Table
    aids: list[str]
    unwritten: list[str]  # lines on what could not be written, and why

    @property
    def for_tracker(self) -> list[Path]:
        return [self.folder / "table.md", self.folder / "table.csv", *self.figures]


def write_files(sweep: Sweep, rows: Sequence[Row], results: Path) -> Paths:
    """table.md .csv .tex, differences.csv, pairs.csv, cells.parquet, plan.json, fairness.json, findings.md, figures/ and completions/,
    and each cell's findings.json; same rows, same bytes."""
    folder, out = results / "sweeps" / sweep.name, OutputFiles(results)
    pooled = pool(rows)
    store = Store(results / "store")
    cells = [fairness.known(row, group, sweep.axes, store) for group in pooled.groups for row in group.rows]
    certificate, found = fairness.certify(cells, sweep.axes), findings.of_rows(rows, store)
    said = findings.lines(pooled.groups, found)
    table = _marked(comparison_table(pooled, sweep.expectations), pooled.groups, certificate)
    written = replace(table, notes=[*table.notes, *passport_lines(sweep, results, link=True), *certificate.lines(), *said])
    table = replace(table, notes=[*table.notes, *passport_lines(sweep, results)])
    out.write(folder / "table.md", markdown(sweep.title, f"python -m bench {sweep.command}", written))
    out.write(folder / "table.tex", latex(written))
    out.write(folder / "fairness.json", json.dumps(certificate.to_json(cells), indent=1, ensure_ascii=False))
    out.write(folder / "findings.md", findings.markdown(sweep.title, rows, found))
    for row in rows:
        _write_findings(out, results / "cells" / row.cell.name / "findings.json", found.get(row.cell.key))
    line = {row.cell.key: group.number for group in pooled.groups for row in group.rows}
    flat = [{"row": line[row["key"]], **row, "differs": certificate.words(row["key"])} for row in flat_rows(rows)]
    out.write(folder / "table.csv", csv_text(flat))
    out.write(folder / "differences.csv", csv_text([_against_start(group) for group in pooled.groups if group.against_start]))
    out.write(folder / "pairs.csv", csv_text(list(_pairs(pooled))))
    out.write(folder / "cells.parquet", _parquet(flat))
    out.write(folder / "plan.json", json.dumps(_plan(sweep), indent=1))
    for row in rows:
        if text := samples(row, store):
            out.write(folder / "completions" / f"{row.cell.name}.md", text)
    drawn = _write_figures(out, pooled, sweep.title, folder / "figures")
    return Paths(folder, drawn, table, _short([*certificate.short(), *said], folder), out.lines())


def _write_figures(out: OutputFiles, pooled: Pooled, title: str, folder: Path) -> list[Path]:
    """The figures' PNGs that now lie in the folder; those of earlier cells go."""
    drawn = figures.draw(pooled, title)
    for path in folder.glob("win_rate_by_*") if folder.is_dir() and not folder.is_symlink() else ():
        if path.name not in drawn:
            out.remove(path)
    written = [folder / name for name, content in drawn.items() if out.write(folder / name, content)]
    return [path for path in written if path.suffix == ".png"]


def _marked(table: Table, groups: Sequence[Group], certificate: fairness.Certificate) -> Table:
    """The table with a mark behind the method of each group that the certificate names."""
    marks = [f" {fairness.MARK}" if any(row.cell.key in certificate.differs for row in group.rows) else "" for group in groups]
    return replace(table, rows=[[row[0], row[1] + mark, *row[2:]] for row, mark in zip(table.rows, marks, strict=True)])


def _write_findings(out: OutputFiles, path: Path, found: Sequence[findings.Finding] | None) -> None:
    """Beside the cell's numbers; no file where there are none."""
    if found is None:
        out.remove(path)
    else:
        out.write(path, json.dumps(list(findings.to_json(found)), indent=1, allow_nan=False))


def _short(lines: list[str], folder: Path) -> list[str]:
    left = len(lines) - SHORT_LINES
    return lines if left <= 0 else [*lines[:SHORT_LINES], f"... {left} more in {folder}/table.md"]


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
    """Every interval of a group's difference to its start model; bench/stats/estimates.py says what each speaks about."""
    found = group.against_start
    assert found is not None
    row = {
        "model": group.cell.model.name,
        "data": group.cell.data.name,
        "method": method_name(group.cell),
        "beta": getattr(group.cell.method, "beta", None),
        "fraction": group.cell.data.fraction,
    }
    row |= _comparison(found)
    if (lc := group.lc_against_start) is not None:
        row |= {"lc_value": lc.lead.value, "lc_low": lc.lead.low, "lc_high": lc.lead.high, "lc_p_holm": lc.p_holm}
    return row


def _pairs(pooled: Pooled) -> Iterator[dict[str, Any]]:
    """Every pair of groups: win rate of the first minus that of the second."""
    names = {group.key: group.name for group in pooled.groups}
    for (a, b), found in pooled.pairs.items():
        if found is not None:
            yield {"first": names[a], "second": names[b], **_comparison(found)}


def _comparison(found: estimates.Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {"n_seeds": found.n_seeds, "n_items": found.n_items, "p_holm": found.p_holm}
    for name, difference in (("combined", found.combined), ("seeds", found.seeds), ("prompts", found.prompts)):
        for part in ("value", "standard_error", "low", "high", "t", "df", "p"):
            row[f"{name}_{part}"] = getattr(difference, part) if difference else None
    return row


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
                "stages": [{"kind": stage.kind, "key": stage.key, "label": stage.label} for stage in cell.stages],
            }
            for cell in sweep.cells
        ],
    }


def print_report(sweep: Sweep, paths: Paths, notes: Sequence[str], summary: str) -> None:
    console = Terminal(soft_wrap=True)
    print_table(sweep.title, replace(paths.table, notes=[*paths.table.notes, *paths.aids]), f"{paths.folder}/table.md")
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    console.print(f"{summary}", highlight=False, markup=False)
    for line in paths.unwritten:
        console.print(line, style="red", highlight=False, markup=False)
    console.print(f"table    {paths.folder}/table.md .csv .tex", highlight=False, markup=False)
    for figure in paths.figures:
        console.print(f"figure   {figure} .svg", highlight=False, markup=False)
    console.print(f"findings {paths.folder}/findings.md", highlight=False, markup=False)
    console.print(f"samples  {paths.folder}/completions/", highlight=False, markup=False)


def print_comparison(sweep: Sweep, rows: Sequence[Row]) -> None:
    print_table(sweep.title, comparison_table(pool(rows), sweep.expectations))


MATTERS = ("row", "method", "win rate %", "vs start", "p (Holm)", "rating", "KL nats", "length", "LC win rate %", "reward acc. %")


def columns_that_fit(table: Table, width: int) -> list[int]:
    """Places of the columns that fit side by side in `width` characters, those that matter most first; all of them where all fit."""
    widths = [max(map(len, texts)) + 2 for texts in zip(table.columns, *table.rows, strict=True)]
    n_settings = table.columns.index("seeds") + 1 if "seeds" in table.columns else 2
    order = sorted(
        range(len(widths)),
        key=lambda k: (k >= n_settings, MATTERS.index(name) if (name := table.columns[k]) in MATTERS else len(MATTERS), k),
    )
    first = [k for k in order if table.columns[k] in MATTERS[:3]]
    chosen: list[int] = []
    for k in [*first, *(k for k in order if k not in first)]:
        if sum(widths[one] for one in chosen) + widths[k] - 2 <= width:
            chosen.append(k)
    return sorted(chosen)


def print_table(title: str, table: Table, where: str = "") -> None:
    """A title, the table and its notes. A terminal shows the columns that fit; `where` has all of them. What is piped has all."""
    console = Terminal(soft_wrap=True)
    if console.is_terminal and where:
        kept = columns_that_fit(table, console.width)
        left = [column for k, column in enumerate(table.columns) if k not in kept]
        rows = [[row[k] for k in kept] for row in table.rows]
        notes = [f"Not shown at this width: {', '.join(left)}. All columns: {where}"] if left else []
        table = replace(table, columns=[table.columns[k] for k in kept], rows=rows, notes=[*notes, *table.notes])
    console.print()
    console.print(title, style="bold", highlight=False, markup=False)
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        shown.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    # A table wider than the terminal runs on into the next line: cut numbers would be no numbers.
    width = Terminal(width=10_000).measure(shown).maximum
    Terminal(width=max(width, console.width)).print(shown, highlight=False)
    for note in table.notes:
        style = "red" if note.startswith(("FAILED", "REFUSED", "FAULT")) else "dim"
        # A terminal breaks long lines between words; what is piped stays one line a note.
        console.print(note, style=style, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    console.print()
