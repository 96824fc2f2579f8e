"""A cell as the tracker takes it."""

from __future__ import annotations

import json
from typing import Any

from bench import report
from bench.planning.inputs import CellPlan
from bench.runner.cell_folders import history
from bench.store.store import Store
from bench.tracking.tracker import Tracker


def track_cell(tracker: Tracker, sweep: report.Sweep, cell: CellPlan, store: Store, reason: str | None) -> None:
    summary = {} if reason else json.loads((store.folder(cell.score) / "result.json").read_text(encoding="utf-8"))["metrics"]
    status = "failed" if reason else "done"
    tracker.cell(sweep=sweep.name, **run_of(cell), history=list(history(cell, store)), summary=summary, status=status, reason=reason)


def run_of(cell: CellPlan) -> dict[str, Any]:
    """What identifies and describes a cell's run to the tracker."""
    tags = [cell.cell.method.name, cell.cell.model.name, cell.cell.data.name]
    return {"key": cell.key, "name": cell.name, "config": cell.cell.model_dump(mode="json"), "tags": tags}
