"""What is wrong with the cells of a sweep and their stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.commands.cell_states import made_cells, wrong_cells
from bench.planning.inputs import all_stages
from bench.store.store import Store
from bench.terminal import say


def say_wrong(sweep: report.Sweep, store: Store, results: Path) -> bool:
    """Say what is wrong with the cells' stages. Whether anything is."""
    return say_all(wrong_lines(sweep, store, results))


def say_all(lines: Sequence[str]) -> bool:
    """Whether there are any."""
    for line in lines:
        say(line)
    return bool(lines)


def wrong_lines(sweep: report.Sweep, store: Store, results: Path) -> list[str]:
    """Cells that have failed, or whose stages are lost, stale, damaged or gone; and finished stages that are not as they were written,
    also where no number of a table hangs on them any more."""
    return list(dict.fromkeys([*wrong_cells(sweep, store, made_cells(sweep, results)), *damaged_lines(sweep, store)]))


def damaged_lines(sweep: report.Sweep, store: Store) -> list[str]:
    found = [store.status(stage) for stage in all_stages(sweep.cells)]
    return [f"DAMAGED  {status.why}" for status in found if status.state == "damaged"]
