"""Planned cells of a command, as a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from bench import methods, report
from bench.cli.compose import CheckedCommand
from bench.planning.cells import plan_cell, start_cell
from bench.planning.inputs import CellPlan, Sources
from bench.store.keys import hash_key


def sweep_of(opened: CheckedCommand) -> report.Sweep:
    """Sweep of a command: its cells planned, with the cells of their start models."""
    planned = [
        plan_cell(cell, sources, methods.chain)
        for cell, sources in zip(opened.cells, opened.sources, strict=True)
    ]
    cells = with_start_cells(planned, opened.sources)
    name = opened.sweep or "cells"
    if opened.replaced or not opened.sweep:  # a name that no other set of cells has
        name += f"-{hash_key(sorted(cell.key for cell in cells))[:8]}"
    of_file = (opened.expectations, opened.axes, opened.published)
    return report.Sweep(
        name, opened.title, opened.command, cells, *of_file, opened.session.max_cut, opened.session.columns
    )


def with_start_cells(cells: Sequence[CellPlan], sources: Sequence[Sources]) -> list[CellPlan]:
    """The cells, each once. The cell of a start model stands before the first cell that starts from it."""
    by_key: dict[str, CellPlan] = {}
    for cell, source in zip(cells, sources, strict=True):
        # For completions from a file, this is the cell itself.
        start = plan_cell(start_cell(cell.cell), source, methods.chain)
        by_key.setdefault(start.key, start)
        by_key.setdefault(cell.key, cell)
    return list(by_key.values())
