"""A command, from planned cells to tables: stages on a launcher, one cell's failure one row, results read from the store."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import yaml

from bench import methods, report
from bench.config import Session
from bench.door import Opened
from bench.launch import Launcher, Pool, pool_size
from bench.plan import CellPlan, Plan, Sources, estimates, make_plan, plan_cell, start_cell
from bench.screen import Screen, make_screen, print_plan, print_status
from bench.store import Stage, Store, hash_key
from bench.tracking import Tracker, open_tracker
from bench.worker import describe

OK, SOME_FAILED = 0, 3
POLL_S = 0.25


def main(opened: Opened) -> int:
    """Carry out a command that passed the door; returns the exit code."""
    session = opened.session
    store = Store(session.results_dir / "store")
    cells = with_start_cells([plan_cell(cell, sources, methods.chain) for cell, sources in zip(opened.cells, opened.sources, strict=True)], opened.sources)
    sweep = report.Sweep(_sweep_name(opened, cells), opened.title, opened.command, cells)
    plan = make_plan(cells, store)
    workers = pool_size(session.launcher)
    match session.do.name:
        case "plan":
            print_plan(sweep, plan, estimates(plan.to_do, store), workers)
            return OK
        case "status":
            return SOME_FAILED if print_status(sweep, store) else OK
        case "report":
            rows = report.collect(sweep, store, {})
            paths = report.write_files(sweep, rows, session.results_dir)
            report.print_report(sweep, rows, paths, [], f"{sum(row.done for row in rows)} of {len(rows)} cells are done")
            return SOME_FAILED if any(row.failed for row in rows) else OK
    return run_sweep(session, sweep, plan, store)


def with_start_cells(cells: Sequence[CellPlan], sources: Sequence[Sources]) -> list[CellPlan]:
    """The cells, each once, with the cell of every start model in front of the first one that starts from it."""
    found: dict[str, CellPlan] = {}
    for cell, source in zip(cells, sources, strict=True):
        start = plan_cell(start_cell(cell.cell), source, methods.chain)
        found.setdefault(start.key, start)
        found.setdefault(cell.key, cell)
    return list(found.values())


def _sweep_name(opened: Opened, cells: Sequence[CellPlan]) -> str:
    """The file's name; with replaced axes or without a file, one that no other set of cells has."""
    if opened.sweep and not opened.replaced:
        return opened.sweep
    return f"{opened.sweep or 'cells'}-{hash_key(sorted(cell.key for cell in cells))[:8]}"


def run_sweep(session: Session, sweep: report.Sweep, plan: Plan, store: Store) -> int:
    results = session.results_dir
    tracker = open_tracker(session.tracker, results / "wandb")
    screen = make_screen(sweep, plan, estimates(plan.to_do, store), pool_size(session.launcher))
    failures: dict[Stage, str] = {}
    written: set[str] = set()

    def finished() -> None:
        """Write and track each cell as soon as it has its numbers, or cannot have them any more."""
        for cell in sweep.cells:
            reason = _failure_of(cell, failures)
            if cell.key not in written and (reason or store.status(cell.score).state == "done"):
                written.add(cell.key)
                write_cell(cell, store, results, reason)
                track_cell(tracker, sweep, cell, store, reason)
                screen.cell_ended(cell, reason)

    with screen:
        for warning in [status.why for status in plan.statuses.values() if status.why]:
            screen.say(warning)
        finished()
        if plan.to_do:
            with contextlib.closing(Pool(session.launcher)) as launcher:
                Scheduler(store, launcher, screen, session.launcher.retries, failures, finished).run(sweep.cells)
        finished()
        rows = report.collect(sweep, store, {cell.key: why for cell in sweep.cells if (why := _failure_of(cell, failures))})
        paths = report.write_files(sweep, rows, results)
        tracker.sweep(sweep=sweep.name, rows=report.flat_rows(rows), files=paths.for_tracker)
        tracker.close()
    report.print_report(sweep, rows, paths, tracker.notes, screen.summary())
    return SOME_FAILED if any(row.failed for row in rows) else OK


def _failure_of(cell: CellPlan, failures: Mapping[Stage, str]) -> str | None:
    """Why a cell cannot have its numbers: the first of its stages that failed."""
    return next((f"{stage.label or stage.kind}: {failures[stage]}" for stage in cell.stages if stage in failures), None)


# Stages on a launcher -------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    stage: Stage
    lock: filelock.BaseFileLock
    progress: Path
    offset: int = 0


