"""`do=report`: writes tables and figures again, from the store."""

from __future__ import annotations

import csv
from pathlib import Path

from bench import report
from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import OK, SOME_FAILED, bundle
from bench.commands.faults import fault_lines, print_faults, print_lines
from bench.commands.planned_sweep import sweep_of
from bench.planning.inputs import CellPlan
from bench.runner.cell_folders import write_cell
from bench.runner.preflight import make_results
from bench.store.store import Store
from bench.terminal import say


def main(opened: CheckedCommand) -> int:
    opened = bundle.opened_from(opened)
    results = opened.session.results_dir
    make_results(results, store=False)
    return _report_again(sweep_of(opened), Store(results / "store"), results)


def _report_again(sweep: report.Sweep, store: Store, results: Path) -> int:
    """Write tables and figures from the store; returns the exit code. A changed table is reported.

    A table with numbers is never replaced by an empty one. If the cells were run here, their faults are
    printed and the table stays. Raises BadConfig if they were not, as in a clone without a store.
    """
    rows = report.collect(sweep, store, {})
    table = results / "sweeps" / sweep.name / "table.csv"
    before = _content(table)
    old = csv.DictReader(before.decode(errors="replace").splitlines())
    if not any(row.done for row in rows) and any(row.get("status") == "done" for row in old):
        if any(_has_folder(row.cell, results) for row in rows) and print_faults(sweep, store, results):
            lost = f"The cells of {sweep.name} have lost their numbers, so {table.parent} was not changed."
            say(f"{lost} Run the sweep again to compute them.")
            return SOME_FAILED
        reason = f"no cell of {sweep.name} was run in {results}, so {table.parent} was not changed. Set results= to the folder of the run"
        raise BadConfig([reason])
    # Before the table is written: the faults depend on the old one.
    wrong = fault_lines(sweep, store, results)
    exported = [
        line
        for row in rows
        if row.done and _has_folder(row.cell, results)
        for line in write_cell(row.cell, store, results, None)
    ]
    paths = report.write_files(sweep, rows, results)
    notes = (
        [f"CHANGED  {table} differs from the table that was there before"]
        if before not in (b"", _content(table))
        else []
    )
    report.print_report(
        sweep, paths, [*notes, *exported], f"{sum(row.done for row in rows)} of {len(rows)} cells are done"
    )
    print_lines(wrong)
    return SOME_FAILED if wrong or exported or paths.unwritten or any(row.failed for row in rows) else OK


def _content(path: Path) -> bytes:
    """Content of a file; empty if it cannot be read."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _has_folder(cell: CellPlan, results: Path) -> bool:
    """Whether a run has written the cell's folder here. A bundle has no such folders."""
    return (results / "cells" / cell.name / "stages.json").is_file()
