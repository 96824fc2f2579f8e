"""A command, from planned cells to tables: stages on a launcher, one cell's failure one row, results read from the store."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import yaml

from bench import bundle, clusters, export, keep, methods, passport, report, rescore, secrets, size_table, verify, why
from bench.audit_files import audit_sources
from bench.config import Accelerate, Audit, Bundle, Export, PlanVerb, Rescore, Session, Why, user_path
from bench.costs import JudgeCost, judge_costs, with_costs
from bench.counts import data_lines
from bench.devices import is_spread, spread_faults
from bench.door import BadConfig, Opened
from bench.forecast import Estimate, estimates
from bench.judges.lm_eval import faults
from bench.judges.server import Servers
from bench.kinds import LanguageJudgeSettings, TaskSettings, needs
from bench.launch import Launcher, Report, chain_lengths, pool_size
from bench.output_files import OutputFiles
from bench.output_files import why as why_not
from bench.plan import CellPlan, Plan, Sources, judge_key, judge_manners, labels_samples, make_plan, plan_audit, plan_cell, start_cell
from bench.screen import Screen, make_screen, print_costs, print_plan, print_sizes, print_status, wrong_cells
from bench.store import Source, Stage, Store, Unsound, hash_key
from bench.terminal import say
from bench.text_files import BadFile
from bench.tracking import Tracker, open_tracker
from bench.worker import HEAVY_IMPORTS, describe

OK, SOME_FAILED, OVER_BUDGET = 0, 3, 4
POLL_S = 0.25


def main(opened: Opened) -> int:
    """Carry out a command that passed the door; returns the exit code."""
    try:
        return _carry_out(opened)
    except Unsound as error:
        say(str(error))
        return SOME_FAILED


def _carry_out(opened: Opened) -> int:
    session = opened.session
    if session.do.name == "conformance":
        from bench.conformance.table import print_table  # loads torch, as no other verb does here

        return OK if print_table() else SOME_FAILED
    if isinstance(session.do, Rescore) and session.do.judgements is not None:
        return _rescore_files(session.do)
    store = Store(session.results_dir / "store")
    if isinstance(session.do, Why):
        why.explain(session.do, session.results_dir, store)
        return OK
    if isinstance(session.do, Export):
        say("\n".join(export.export(session.do, session.results_dir, store)))
        return OK
    if session.do.name == "verify":
        return OK if verify.show(session.results_dir, store) else SOME_FAILED
    if session.do.name in ("report", "status", "rescore"):
        opened = bundle.opened_from(opened)
    if session.do.name in ("run", "report", "audit") and not getattr(session.do, "plan", False):
        _make(session.results_dir, store=session.do.name != "report")
    if isinstance(session.do, Audit):
        return _audit(session.do, opened, store)
    sweep = _sweep(opened)
    cells = sweep.cells
    if isinstance(session.do, Bundle):
        say("\n".join(bundle.write(session.do, opened, sweep, store, _sweep)))
        return SOME_FAILED if _say_wrong(sweep, store, session.results_dir) else OK
    plan = make_plan(cells, store)
    workers = pool_size(session.launcher, session.accelerate.gpus)
    if isinstance(session.do, Rescore):
        written = rescore.rescore_sweep(session.do, sweep, store)
        return SOME_FAILED if _say_wrong(sweep, store, session.results_dir) or not written else OK
    match session.do.name:
        case "plan":
            costs = _costs(plan, store)
            data = data_lines(cells, store)
            print_plan(sweep, plan, with_costs(estimates(plan.to_do, store), costs), workers, costs, data.lines)
            assert isinstance(session.do, PlanVerb)
            print_sizes(size_table.report(cells, plan.to_do, store, session.hardware, session.keep, session.do.size))
            if data.refusals:
                raise BadConfig(data.refusals)
            return OK
        case "status":
            made = bundle.made_cells(sweep, session.results_dir)
            return SOME_FAILED if print_status(sweep, store, made) or _say_damaged(sweep, store) else OK
        case "report":
            return _report_again(sweep, store, session.results_dir)
    check_keys(plan.to_do)
    check_tasks(plan.to_do)
    check_devices(session, plan.to_do)
    clusters.check(session.launcher, plan.to_do)
    return run_sweep(session, sweep, plan, store)


def _costs(plan: Plan, store: Store) -> dict[Stage, JudgeCost]:
    """What judges would cost. Raises BadConfig for a file of completions that does not answer what they ask."""
    try:
        return judge_costs(plan.to_do, store)
    except BadFile as error:
        raise BadConfig(str(error).splitlines()) from error


def _report_again(sweep: report.Sweep, store: Store, results: Path) -> int:
    """Tables and figures from the store; a table that was another one before is said. Raises BadConfig where a table of somebody's runs
    would be emptied, as in a clone that has no store."""
    rows = report.collect(sweep, store, {})
    table = results / "sweeps" / sweep.name / "table.csv"
    before = _content(table)
    if not any(row.done for row in rows) and any(row["status"] == "done" for row in _csv_rows(before)):
        raise BadConfig([f"no cell of {sweep.name} was run in {results}: {table.parent} stays as it is"])
    wrong = _wrong(sweep, store, results)  # first: it may be told from the table as it was
    exported = [line for row in rows if row.done and _has_folder(row.cell, results) for line in write_cell(row.cell, store, results, None)]
    paths = report.write_files(sweep, rows, results)
    notes = [f"CHANGED  {table} was another table before"] if before not in (b"", _content(table)) else []
    report.print_report(sweep, paths, [*notes, *exported], f"{sum(row.done for row in rows)} of {len(rows)} cells are done")
    for line in wrong:
        say(line)
    return SOME_FAILED if wrong or exported or paths.unwritten or any(row.failed for row in rows) else OK


def _content(path: Path) -> bytes:
    """Empty where there is no file that can be read."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _csv_rows(content: bytes) -> list[dict[str, str]]:
    rows = csv.DictReader(content.decode(errors="replace").splitlines())
    return [row for row in rows if row.get("status")]


