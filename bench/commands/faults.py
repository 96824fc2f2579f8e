"""Faults of a sweep's cells and their stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.commands.cell_states import made_cells, wrong_cells
from bench.planning.inputs import all_stages
from bench.store.store import Store
from bench.terminal import say


def print_faults(sweep: report.Sweep, store: Store, results: Path) -> bool:
    """Print the faults of the cells and their stages; returns whether there are any."""
    return print_lines(fault_lines(sweep, store, results))


def print_lines(lines: Sequence[str]) -> bool:
    """Print the lines; returns whether there are any."""
    for line in lines:
        say(line)
    return bool(lines)


def fault_lines(sweep: report.Sweep, store: Store, results: Path) -> list[str]:
    """Lines about failed cells, about lost, stale, damaged or absent stages, and about changed finished
    stages.

    A finished stage with other files than it wrote is reported even if no number of a table depends on it any
    more.
    """
    return list(
        dict.fromkeys([*wrong_cells(sweep, store, made_cells(sweep, results)), *damaged_lines(sweep, store)])
    )


def damaged_lines(sweep: report.Sweep, store: Store) -> list[str]:
    """Lines about the sweep's stages that are damaged in the store."""
    statuses = [store.status(stage) for stage in all_stages(sweep.cells)]
    return [f"DAMAGED  {status.why}" for status in statuses if status.state == "damaged"]
