"""The cells of a command, planned, as the sweep that they make."""

from __future__ import annotations

from collections.abc import Sequence

from bench import methods, report
from bench.cli.compose import Opened
from bench.planning.cells import plan_cell, start_cell
from bench.planning.inputs import CellPlan, Sources
from bench.store.keys import hash_key


def sweep_of(opened: Opened) -> report.Sweep:
    """The cells of a command, planned."""
    asked = [plan_cell(cell, sources, methods.chain) for cell, sources in zip(opened.cells, opened.sources, strict=True)]
    cells = with_start_cells(asked, opened.sources)
    name = opened.sweep or "cells"
    if opened.replaced or not opened.sweep:  # one that no other set of cells has
        name += f"-{hash_key(sorted(cell.key for cell in cells))[:8]}"
    return report.Sweep(name, opened.title, opened.command, cells, opened.expectations, opened.axes)


def with_start_cells(cells: Sequence[CellPlan], sources: Sequence[Sources]) -> list[CellPlan]:
    """The cells, each once, with the cell of every start model in front of the first one that starts from it."""
    found: dict[str, CellPlan] = {}
    for cell, source in zip(cells, sources, strict=True):
        start = plan_cell(start_cell(cell.cell), source, methods.chain)  # of completions of a file, these themselves
        found.setdefault(start.key, start)
        found.setdefault(cell.key, cell)
    return list(found.values())