def _has_folder(cell: CellPlan, results: Path) -> bool:
    """Whether a run has left the cell's folder here: a bundle has none."""
    return (results / "cells" / cell.name / "stages.json").is_file()


def _say_wrong(sweep: report.Sweep, store: Store, results: Path) -> bool:
    """Say what is wrong with the cells' stages. Whether anything is."""
    wrong = _wrong(sweep, store, results)
    for line in wrong:
        say(line)
    return bool(wrong)


def _wrong(sweep: report.Sweep, store: Store, results: Path) -> list[str]:
    """Cells that have failed, or whose stages are lost, stale, damaged or gone; and finished stages that are not as they were written,
    also where no number of a table hangs on them any more."""
    return list(dict.fromkeys([*wrong_cells(sweep, store, bundle.made_cells(sweep, results)), *_damaged(sweep, store)]))


def _damaged(sweep: report.Sweep, store: Store) -> list[str]:
    found = [store.status(stage) for stage in all_stages(sweep.cells)]
    return [f"DAMAGED  {status.why}" for status in found if status.state == "damaged"]


def _say_damaged(sweep: report.Sweep, store: Store) -> bool:
    damaged = _damaged(sweep, store)
    for line in damaged:
        say(line)
    return bool(damaged)


def _sweep(opened: Opened) -> report.Sweep:
    """The cells of a command, planned."""
    asked = [plan_cell(cell, sources, methods.chain) for cell, sources in zip(opened.cells, opened.sources, strict=True)]
    cells = with_start_cells(asked, opened.sources)
    return report.Sweep(_sweep_name(opened, cells), opened.title, opened.command, cells, opened.expectations, opened.axes)


def _rescore_files(do: Rescore) -> int:
    found = rescore.rescore_files(do)
    written = rescore.show(found, do)
    return SOME_FAILED if found.refused or not written else OK


