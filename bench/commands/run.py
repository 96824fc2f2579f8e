"""`do=run`: runs the stages of the planned cells and writes the tables.

Stages run on a launcher. A failed cell is one failed row of the table. All numbers are read from the store.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench import report
from bench.cli.compose import CheckedCommand
from bench.commands import OK, OVER_BUDGET, SOME_FAILED
from bench.commands.planned_sweep import sweep_of
from bench.config import Session
from bench.config.errors import BadConfig
from bench.forecast.row_counts import data_refusals
from bench.forecast.stage_time import estimates
from bench.planning.inputs import single
from bench.planning.to_do import Plan, make_plan
from bench.runner import evict, launchers
from bench.runner.cell_folders import write_cell
from bench.runner.cell_tracking import run_of, track_cell
from bench.runner.local_pool import pool_size
from bench.runner.preflight import check_devices, check_keys, check_tasks, make_results
from bench.runner.progress_view import make_screen
from bench.runner.scheduler import failure_of, run_stages
from bench.store.keys import Stage
from bench.store.store import Store
from bench.tracking.tracker import open_tracker


def main(opened: CheckedCommand) -> int:
    session = opened.session
    make_results(session.results_dir, store=True)
    store = Store(session.results_dir / "store")
    sweep = sweep_of(opened)
    plan = make_plan(sweep.cells, store)
    check_keys(plan.to_do)
    check_tasks(plan.to_do)
    check_devices(session, plan.to_do)
    launchers.check(session.launcher, plan.to_do)
    if refusals := data_refusals(sweep.cells, plan.to_do, store):
        raise BadConfig(refusals)
    return run_sweep(session, sweep, plan, store)


def run_sweep(session: Session, sweep: report.Sweep, plan: Plan, store: Store) -> int:
    """Run the plan's stages, then write and print the report; returns the exit code."""
    results = session.results_dir
    tracker = open_tracker(session.tracker, results / "wandb")
    forecast = estimates(plan.to_do, store)
    screen = make_screen(sweep, plan, forecast, pool_size(session.launcher, session.accelerate.gpus))
    failures: dict[Stage, str] = {}
    written: set[str] = set()
    unwritten: list[str] = []
    evicted = evict.Evicted()
    trained = {
        stage: [cell for cell in sweep.cells if cell.roles.get("train") == stage]
        for stage in plan.to_do
        if stage.kind == "train"
    }

    def ended() -> None:
        """Write and track each cell once it has its numbers or has failed."""
        for cell in sweep.cells:
            reason = failure_of(cell, failures)
            if cell.key not in written and (reason or store.is_done(cell.score)):
                written.add(cell.key)
                # The tables do not need these files: they read the store.
                for line in write_cell(cell, store, results, reason):
                    unwritten.append(line)
                    screen.say(line)
                track_cell(tracker, sweep, cell, store, reason)
                screen.cell_ended(cell, reason)
        evicted_now = evict.evict(session.keep, sweep.cells, store)
        evicted.stages, evicted.size = evicted.stages + evicted_now.stages, evicted.size + evicted_now.size

    def progressed(stage: Stage, rows: Sequence[dict[str, float]]) -> None:
        screen.progress(stage, rows[-1])
        for cell in trained.get(stage, ()):
            followed = [{name: value for name, value in row.items() if name != "total"} for row in rows]
            tracker.follow(sweep=sweep.name, **run_of(cell), rows=followed)

    with screen:
        for warning in [status.why for status in plan.statuses.values() if status.why]:
            screen.say(warning)
        ended()
        over_budget = run_stages(session, sweep, plan, store, screen, forecast, failures, ended, progressed)
        ended()
        rows = report.collect(
            sweep,
            store,
            {cell.key: why for cell in single(sweep.cells) if (why := failure_of(cell, failures))},
        )
        paths = report.write_files(sweep, rows, results)
        tracker.sweep(sweep=sweep.name, rows=report.flat_rows(rows), files=paths.for_tracker)
        tracker.close()
    report.print_report(
        sweep, paths, tracker.notes, "; ".join(filter(None, [screen.summary(), evicted.words()]))
    )
    store.remove_leftovers()
    wrong = bool(failures or unwritten or paths.unwritten) or any(row.failed or not row.done for row in rows)
    return OVER_BUDGET if over_budget else SOME_FAILED if wrong else OK