@dataclass
class Scheduler:
    """Starts stages whose inputs are done, in the order of the cells; a stage that another command computes is waited for."""

    store: Store
    launcher: Launcher
    screen: Screen
    retries: int
    failures: dict[Stage, str]
    on_change: Callable[[], None]
    running: dict[str, _Running] = field(default_factory=dict)
    losses: dict[Stage, int] = field(default_factory=dict)
    _elsewhere_checked: float = 0.0

    def run(self, cells: Sequence[CellPlan]) -> None:
        """Until every cell has its numbers or cannot have them. Stages made stale on the way are run again."""
        try:
            while True:
                for stage in self._startable(cells):
                    if self.launcher.free == 0:
                        break
                    self._start(stage)
                if not self.running and not self._waiting(cells):
                    return
                for answer in self.launcher.reports(POLL_S):
                    self._took(answer)
                self._follow()
        finally:
            for running in self.running.values():
                running.lock.release()

    def _needed(self, cells: Sequence[CellPlan]) -> list[Stage]:
        return [stage for stage in make_plan(cells, self.store).to_do if stage not in self.failures]

    def _startable(self, cells: Sequence[CellPlan]) -> list[Stage]:
        return [stage for stage in self._needed(cells) if stage.key not in self.running and self._ready(stage)]

    def _waiting(self, cells: Sequence[CellPlan]) -> bool:
        return any(self._possible(stage) for stage in self._needed(cells))

    def _possible(self, stage: Stage) -> bool:
        return not any(ancestor in self.failures for ancestor in stage.walk())

    def _ready(self, stage: Stage) -> bool:
        return all(not isinstance(source, Stage) or self.store.status(source).state == "done" for source in stage.inputs.values())

    def _start(self, stage: Stage) -> None:
        lock = self.store.try_lock(stage)
        if lock is None:
            self._look_elsewhere(stage)
            return
        self.store.forget(stage)  # another command may have finished it a moment ago
        if self.store.status(stage).state == "done":
            lock.release()
            return
        self.running[stage.key] = _Running(stage, lock, self.store.beside(stage, "progress.jsonl"))
        self.store.clear_failure(stage)
        self.screen.stage_started(stage)
        self.launcher.start(describe(stage, self.store), self.store.beside(stage, "log"))

    def _look_elsewhere(self, stage: Stage) -> None:
        if time.monotonic() - self._elsewhere_checked > 1:
            self._elsewhere_checked = time.monotonic()
            self.store.forget(stage)

    def _took(self, answer: Any) -> None:
        running = self.running.pop(answer.key)
        stage = running.stage
        self.store.forget(stage)
        error = answer.error
        if answer.outcome == "done" and self.store.status(stage).state != "done":
            answer_outcome, error = "failed", f"its folder did not pass its check: {self.store.status(stage).why}"
        else:
            answer_outcome = answer.outcome
        running.lock.release()
        self.store.beside(stage, "progress.jsonl").unlink(missing_ok=True)
        if answer_outcome == "lost" and self.losses.get(stage, 0) < self.retries:
            self.losses[stage] = self.losses.get(stage, 0) + 1
            self.screen.say(f"{stage.kind} {stage.key[:8]} {stage.label}: {error}; trying once more")
            self.screen.stage_ended(stage, "lost")
            return
        if answer_outcome != "done":
            self.failures[stage] = error
            self.store.record_failure(stage, error)
        else:
            self.store.beside(stage, "lock").unlink(missing_ok=True)
        self.screen.stage_ended(stage, answer_outcome, error, self.store.beside(stage, "log"))
        self.on_change()

    def _follow(self) -> None:
        """Pass on the progress that running stages have written since the last look."""
        for running in self.running.values():
            rows = []
            with contextlib.suppress(FileNotFoundError), running.progress.open() as file:
                file.seek(running.offset)
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    running.offset += len(line)
                    rows.append(json.loads(line))
            if rows:
                self.screen.progress(running.stage, rows[-1])


# A cell's folder and its run ------------------------------------------------------------------------------------------


def write_cell(cell: CellPlan, store: Store, results: Path, reason: str | None) -> None:
    """`cells/<name>-<key>/`: what the cell is, its numbers or why it has none, and the logs of its stages."""
    folder = results / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(cell.cell.model_dump(mode="json"), sort_keys=False))
    stages = {stage.key: {"kind": stage.kind, "label": stage.label, "folder": str(store.folder(stage).relative_to(results))} for stage in cell.stages}
    (folder / "stages.json").write_text(json.dumps({"key": cell.key, "failed": reason, "stages": stages}, indent=1))
    if reason is None:
        shutil.copyfile(store.folder(cell.score) / "result.json", folder / "result.json")
    else:
        (folder / "result.json").unlink(missing_ok=True)
    with (folder / "log.txt").open("w") as log:
        for stage in cell.stages:
            path = store.beside(stage, "log")
            if path.exists():
                log.write(f"=== {stage.kind} {stage.key} {stage.label}\n{path.read_text(errors='replace')}\n")


def history(cell: CellPlan, store: Store) -> Iterator[dict[str, float]]:
    """The stored curve of a cell's training, with the speeds measured when it ran."""
    if "train" not in cell.roles or store.status(cell.roles["train"]).state != "done":
        return
    folder = store.folder(cell.roles["train"])
    rows = {name: [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ("history.jsonl", "speed.jsonl")}
    speeds = {row["step"]: row for row in rows["speed.jsonl"]}
    for row in rows["history.jsonl"]:
        yield row | {"tokens_per_second": speeds[row["step"]]["tokens_per_second"]}


def track_cell(tracker: Tracker, sweep: report.Sweep, cell: CellPlan, store: Store, reason: str | None) -> None:
    summary = {} if reason else json.loads((store.folder(cell.score) / "result.json").read_text())["metrics"]
    tracker.cell(
        sweep=sweep.name,
        key=cell.key,
        name=cell.name,
        config=cell.cell.model_dump(mode="json"),
        history=list(history(cell, store)),
        summary=summary,
        tags=[cell.cell.method.name, cell.cell.model.name, cell.cell.data.name],
        status="failed" if reason else "done",
        reason=reason,
    )