def _audit(do: Audit, opened: Opened, store: Store) -> int:
    """A passport for every judge of the cells. What is judged already is not judged again, nor asked."""
    files = audit_sources(do)
    audits: dict[str, CellPlan] = {}
    for cell, sources in zip(opened.cells, opened.sources, strict=True):
        for manner in judge_manners(cell.judge):
            audit = plan_audit(cell, sources, do, files[manner], manner)
            audits.setdefault(judge_key(audit.roles["verdicts"]), audit)
    cells = list(audits.values())
    sweep = report.Sweep("audit", opened.title, opened.command, cells)
    plan = make_plan(cells, store)
    costs = _costs(plan, store)
    if do.plan or costs:
        print_costs(plan, costs)
    if do.plan:
        return OK
    check_keys(plan.to_do)
    clusters.check(opened.session.launcher, plan.to_do)
    forecast = with_costs(estimates(plan.to_do, store), costs)
    failures: dict[Stage, str] = {}
    screen = make_screen(sweep, plan, forecast, pool_size(opened.session.launcher, opened.session.accelerate.gpus))
    with screen:
        over_budget = _run_stages(opened.session, sweep, plan, store, screen, forecast, failures)
    chosen = [f"{name}={value}" for name, value in do.model_dump(exclude={"name", "plan", "out"}).items() if value is not None]
    command = " ".join(filter(None, ["python -m bench do=audit", opened.command, *chosen]))
    whole = True
    for audit in cells:
        if reason := _failure_of(audit, failures):
            say(f"FAILED   {audit.name}: {reason}")
        else:
            folder = user_path(do.out) if do.out else opened.session.results_dir / report.PASSPORTS
            root = folder if do.out else opened.session.results_dir
            whole &= passport.show(passport.read_passport(audit, store, command), root, folder)
    store.tidy()
    return OVER_BUDGET if over_budget else SOME_FAILED if failures or not whole else OK


