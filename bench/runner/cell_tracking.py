"""Sends cells to the tracker."""

from __future__ import annotations

from typing import Any

from bench import report
from bench.planning.inputs import CellPlan
from bench.runner.cell_folders import history
from bench.store.store import Store
from bench.text_files import read_object
from bench.tracking.tracker import Tracker


def track_cell(
    tracker: Tracker, sweep: report.Sweep, cell: CellPlan, store: Store, reason: str | None
) -> None:
    """Send an ended cell to the tracker: its history and metrics, or the reason why it failed."""
    summary = {} if reason else read_object(store.folder(cell.score) / "result.json")["metrics"]
    status = "failed" if reason else "done"
    tracker.cell(
        sweep=sweep.name,
        **run_of(cell),
        history=list(history(cell, store)),
        summary=summary,
        status=status,
        reason=reason,
    )


def run_of(cell: CellPlan) -> dict[str, Any]:
    """The key, name, config and tags of a cell, as arguments of the tracker's methods."""
    tags = [cell.cell.method.name, cell.cell.model.name, cell.cell.data.name]
    return {"key": cell.key, "name": cell.name, "config": cell.cell.model_dump(mode="json"), "tags": tags}
