"""States of cells, from the files in the store.

The states: done, running, queued, failed, lost, damaged, stale, absent, interrupted, to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.planning.inputs import CellPlan
from bench.planning.to_do import make_plan
from bench.records import grouped
from bench.report import Sweep
from bench.runner.cluster_queue import submitted_job
from bench.runner.progress_view import stage_words
from bench.runner.slurm import OVER, JobState, squeue_or_empty
from bench.store.store import Store
from bench.text_files import BadFile, read_csv, read_object

# States that another run of the sweep, or a person, has to repair.
WRONG = ("failed", "lost", "damaged", "stale", "absent")


def wrong_cells(sweep: Sweep, store: Store, made: Container[str] = ()) -> list[str]:
    """Lines about cells that have failed or are lost, damaged, stale or absent, one for each reason."""
    jobs = jobs_of(store)
    reasons = grouped((cell_state(cell, store, jobs, made), cell.name) for cell in sweep.cells)
    lines = []
    for (state, why), names in reasons.items():
        if state not in WRONG:
            continue
        more = f" and {len(names) - 1} more cells" if len(names) > 1 else ""
        lines.append(f"{state.upper():<8} {why if state == 'damaged' else f'{names[0]}{more}: {why}'}")
    return lines


def jobs_of(store: Store) -> Mapping[str, JobState]:
    return squeue_or_empty().jobs if any(store.root.glob("*/*.job.json")) else {}


def cell_state(
    cell: CellPlan, store: Store, jobs: Mapping[str, JobState], made: Container[str] = ()
) -> tuple[str, str]:
    """State of a cell and its reason, from the store and from SLURM's states of jobs, by job id.

    `made`: keys of cells that had their numbers before.
    """
    needed = make_plan([cell], store).to_do
    if not needed:
        return "done", ""
    was_made = cell.key in made or store.status(cell.score).state in ("done", "stale", "damaged")
    pending: dict[str, Any] = {}
    for stage in needed:
        status = store.status_with_weights(stage)
        if error := store.failure(stage):
            return "failed", f"{stage_words(stage)}: {error.splitlines()[0]}"
        held, handed_in = store.is_locked(stage), submitted_job(stage, store)
        job = jobs.get(handed_in["id"]) if handed_in else None
        if handed_in and job and job.state not in OVER:
            place = f"waits ({job.reason})" if job.waits else f"on {job.node}"
            alone = "" if held else "; no command waits for it. Run the sweep again to wait for it"
            pending["queued" if job.waits else "running"] = (
                f"{stage_words(stage)}: job {handed_in['id']} {place}{alone}"
            )
        elif held:
            pending["running"] = stage_words(stage) + (
                f": {handed_in['queue']} job {handed_in['id']}" if handed_in else ""
            )
        elif store.was_interrupted(stage):
            pending.setdefault(
                "interrupted",
                f"{stage_words(stage)}: the command was interrupted. Run the sweep again to continue",
            )
        elif handed_in or store.has_build_folder(stage):
            pending.setdefault(
                "lost", f"{stage_words(stage)}: it was begun, and no command works on it. Run the sweep again"
            )
        elif status.state in ("damaged", "stale"):
            pending.setdefault(status.state, status.why)
        elif was_made and not status.why:
            gone = f"{stage.kind}/{stage.key} ({stage.label}) was deleted from the store. Run the sweep again to compute it"
            pending.setdefault("absent", gone)
        elif status.why:
            pending.setdefault("to do", status.why)
    for state in ("running", "queued", "lost", "interrupted", "damaged", "stale", "absent", "to do"):
        if state in pending:
            return state, pending[state]
    return "to do", ""


BUNDLE_FILE = "bundle.json"


def made_cells(sweep: report.Sweep, results: Path) -> set[str]:
    """Keys of cells that had their numbers: by the cell's folder, the sweep's table or the bundle."""
    made = {cell.key for cell in sweep.cells if (results / "cells" / cell.name / "result.json").is_file()}
    with contextlib.suppress(BadFile):
        rows = read_csv(results / "sweeps" / sweep.name / "table.csv", ("key", "status"))
        made |= {row["key"] for _, row in rows if row["status"] == "done"}
    with contextlib.suppress(BadFile):
        done = read_object(results / BUNDLE_FILE).get("done", [])
        made |= {key for key in done if isinstance(key, str)} if isinstance(done, list) else set()
    return made