def _make(results: Path, *, store: bool) -> None:
    """Make the results folder; BadConfig when it cannot be one."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        if store:
            _refuse_links(results)
            (results / "store").mkdir(exist_ok=True)  # /proc is a folder, and nothing can be made in it
    except OSError as error:
        why = f"results={results} cannot be a folder to write to ({error.strerror}): set results=DIR or BENCH_RESULTS"
        raise BadConfig([why]) from error


def _refuse_links(results: Path) -> None:
    """Raises BadConfig where what a run writes to is no folder of the results."""
    for place in (results / name for name in ("store", "wandb", "jobs")):
        if place.is_symlink():
            raise BadConfig([f"{place} is a link, and nothing is written through one: move it away, or set results= to where it leads"])
        if place.exists() and not place.is_dir():
            raise BadConfig([f"{place} is a file, and should be a folder: move it away, or set results=DIR"])


def with_start_cells(cells: Sequence[CellPlan], sources: Sequence[Sources]) -> list[CellPlan]:
    """The cells, each once, with the cell of every start model in front of the first one that starts from it."""
    found: dict[str, CellPlan] = {}
    for cell, source in zip(cells, sources, strict=True):
        start = plan_cell(start_cell(cell.cell), source, methods.chain)  # of completions of a file, these themselves
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
    forecast = estimates(plan.to_do, store)
    screen = make_screen(sweep, plan, forecast, pool_size(session.launcher, session.accelerate.gpus))
    failures: dict[Stage, str] = {}
    written: set[str] = set()
    unwritten: list[str] = []
    gone = keep.Evicted()
    trained = {stage: [cell for cell in sweep.cells if cell.roles.get("train") == stage] for stage in plan.to_do if stage.kind == "train"}

    def ended() -> None:
        """Write and track each cell as soon as it has its numbers, or cannot have them any more."""
        for cell in sweep.cells:
            reason = _failure_of(cell, failures)
            if cell.key not in written and (reason or store.status(cell.score).state == "done"):
                written.add(cell.key)
                for line in write_cell(cell, store, results, reason):  # its numbers are in the store, where the tables find them
                    unwritten.append(line)
                    screen.say(line)
                track_cell(tracker, sweep, cell, store, reason)
                screen.cell_ended(cell, reason)
        let_go = keep.evict(session.keep, sweep.cells, store)
        gone.stages, gone.size = gone.stages + let_go.stages, gone.size + let_go.size

    def progressed(stage: Stage, rows: Sequence[dict[str, float]]) -> None:
        screen.progress(stage, rows[-1])
        for cell in trained.get(stage, ()):
            followed = [{name: value for name, value in row.items() if name != "total"} for row in rows]
            tracker.follow(sweep=sweep.name, **_run_of(cell), rows=followed)

    with screen:
        for warning in [status.why for status in plan.statuses.values() if status.why]:
            screen.say(warning)
        ended()
        over_budget = _run_stages(session, sweep, plan, store, screen, forecast, failures, ended, progressed)
        ended()
        rows = report.collect(sweep, store, {cell.key: why for cell in sweep.cells if (why := _failure_of(cell, failures))})
        paths = report.write_files(sweep, rows, results)
        tracker.sweep(sweep=sweep.name, rows=report.flat_rows(rows), files=paths.for_tracker)
        tracker.close()
    report.print_report(sweep, paths, tracker.notes, "; ".join(filter(None, [screen.summary(), gone.words()])))
    store.tidy()
    wrong = bool(failures or unwritten or paths.unwritten) or any(row.failed or not row.done for row in rows)
    return OVER_BUDGET if over_budget else SOME_FAILED if wrong else OK


def _run_stages(
    session: Session,
    sweep: report.Sweep,
    plan: Plan,
    store: Store,
    screen: Screen,
    forecast: Mapping[Stage, Estimate],
    failures: dict[Stage, str],
    ended: Callable[[], None] = lambda: None,
    progressed: Callable[[Stage, Sequence[dict[str, float]]], None] | None = None,
) -> bool:
    """Run what is to do on a launcher; `failures` takes up what failed. Whether a judge has stopped at its budget."""
    if not plan.to_do:
        return False
    imports = dict.fromkeys(module for stage in plan.to_do for module in HEAVY_IMPORTS.get(stage.kind, ()))
    servers = contextlib.closing(Servers(store.root / "judge"))
    jobs, devices = session.results_dir / "jobs", session.accelerate.gpus
    launching = clusters.make_launcher(session.launcher, list(imports), jobs, screen.say, devices)
    with servers as judges, contextlib.closing(launching) as launcher:
        ranks = chain_lengths(all_stages(sweep.cells), lambda stage: _expected_s(stage, forecast))
        followed = progressed or (lambda stage, rows: screen.progress(stage, rows[-1]))
        shared: dict[str, Any] = {"servers": judges, "accelerate": session.accelerate}
        scheduler = Scheduler(store, launcher, screen, session.launcher.retries, failures, ranks, ended, followed, **shared)
        scheduler.run(sweep.cells)
        return scheduler.over_budget


def check_keys(stages: Sequence[Stage]) -> None:
    """Raises BadConfig where a judge of these stages needs a key that the environment does not hold: before anything is trained."""
    asked = {stage.settings.asking for stage in stages if isinstance(stage.settings, LanguageJudgeSettings) and stage.settings.asking}
    problems = []
    for name, needed in sorted({(asking.api_key_env, asking.base_url is None) for asking in asked if asking.server == "endpoint"}):
        try:
            if secrets.key(name) is None and needed:
                problems.append(f"the environment variable {name} (judge.api_key_env) must hold the judge's key")
        except secrets.BadKey as error:
            problems.append(str(error))
    if problems:
        raise BadConfig(problems)


def check_tasks(stages: Sequence[Stage]) -> None:
    """Raises BadConfig where tasks that these stages ask are unknown, or their data cannot be had: before anything is trained."""
    asked: dict[tuple[tuple[str, ...], Path | None], None] = {}
    for stage in stages:
        if isinstance(stage.settings, TaskSettings):
            own = stage.inputs.get("tasks")
            asked[stage.settings.tasks, own.path if isinstance(own, Source) else None] = None
    if problems := [problem for tasks, folder in asked for problem in faults(tasks, folder)]:
        raise BadConfig(list(dict.fromkeys(problems)))


def check_devices(session: Session, stages: Sequence[Stage]) -> None:
    """Raises BadConfig where a training cannot be spread over devices as asked: before a start model is made for it."""
    if problems := spread_faults(session, stages):
        raise BadConfig(problems)


def _failure_of(cell: CellPlan, failures: Mapping[Stage, str]) -> str | None:
    """Why a cell cannot have its numbers: the first of its stages that failed."""
    return next((f"{stage.label or stage.kind}: {failures[stage]}" for stage in cell.stages if stage in failures), None)


# Stages on a launcher -------------------------------------------------------------------------------------------------

# Seconds that are assumed of a stage whose like has not run in this store: only their proportion matters.
GUESSED_S = {"sft": 30.0, "train": 30.0, "sample": 5.0, "generate": 5.0, "logps": 3.0, "tasks": 30.0}


def _expected_s(stage: Stage, forecast: Mapping[Stage, Estimate]) -> float:
    known = forecast[stage].seconds if stage in forecast else None
    return GUESSED_S.get(stage.kind, 0.1) if known is None else known


def all_stages(cells: Sequence[CellPlan]) -> list[Stage]:
    """Every stage of the cells, each once, inputs before what reads them."""
    return list(dict.fromkeys(stage for cell in cells for stage in cell.stages))


@dataclass
class _Running:
    stage: Stage
    lock: filelock.BaseFileLock
    progress: Path
    offset: int = 0


@dataclass
class Scheduler:
    """Starts stages whose inputs are done, those with the longest chain behind them first (`ranks`), so that no worker is idle at
    the end. A stage that another command computes is waited for."""

    store: Store
    launcher: Launcher
    screen: Screen
    retries: int
    failures: dict[Stage, str]
    ranks: Mapping[Stage, float]
    on_end: Callable[[], None]
    on_progress: Callable[[Stage, Sequence[dict[str, float]]], None]
    running: dict[str, _Running] = field(default_factory=dict)
    losses: Counter[Stage] = field(default_factory=Counter)
    said: set[str] = field(default_factory=set)
    servers: Servers | None = None  # of models that judge
    accelerate: Accelerate | None = None  # how trainings are spread over devices
    over_budget: bool = False  # a judge has stopped at its budget
    judges: list[Stage] = field(default_factory=list)  # those of evaluations share a budget, and those that label
    readers: dict[Stage, list[Stage]] = field(default_factory=dict)

    def run(self, cells: Sequence[CellPlan]) -> None:
        """Until every cell has its numbers or cannot have them. Stages made stale on the way are run again."""
        self.judges = [stage for stage in all_stages(cells) if stage.kind == "judge"]
        for stage in all_stages(cells):
            for source in stage.inputs.values():
                if isinstance(source, Stage):
                    self.readers.setdefault(source, []).append(stage)
        try:
            while True:
                for stage in self._startable(cells):
                    if self.launcher.takes(needs(stage)):
                        self._start(stage)
                if not self.running:
                    if not self._waiting(cells):
                        return
                    self._say_once("waiting for stages that another command computes")
                answers = self.launcher.reports(POLL_S)
                self._follow()  # first: a stage that has ended has written its last row
                for answer in answers:
                    self._took(answer)
        except KeyboardInterrupt:
            for running in self.running.values():
                self.store.record_interruption(running.stage)
            raise
        finally:
            for running in self.running.values():
                running.lock.release()

    def _needed(self, cells: Sequence[CellPlan]) -> list[Stage]:
        """Stages to do of the cells that can still have their numbers: nothing is spent on one that has failed."""
        cells = [cell for cell in cells if _failure_of(cell, self.failures) is None]
        return [stage for stage in make_plan(cells, self.store).to_do if stage not in self.failures]

    def _startable(self, cells: Sequence[CellPlan]) -> list[Stage]:
        ready = [stage for stage in self._needed(cells) if stage.key not in self.running and self._ready(stage)]
        return sorted(ready, key=lambda stage: -self.ranks.get(stage, 0.0))

    def _waiting(self, cells: Sequence[CellPlan]) -> bool:
        return any(not any(ancestor in self.failures for ancestor in stage.walk()) for stage in self._needed(cells))

    def _ready(self, stage: Stage) -> bool:
        return all(not isinstance(source, Stage) or self.store.held(source).state == "done" for source in stage.inputs.values())

    def _start(self, stage: Stage) -> None:
        """Begin a stage. Where the file system does not let it, it has failed, and the others go on."""
        try:
            self._begin(stage)
        except OSError as error:
            if (running := self.running.pop(stage.key, None)) is not None:
                running.lock.release()
            self.failures[stage] = reason = f"could not begin: {error.filename or self.store.root}: {error.strerror or error}"
            self.store.record_failure(stage, reason)
            self.screen.stage_ended(stage, "failed", reason)
            self.on_end()

    def _begin(self, stage: Stage) -> None:
        lock = self.store.try_lock(stage)
        if lock is None:
            return  # another command is at it, and holds the lock until it is done
        self.store.forget(stage)  # it may have been done there a moment ago
        if self.store.held(stage).state == "done":
            lock.release()
            self.store.beside(stage, "lock").unlink(missing_ok=True)
            self._reconsider(stage)
            self.screen.stage_ended(stage, "elsewhere")
            self.on_end()
            return
        progress = self.store.beside(stage, "progress.jsonl")
        self.running[stage.key] = _Running(stage, lock, progress)
        progress.unlink(missing_ok=True)  # of a command that was killed
        if self.store.was_interrupted(stage):
            self.store.sweep(stage.kind, stage.key, elsewhere=True)
        self.store.clear_marks(stage)
        self.screen.stage_started(stage)
        more: dict[str, Any] = {}
        if stage.kind == "judge":
            sharing = [other.key for other in self.judges if labels_samples(other) == labels_samples(stage)]
            more = {"sharing": sharing, "server": self.servers and self.servers.place(stage)}
        elif is_spread(stage) and self.accelerate is not None:
            more = {"accelerate": self.accelerate.model_dump()}
        self.launcher.start(describe(stage, self.store) | more, self.store.beside(stage, "log"))

    def _took(self, answer: Report) -> None:
        running = self.running.pop(answer.key)
        stage, outcome, error = running.stage, answer.outcome, secrets.shown(answer.error)
        if stage.kind == "judge" and labels_samples(stage):
            error = re.sub(r"(?<![\w.])judge\.(?=[a-z])", "method.labelling_judge.", error)  # keys as they are typed
        self.store.forget(stage)
        if outcome == "done" and self.store.status(stage).state != "done":
            outcome, error = "failed", f"its folder did not pass its check: {self.store.status(stage).why}"
        elif self.store.status(stage).state == "done":  # it died after it had finished, or somebody else made the same
            outcome, error = "done", ""
        running.lock.release()
        with contextlib.suppress(OSError):
            running.progress.unlink(missing_ok=True)
        if outcome in ("lost", "late"):
            self.store.sweep(stage.kind, stage.key, elsewhere=True)
        if outcome == "lost" and self.losses[stage] < self.retries:
            self.losses[stage] += 1
            self.screen.stage_ended(stage, "retried", error)
            return
        if outcome == "done":
            self.store.beside(stage, "lock").unlink(missing_ok=True)
            self._reconsider(stage)
        else:
            self.over_budget |= outcome == "over_budget"
            self.failures[stage] = error
            self.store.record_failure(stage, error)
            secrets.clean_file(self.store.beside(stage, "log"))  # a worker that died has not done so itself
        self.screen.stage_ended(stage, outcome, error, self.store.beside(stage, "log"))
        self.on_end()

    def _reconsider(self, stage: Stage) -> None:
        """A stage was made again: say it where something was computed from other bytes of it, and has to be again."""
        for reader in self.readers.get(stage, ()):
            if why := self.store.status(reader).why:
                self._say_once(why)

    def _say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.screen.say(text)

    def _follow(self) -> None:
        """Pass on the progress that running stages have written since the last look."""
        for running in self.running.values():
            rows = []
            with contextlib.suppress(OSError), running.progress.open("rb") as file:
                file.seek(running.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    running.offset += len(line)
                    with contextlib.suppress(ValueError):  # a line that a full disk has cut
                        rows.append(json.loads(line))
            if rows:
                self.on_progress(running.stage, rows)


# A cell's folder and its run ------------------------------------------------------------------------------------------


def write_cell(cell: CellPlan, store: Store, results: Path, reason: str | None) -> list[str]:
    """`cells/<name>-<key>/`: what the cell is, its numbers or why it has none, what it wrote and how it was judged in the formats
    of AlpacaEval and FastChat, and the logs of its stages. Returns lines on what could not be written."""
    folder, out = results / "cells" / cell.name, OutputFiles(results)
    out.write(folder / "config.yaml", yaml.safe_dump(cell.cell.model_dump(mode="json"), sort_keys=False))
    stages = {s.key: {"kind": s.kind, "label": s.label, "folder": str(store.folder(s).relative_to(results))} for s in cell.stages}
    out.write(folder / "stages.json", json.dumps({"key": cell.key, "failed": reason, "stages": stages}, indent=1))
    try:
        if reason is None:
            out.write(folder / "result.json", (store.folder(cell.score) / "result.json").read_bytes())
        else:
            out.remove(folder / "result.json")
        report.export(cell, store, out, folder)
    except OSError as error:  # of what is read
        out.refused[folder] = why_not(error)
    logs = []
    for stage in cell.stages:
        with contextlib.suppress(OSError):  # made in another store, or by a command that logs now
            written = secrets.clean(store.beside(stage, "log").read_text("utf-8", "replace"))
            logs.append(f"=== {stage.kind} {stage.key} {stage.label}\n{written}\n")
    out.write(folder / "log.txt", "".join(logs))
    return out.lines()


def history(cell: CellPlan, store: Store) -> Iterator[dict[str, float]]:
    """The stored curve of a cell's training, with the speeds measured when it ran."""
    if "train" not in cell.roles or store.status(cell.roles["train"]).state != "done":
        return
    folder = store.folder(cell.roles["train"])
    files = {name: (folder / name).read_text(encoding="utf-8") for name in ("history.jsonl", "speed.jsonl")}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    speeds = {row["step"]: row for row in rows["speed.jsonl"]}
    for row in rows["history.jsonl"]:
        yield row | {name: speed for name, speed in speeds[row["step"]].items() if name == "tokens_per_second"}


def track_cell(tracker: Tracker, sweep: report.Sweep, cell: CellPlan, store: Store, reason: str | None) -> None:
    summary = {} if reason else json.loads((store.folder(cell.score) / "result.json").read_text(encoding="utf-8"))["metrics"]
    status = "failed" if reason else "done"
    tracker.cell(sweep=sweep.name, **_run_of(cell), history=list(history(cell, store)), summary=summary, status=status, reason=reason)


def _run_of(cell: CellPlan) -> dict[str, Any]:
    """What identifies and describes a cell's run to the tracker."""
    tags = [cell.cell.method.name, cell.cell.model.name, cell.cell.data.name]
    return {"key": cell.key, "name": cell.name, "config": cell.cell.model_dump(mode="json"), "tags": tags}
