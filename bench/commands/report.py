"""`do=report`: tables and figures again, from the store."""

from __future__ import annotations

import csv
from pathlib import Path

from bench import report
from bench.cli.compose import BadConfig, Opened
from bench.commands import OK, SOME_FAILED, bundle
from bench.commands.faults import say_all, say_wrong, wrong_lines
from bench.commands.planned_sweep import sweep_of
from bench.planning.inputs import CellPlan
from bench.runner.cell_folders import write_cell
from bench.runner.preflight import make_results
from bench.store.store import Store
from bench.terminal import say


def main(opened: Opened) -> int:
    opened = bundle.opened_from(opened)
    results = opened.session.results_dir
    make_results(results, store=False)
    return _report_again(sweep_of(opened), Store(results / "store"), results)


def _report_again(sweep: report.Sweep, store: Store, results: Path) -> int:
    """Tables and figures from the store; a table that was another one before is said. A table of somebody's runs is never emptied: raises
    BadConfig in a clone that has no store, and says what is wrong with the cells where they were run here."""
    rows = report.collect(sweep, store, {})
    table = results / "sweeps" / sweep.name / "table.csv"
    before = _content(table)
    old = csv.DictReader(before.decode(errors="replace").splitlines())
    if not any(row.done for row in rows) and any(row.get("status") == "done" for row in old):
        if any(_has_folder(row.cell, results) for row in rows) and say_wrong(sweep, store, results):
            say(f"no cell of {sweep.name} has its numbers any more: {table.parent} stays as it is")
            return SOME_FAILED
        raise BadConfig([f"no cell of {sweep.name} was run in {results}: {table.parent} stays as it is"])
    wrong = wrong_lines(sweep, store, results)  # first: it may be told from the table as it was
    exported = [line for row in rows if row.done and _has_folder(row.cell, results) for line in write_cell(row.cell, store, results, None)]
    paths = report.write_files(sweep, rows, results)
    notes = [f"CHANGED  {table} was another table before"] if before not in (b"", _content(table)) else []
    report.print_report(sweep, paths, [*notes, *exported], f"{sum(row.done for row in rows)} of {len(rows)} cells are done")
    say_all(wrong)
    return SOME_FAILED if wrong or exported or paths.unwritten or any(row.failed for row in rows) else OK


def _content(path: Path) -> bytes:
    """Empty where there is no file that can be read."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _has_folder(cell: CellPlan, results: Path) -> bool:
    """Whether a run has left the cell's folder here: a bundle has none."""
    return (results / "cells" / cell.name / "stages.json").is_file()
