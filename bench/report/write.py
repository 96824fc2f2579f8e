"""What a sweep leaves in `sweeps/<name>/`, and what is printed at its end."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from bench import stats
from bench.report import figures
from bench.report.completions import write_samples
from bench.report.rows import Group, Pooled, Row, Sweep, flat_rows, pool
from bench.report.tables import Table, comparison_table, latex, markdown
from bench.store import Store


@dataclass(frozen=True)
class Paths:
    folder: Path
    figures: list[Path]

    @property
    def for_tracker(self) -> list[Path]:
        return [self.folder / "table.md", self.folder / "table.csv", *self.figures]


def write_files(sweep: Sweep, rows: Sequence[Row], results: Path) -> Paths:
    """table.md .csv .tex, differences.csv, pairs.csv, cells.parquet, plan.json, figures/ and completions/; same rows, same bytes."""
    folder = results / "sweeps" / sweep.name
    for name in ("figures", "completions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pooled = pool(rows)
    table = comparison_table(pooled, sweep.expectations)
    (folder / "table.md").write_text(markdown(sweep.title, f"python -m bench {sweep.command}", table))
    (folder / "table.tex").write_text(latex(table))
    flat = flat_rows(rows)
    write_csv(folder / "table.csv", flat)
    write_csv(folder / "differences.csv", [_against_start(group) for group in pooled.groups if group.against_start])
    write_csv(folder / "pairs.csv", list(_pairs(pooled)))
    _write_parquet(folder / "cells.parquet", flat)
    (folder / "plan.json").write_text(json.dumps(_plan(sweep), indent=1))
    store = Store(results / "store")
    for row in rows:
        write_samples(row, store, folder / "completions")
    return Paths(folder, figures.draw(pooled.groups, sweep.title, folder / "figures"))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


def _against_start(group: Group) -> dict[str, Any]:
    """Every interval of a group's difference to its start model; stats.py says what each speaks about."""
    found = group.against_start
    assert found is not None
    row = {
        "model": group.cell.model.name,
        "data": group.cell.data.name,
        "method": group.cell.method.name,
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


def _comparison(found: stats.Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {"n_seeds": found.n_seeds, "n_items": found.n_items, "p_holm": found.p_holm}
    for name, difference in (("combined", found.combined), ("seeds", found.seeds), ("prompts", found.prompts)):
        for part in ("value", "standard_error", "low", "high", "t", "df", "p"):
            row[f"{name}_{part}"] = getattr(difference, part) if difference else None
    return row


def _plan(sweep: Sweep) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "question": sweep.question,
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


def print_report(sweep: Sweep, rows: Sequence[Row], paths: Paths, notes: Sequence[str], summary: str) -> None:
    console = Console(soft_wrap=True)
    print_comparison(sweep, rows)
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    console.print(f"{summary}", highlight=False, markup=False)
    console.print(f"table    {paths.folder}/table.md .csv .tex", highlight=False, markup=False)
    for figure in paths.figures:
        console.print(f"figure   {figure} .svg", highlight=False, markup=False)
    console.print(f"samples  {paths.folder}/completions/", highlight=False, markup=False)


def print_comparison(sweep: Sweep, rows: Sequence[Row]) -> None:
    print_table(sweep.title, comparison_table(pool(rows), sweep.expectations))


def print_table(title: str, table: Table) -> None:
    """A title, the table and its notes."""
    console = Console(soft_wrap=True)
    console.print()
    console.print(title, style="bold", highlight=False, markup=False)
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    # A table wider than the terminal runs on into the next line: cut numbers would be no numbers.
    width = Console(width=10_000).measure(shown).maximum
    Console(width=max(width, console.width)).print(shown, highlight=False)
    for note in table.notes:
        console.print(note, style="red" if note.startswith(("FAILED", "REFUSED")) else "dim", highlight=False, markup=False)
    console.print()
