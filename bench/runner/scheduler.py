"""Runs the stages of a sweep on a launcher: starts those that are ready, and handles
their reports and failures."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from bench import report, secrets
from bench.config import Accelerate, Session
from bench.engines.vllm_server import Servers
from bench.forecast.stage_time import StageForecast, usual_s
from bench.planning.inputs import CellPlan, all_stages, evaluation_of
from bench.planning.judging import labels_samples
from bench.planning.to_do import Plan, make_plan
from bench.runner import launchers
from bench.runner.launcher import Launcher, StageReport, chain_lengths
from bench.runner.local_pool import pool_size
from bench.runner.progress_view import PlainScreen
from bench.runner.worker import HEAVY_IMPORTS, describe
from bench.store.keys import Stage
from bench.store.stage_settings import needs
from bench.store.store import Store
from bench.training.devices import Spread

POLL_S = 0.25


def run_stages(
    session: Session,
    sweep: report.Sweep,
    plan: Plan,
    store: Store,
    screen: PlainScreen,
    forecast: Mapping[Stage, StageForecast],
    failures: dict[Stage, str],
    ended: Callable[[], None] = lambda: None,
    progressed: Callable[[Stage, Sequence[dict[str, float]]], None] | None = None,
) -> bool:
    """Run the planned stages on a launcher. Returns whether a judge has stopped at its budget.

    Errors of failed stages are added to `failures`. `ended` is called after each stage; `progressed` gets the
    progress rows of a running stage.
    """
    if not plan.to_do:
        return False
    imports = dict.fromkeys(module for stage in plan.to_do for module in HEAVY_IMPORTS.get(stage.kind, ()))
    servers = contextlib.closing(Servers(store.root / "judge"))
    jobs, devices = session.results_dir / "jobs", session.accelerate.gpus
    launching = launchers.make_launcher(session.launcher, list(imports), jobs, screen.say, devices)
    with servers as judges, contextlib.closing(launching) as launcher:
        seconds = {stage: _expected_s(stage, forecast) for stage in all_stages(sweep.cells)}
        followed = progressed or (lambda stage, rows: screen.progress(stage, rows[-1]))
        shared: dict[str, Any] = {"servers": judges, "accelerate": session.accelerate}
        shared |= {"workers": pool_size(session.launcher, session.accelerate.gpus)}
        scheduler = Scheduler(
            store, launcher, screen, session.launcher.retries, failures, seconds, ended, followed, **shared
        )
        scheduler.run(sweep.cells)
        return scheduler.over_budget


def failure_of(cell: CellPlan, failures: Mapping[Stage, str]) -> str | None:
    """The label and error of the first failed stage of a cell; None where none has failed."""
    return next(
        (f"{stage.label or stage.kind}: {failures[stage]}" for stage in cell.stages if stage in failures),
        None,
    )


def _expected_s(stage: Stage, forecast: Mapping[Stage, StageForecast]) -> float:
    known = forecast[stage].seconds if stage in forecast else None
    return usual_s(stage) if known is None else known


@dataclass
class _Running:
    """A running stage: its lock, its progress file, and how many bytes of that file were read."""

    stage: Stage
    lock: filelock.BaseFileLock
    progress: Path
    offset: int = 0


@dataclass
class Scheduler:
    """Starts each stage as soon as its inputs are done, and handles its report.

    The cell with the least work left comes first, so that cells end one by one and an interrupted sweep has
    whole rows. A stage with a chain of readers so long that no worker may wait with it comes before all cells,
    so that no worker is idle at the end. The scheduler waits for a stage that another command computes.
    """

    store: Store
    launcher: Launcher
    screen: PlainScreen
    retries: int
    failures: dict[Stage, str]
    seconds: Mapping[Stage, float]  # expected, of every stage of the cells
    on_end: Callable[[], None]
    on_progress: Callable[[Stage, Sequence[dict[str, float]]], None]
    workers: int = 1  # stages that run at once
    running: dict[str, _Running] = field(default_factory=dict)
    losses: Counter[Stage] = field(default_factory=Counter)
    printed: set[str] = field(default_factory=set)  # lines that were printed once
    servers: Servers | None = None  # model servers of judges
    accelerate: Accelerate | None = None  # devices and checkpoints of trainings
    over_budget: bool = False  # a judge has stopped at its budget
    # Judges of one evaluation share a budget; judges that label samples share another.
    judges: dict[Stage, str] = field(default_factory=dict)  # judge stage -> name of its budget
    readers: dict[Stage, list[Stage]] = field(default_factory=dict)  # stage -> the stages that read it
    chains: dict[Stage, float] = field(default_factory=dict)  # seconds of the longest chain from each stage

    def run(self, cells: Sequence[CellPlan]) -> None:
        """Run stages until every cell has its numbers or cannot have them.

        Stages that become stale run again.
        """
        self.chains = chain_lengths(all_stages(cells), lambda stage: self.seconds.get(stage, 0.0))
        labels = evaluation_of(cells)
        self.judges = {
            stage: "samples" if labels_samples(stage) else f"evaluation {labels.get(stage, '')}"
            for stage in all_stages(cells)
            if stage.kind == "judge"
        }
        for stage in all_stages(cells):
            for source in stage.input_stages:
                self.readers.setdefault(source, []).append(stage)
        try:
            while True:
                for stage in self._startable(cells):
                    if self.launcher.can_take(needs(stage)):
                        self._start(stage)
                if not self.running:
                    if not self._waiting(cells):
                        return
                    self._say_once("waiting for stages that another command computes")
                reports = self.launcher.reports(POLL_S)
                self._read_progress()  # It comes first: a stage that has ended has written its last row.
                for report in reports:
                    self._handle_report(report)
        except KeyboardInterrupt:
            for running in self.running.values():
                self.store.record_interruption(running.stage)
            raise
        finally:
            for running in self.running.values():
                running.lock.release()

    def _needed(self, cells: Sequence[CellPlan]) -> list[Stage]:
        """The stages to do, without those of failed cells."""
        cells = [cell for cell in cells if failure_of(cell, self.failures) is None]
        return [stage for stage in make_plan(cells, self.store).to_do if stage not in self.failures]

    def _startable(self, cells: Sequence[CellPlan]) -> list[Stage]:
        """The waiting stages with all inputs done, in the order in which they start."""
        waiting = dict.fromkeys(stage for stage in self._needed(cells) if stage.key not in self.running)
        ready = [
            stage
            for stage in waiting
            if all(self.store.status_with_weights(source).state == "done" for source in stage.input_stages)
        ]
        if len(ready) < 2:
            return ready
        at_best = sum(self.seconds.get(stage, 0.0) for stage in waiting) / self.workers
        left: dict[Stage, float] = {}  # of the cell with the least work left
        for cell in cells:
            of_cell = [stage for stage in cell.stages if stage in waiting]
            work = sum(self.seconds.get(stage, 0.0) for stage in of_cell)
            left |= {stage: min(work, left.get(stage, work)) for stage in of_cell}

        def order(stage: Stage) -> tuple[float, float]:
            chain = self.chains.get(stage, 0.0)
            return (0.0, -chain) if chain >= at_best else (left.get(stage, 0.0), -chain)

        return sorted(ready, key=order)

    def _waiting(self, cells: Sequence[CellPlan]) -> bool:
        """Whether another command computes a stage that is still needed."""
        return any(
            not any(ancestor in self.failures for ancestor in stage.walk()) for stage in self._needed(cells)
        )

    def _start(self, stage: Stage) -> None:
        """Start a stage. After an error of the file system the stage has failed, and the others continue."""
        try:
            self._begin(stage)
        except OSError as error:
            if (running := self.running.pop(stage.key, None)) is not None:
                running.lock.release()
            self.failures[stage] = reason = (
                f"could not start: {error.filename or self.store.root}: {error.strerror or error}"
            )
            self.store.record_failure(stage, reason)
            self.screen.stage_ended(stage, "failed", reason)
            self.on_end()

    def _begin(self, stage: Stage) -> None:
        lock = self.store.try_lock(stage)
        if lock is None:
            return  # Another command computes it and holds the lock until it is done.
        self.store.invalidate(stage)  # Another command may have finished it a moment ago.
        if self.store.status_with_weights(stage).state == "done":
            lock.release()
            self.store.sidecar(stage, "lock").unlink(missing_ok=True)
            self._say_what_is_stale(stage)
            self.screen.stage_ended(stage, "elsewhere")
            self.on_end()
            return
        progress = self.store.sidecar(stage, "progress.jsonl")
        self.running[stage.key] = _Running(stage, lock, progress)
        progress.unlink(missing_ok=True)  # A killed command may have left it.
        if self.store.was_interrupted(stage):
            self.store.remove_build_folders(stage.kind, stage.key, other_hosts=True)
        self.store.clear_marks(stage)
        self.screen.stage_started(stage)
        more: dict[str, Any] = {}
        if stage.kind == "judge":
            sharing = [other.key for other, budget in self.judges.items() if budget == self.judges[stage]]
            more = {"sharing": sharing, "server": self.servers and self.servers.place(stage)}
        elif isinstance(stage.settings, Spread) and self.accelerate is not None:
            more = {"accelerate": self.accelerate.model_dump()}
        self.launcher.start(describe(stage, self.store) | more, self.store.sidecar(stage, "log"))

    def _handle_report(self, report: StageReport) -> None:
        """Check and record a stage that has ended; try it again where its worker died."""
        running = self.running.pop(report.key)
        stage, outcome, error = running.stage, report.outcome, secrets.shown(report.error)
        if stage.kind == "judge" and labels_samples(stage):
            # The user types these keys under method.labelling_judge.
            error = re.sub(r"(?<![\w.])judge\.(?=[a-z])", "method.labelling_judge.", error)
        self.store.invalidate(stage)
        if outcome == "done" and not self.store.is_done(stage):
            outcome, error = (
                "failed",
                f"its files failed the check after it ran: {self.store.status(stage).why}",
            )
        elif self.store.is_done(stage):  # It died after it had finished, or another command finished it.
            outcome, error = "done", ""
        running.lock.release()
        with contextlib.suppress(OSError):
            running.progress.unlink(missing_ok=True)
        if outcome in ("lost", "late"):
            self.store.remove_build_folders(stage.kind, stage.key, other_hosts=True)
        if outcome == "lost" and self.losses[stage] < self.retries:
            self.losses[stage] += 1
            self.screen.stage_ended(stage, "retried", error)
            return
        if outcome == "done":
            self.store.sidecar(stage, "lock").unlink(missing_ok=True)
            self._say_what_is_stale(stage)
        else:
            self.over_budget |= outcome == "over_budget"
            self.failures[stage] = error
            self.store.record_failure(stage, error)
            secrets.clean_file(self.store.sidecar(stage, "log"))  # A worker that died has not cleaned it.
        worked_s = self.store.manifest(stage).timings.get("wall_s") if outcome == "done" else None
        self.screen.stage_ended(stage, outcome, error, self.store.sidecar(stage, "log"), worked_s)
        self.on_end()

    def _say_what_is_stale(self, stage: Stage) -> None:
        """Print the reason for each reader of a stage that is stale because the stage was made again."""
        for reader in self.readers.get(stage, ()):
            if why := self.store.status(reader).why:
                self._say_once(why)

    def _say_once(self, text: str) -> None:
        if text not in self.printed:
            self.printed.add(text)
            self.screen.say(text)

    def _read_progress(self) -> None:
        """Pass new progress rows of running stages to `on_progress`."""
        for running in self.running.values():
            rows = []
            with contextlib.suppress(OSError), running.progress.open("rb") as file:
                file.seek(running.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    running.offset += len(line)
                    with contextlib.suppress(ValueError):  # A full disk may have cut the line.
                        rows.append(json.loads(line))
            if rows:
                self.on_progress(running.stage, rows)
