"""What a person sees while a sweep runs: a live view in a terminal, plain lines elsewhere; and the plan and status verbs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import secrets
from bench.clusters.slurm import OVER, JobState, queue_states
from bench.clusters.stages import job_of
from bench.config import WorldData
from bench.costs import JudgeCost
from bench.forecast import Estimate
from bench.keep import evicted
from bench.launch import chain_lengths
from bench.plan import CellPlan, Plan, labels_samples, make_plan
from bench.report import Sweep
from bench.size_table import CELL_COLUMNS, STAGE_COLUMNS
from bench.size_table import Report as Sizes
from bench.store import Stage, Store
from bench.terminal import Terminal


class Screen(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def say(self, text: str) -> None: ...
    def stage_started(self, stage: Stage) -> None: ...
    def stage_ended(self, stage: Stage, outcome: str, error: str = "", log: Path | None = None) -> None: ...
    def progress(self, stage: Stage, row: Mapping[str, float]) -> None: ...
    def cell_ended(self, cell: CellPlan, reason: str | None) -> None: ...
    def summary(self) -> str: ...


def make_screen(sweep: Sweep, plan: Plan, forecast: Mapping[Stage, Estimate], workers: int) -> Screen:
    console = Terminal(stderr=True)
    kind = LiveScreen if console.is_interactive else PlainScreen
    return kind(console, sweep, plan, forecast, workers)


QUIET_S = 30.0  # without a line, after which plain output says how far a stage is


class PlainScreen:
    """One line a stage that ends and a cell that is complete; where nothing ends for long, how far a stage is."""

    def __init__(self, console: Terminal, sweep: Sweep, plan: Plan, forecast: Mapping[Stage, Estimate], workers: int):
        self.console, self.sweep, self.plan, self.forecast, self.workers = console, sweep, plan, forecast, workers
        self.started = self.said = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.cells_ended = 0
        self.since: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}
        self.left = dict.fromkeys(plan.to_do)
        self.reasons: set[str] = set()  # that have been said

    def __enter__(self) -> Self:
        done = f"{len(self.plan.done)} stages done, {len(self.plan.to_do)} to do"
        self.say(f"{self.sweep.name}: {len(self.sweep.cells)} cells, {done}, {self.workers} at a time")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def say(self, text: str) -> None:
        self.said = time.monotonic()
        self.console.print(f"{_clock(self.said - self.started)}  {secrets.shown(text)}", highlight=False, markup=False, soft_wrap=True)

    def stage_started(self, stage: Stage) -> None:
        self.since[stage.key] = time.monotonic()

    def stage_ended(self, stage: Stage, outcome: str, error: str = "", log: Path | None = None) -> None:
        seconds = time.monotonic() - self.since.pop(stage.key, time.monotonic())
        self.outcomes[outcome] += 1
        if outcome == "retried":
            self.say(f"{_stage_words(stage)}: {error}; trying once more")
            return
        self.left.pop(stage, None)
        if outcome == "done":
            self.seconds.setdefault(stage.kind, []).append(seconds)
            self._stage_done(stage, seconds)
        elif outcome != "elsewhere":
            words = outcome.upper().replace("_", " ")
            self.say(f"{words} {_stage_words(stage)}: {error}" + (f" (log: {log})" if log is not None and log.exists() else ""))

    def _stage_done(self, stage: Stage, seconds: float) -> None:
        self.say(f"{_stage_words(stage)} {seconds:.1f} s; {self._time_left()}")

    def progress(self, stage: Stage, row: Mapping[str, float]) -> None:
        if time.monotonic() - self.said >= QUIET_S:
            self.say(f"{_stage_words(stage)} {_progress_words(row)}")

    def cell_ended(self, cell: CellPlan, reason: str | None) -> None:
        self.cells_ended += 1
        count = f"cell {self.cells_ended}/{len(self.sweep.cells)}"
        if reason:
            self.say(f"{count} FAILED {cell.name}: {'as above' if reason in self.reasons else reason}")
            self.reasons.add(reason)
        elif self.plan.to_do:
            self.say(f"{count} {cell.name}")

    def summary(self) -> str:
        counts = [f"{self.outcomes['done']} stages run", f"{len(self.plan.done)} taken from the store"]
        if self.outcomes["elsewhere"]:
            counts.append(f"{self.outcomes['elsewhere']} computed by another command")
        if bad := sum(self.outcomes[name] for name in ("failed", "over_budget", "late", "lost")):
            counts.append(f"{bad} failed")
        return f"{', '.join(counts)} in {_clock(time.monotonic() - self.started).strip()}"

    def _time_left(self) -> str:
        """From this run's timings of the kind, else from earlier ones of like stages; said only when every stage has one."""
        left = list(self.left)  # a copy: the live view asks from a thread of its own
        seconds = {stage: self._expected_s(stage) for stage in left}
        count = f"{len(left)} stage{'' if len(left) == 1 else 's'} left"
        known = {stage: s for stage, s in seconds.items() if s is not None}
        if not left or len(known) < len(left):
            return count
        return f"{count}, about {_clock(_makespan_s(known, self.workers)).strip()}"

    def _expected_s(self, stage: Stage) -> float | None:
        mine = list(self.seconds.get(stage.kind, ()))
        if mine:
            return sum(mine) / len(mine)
        return self.forecast[stage].seconds if stage in self.forecast else None


class LiveScreen(PlainScreen):
    """Cells, the stages that run now with their progress, time left."""

    def __enter__(self) -> Self:
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[words]}"), TimeElapsedColumn()
        self.bars = Progress(*columns, console=self.console)
        self.tasks: dict[str, TaskID] = {}
        self.live = Live(get_renderable=self._view, console=self.console, refresh_per_second=4, transient=True)
        self.live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        self.live.console.print(
            f"{_clock(time.monotonic() - self.started)}  {secrets.shown(text)}", highlight=False, markup=False, soft_wrap=True
        )

    def _stage_done(self, stage: Stage, seconds: float) -> None: ...

    def _view(self) -> Table:
        view = Table.grid()
        total, done = len(self.plan.statuses), len(self.plan.statuses) - len(self.left)
        cells = f"[bold]{self.sweep.name}[/]  {self.cells_ended}/{len(self.sweep.cells)} cells, {done}/{total} stages"
        view.add_row(f"{cells}   {_clock(time.monotonic() - self.started).strip()} elapsed, {self._time_left()}")
        view.add_row(self.bars)
        return view

    def stage_started(self, stage: Stage) -> None:
        super().stage_started(stage)
        self.tasks[stage.key] = self.bars.add_task(_stage_words(stage), total=None, words="")

    def progress(self, stage: Stage, row: Mapping[str, float]) -> None:
        self.bars.update(self.tasks[stage.key], completed=row["step"], total=row["total"], words=_progress_words(row))

    def stage_ended(self, stage: Stage, outcome: str, error: str = "", log: Path | None = None) -> None:
        if (task := self.tasks.pop(stage.key, None)) is not None:
            self.bars.remove_task(task)
        super().stage_ended(stage, outcome, error, log)


def _makespan_s(seconds: Mapping[Stage, float], workers: int) -> float:
    """How long stages (inputs first) take at least: all workers busy, or one chain after another."""
    return max([sum(seconds.values()) / workers, *chain_lengths(list(seconds), lambda stage: seconds[stage]).values()])


def _stage_words(stage: Stage) -> str:
    words = f"{stage.kind} {stage.label}" if stage.label and stage.label != stage.kind else stage.kind
    beta = getattr(getattr(stage.settings, "method", None), "beta", None)
    return f"{words}{'' if beta is None else f' beta {beta:g}'} ({stage.key[:6]})"


def _progress_words(row: Mapping[str, float]) -> str:
    words = f"{row['step']:g}/{row['total']:g}"
    for name, short in (("loss", "loss"), ("rewards/accuracies", "acc"), ("tokens_per_second", "tok/s")):
        if name in row:
            words += f"  {short} {row[name]:.3g}" if name != "tokens_per_second" else f"  {row[name]:,.0f} tok/s"
    return words


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:3}:{rest:02}"


# Verbs that run nothing -----------------------------------------------------------------------------------------------


def print_plan(
    sweep: Sweep,
    plan: Plan,
    forecast: Mapping[Stage, Estimate],
    workers: int,
    costs: Mapping[Stage, JudgeCost],
    data: Sequence[str] = (),
) -> None:
    """Cells, unique stages by kind with what is done, forecasts of time, tokens and judge cost; `data`: lines on the rows."""
    console = Terminal(soft_wrap=True)
    cells = Table(title=f"{sweep.name}: {len(sweep.cells)} cells", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("cell", "to do", "done"):
        cells.add_column(column, no_wrap=True, justify="left" if column == "cell" else "right")
    to_do = set(plan.to_do)
    for cell in sweep.cells:
        n = sum(stage in to_do for stage in cell.stages)
        cells.add_row(cell.name, str(n), str(len(cell.stages) - n))
    console.print(cells)
    kinds = Table(title="unique stages", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("kind", "done or not needed", "to do", "shared by cells", "seconds", "tokens at most"):
        kinds.add_column(column, no_wrap=True, justify="left" if column == "kind" else "right")
    uses = Counter(stage for cell in sweep.cells for stage in cell.stages)
    for kind in dict.fromkeys(stage.kind for stage in uses):
        of_kind = [stage for stage in uses if stage.kind == kind]
        waiting = [stage for stage in of_kind if stage in to_do]
        kinds.add_row(
            kind,
            str(len(of_kind) - len(waiting)),
            str(len(waiting)),
            str(sum(uses[stage] > 1 for stage in of_kind)),
            _seconds([forecast[stage].seconds for stage in waiting]),
            f"{sum(forecast[stage].tokens for stage in waiting):,}",
        )
    console.print(kinds)
    for status in plan.statuses.values():
        if status.why:
            console.print(status.why, style="yellow", highlight=False, markup=False)
    known = {stage: estimate.seconds for stage, estimate in forecast.items() if estimate.seconds is not None}
    unknown = len(forecast) - len(known)
    time_words = "no like stage has run here yet: no forecast"
    if known or not forecast:
        time_words = f"about {_clock(_makespan_s(known, workers)).strip()} with {workers} at a time"
        time_words += f" and {unknown} stages of which no like has run here" if unknown else ""
    console.print(f"time     {time_words}", highlight=False)
    console.print(f"tokens   at most {sum(e.tokens for e in forecast.values()):,}{_uncounted(sweep)}", highlight=False)
    names = ", ".join(sorted({cell.cell.judge.name for cell in sweep.cells}))
    of_labels = [cost for stage, cost in costs.items() if labels_samples(stage)]
    evaluating = {stage: cost for stage, cost in costs.items() if not labels_samples(stage)}
    console.print(f"judge    {_cost_words(list(evaluating.values()))} ({names})", highlight=False)
    by_label: dict[str, list[JudgeCost]] = {}
    for stage, cost in evaluating.items():
        by_label.setdefault(stage.label, []).append(cost)
    for label, some in by_label.items() if len(by_label) > 1 else ():  # a jury's members
        console.print(f"         {label}: {_cost_words(some)}", highlight=False)
    if of_labels:
        console.print(f"labels   {_cost_words(of_labels)}", highlight=False)
    for how in dict.fromkeys("; ".join(cost.how) for cost in costs.values()):
        console.print(f"         counted from {how}", highlight=False)
    for place, line in enumerate(data):
        console.print(f"{'' if place else 'data':<9}{line}", highlight=False, markup=False)


def print_sizes(found: Sizes | None) -> None:
    """What models of size take; nothing where there is nothing to say."""
    console = Terminal(soft_wrap=True)
    tables = {"work of models, to do": (STAGE_COLUMNS, found.stages), "by cell": (CELL_COLUMNS, found.cells)} if found else {}
    for title, (columns, rows) in tables.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, column in enumerate(columns):
            table.add_column(column, no_wrap=True, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        if rows:
            Terminal(width=max(Terminal(width=10_000).measure(table).maximum, console.width)).print(table, highlight=False)
    for place, line in enumerate(found.lines if found else ()):
        console.print(f"{'' if place else 'size':<9}{line}", highlight=False, markup=False)


def print_costs(plan: Plan, costs: Mapping[Stage, JudgeCost]) -> None:
    """What an audit would ask, line by line, and what that costs."""
    console = Terminal(soft_wrap=True)
    table = Table(title="to be asked", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("judge", "about", "requests", "tokens sent", "tokens back", "$"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("judge", "about") else "right")
    for cell in plan.cells:
        for role in cell.roles.values():
            if cost := costs.get(role):
                dollars = "?" if cost.dollars is None else f"{cost.dollars:.2f}"
                numbers = (f"{n:,}" for n in (cost.requests, cost.prompt_tokens, cost.completion_tokens))
                table.add_row(cell.name, role.label, *numbers, dollars)
    if table.row_count:
        width = Terminal(width=10_000).measure(table).maximum
        Terminal(width=max(width, console.width)).print(table, highlight=False)
    names = ", ".join(sorted({cell.cell.judge.name for cell in plan.cells}))
    console.print(f"judge    {_cost_words(list(costs.values()))} ({names})", highlight=False)
    for how in dict.fromkeys("; ".join(cost.how) for cost in costs.values()):
        console.print(f"         counted from {how}", highlight=False)
    budgets = [budget for cell in plan.cells if (budget := getattr(cell.cell.judge, "budget_dollars", None)) is not None]
    if budgets and sum(cost.dollars for cost in costs.values() if cost.dollars is not None) > min(budgets):
        console.print(f"         more than judge.budget_dollars={min(budgets):g}: it stops there (exit 4), and goes on once that is raised")


def _cost_words(costs: Sequence[JudgeCost]) -> str:
    known = sum(cost.dollars for cost in costs if cost.dollars is not None)
    if not costs:
        return "$0.00"
    requests = sum(cost.requests for cost in costs)
    tokens = f"{sum(cost.prompt_tokens for cost in costs):,} + {sum(cost.completion_tokens for cost in costs):,} tokens"
    unknown = any(cost.dollars is None for cost in costs)
    dollars = f"${known:.2f}" if known or not unknown else "no price known (judge.prices)"
    return f"{dollars}{' and a model without a price' if known and unknown else ''}: {requests:,} requests, {tokens}"


def _uncounted(sweep: Sweep) -> str:
    local = any(not isinstance(cell.cell.data, WorldData) for cell in sweep.cells)
    return ", not counting rows of your file" if local else ""


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not values:
        return ""
    return "?" if not known else f"{sum(known):,.0f}" + ("+?" if len(known) < len(values) else "")


WRONG = ("failed", "lost", "damaged", "stale", "absent")  # states of a cell that the same command, or a person, has to mend


def print_status(sweep: Sweep, store: Store, made: Container[str] = ()) -> bool:
    """Cells by state: done, running, queued, failed, lost (begun, and nobody is at it), damaged, stale, absent (gone since it was made),
    interrupted, to do. True when one has failed or is lost, damaged, stale or absent. `made`: keys of cells that had their numbers."""
    console = Terminal(soft_wrap=True)
    table = Table(title=f"{sweep.name}: {len(sweep.cells)} cells", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("cell", "state", "stages", "why"):
        table.add_column(column, no_wrap=column != "why")
    states = []
    jobs = _jobs(store)
    for cell in sweep.cells:
        state, why = cell_state(cell, store, jobs, made)
        states.append(state)
        done = sum(store.status(stage).state == "done" for stage in cell.stages)
        table.add_row(cell.name, state, f"{done}/{len(cell.stages)}", why)
    # A table wider than the terminal runs on into the next line: a reason that is cut is none.
    Terminal(width=max(Terminal(width=10_000).measure(table).maximum, console.width)).print(table)
    console.print(", ".join(f"{n} {state}" for state, n in Counter(states).items()), highlight=False)
    if gone := evicted(sweep.cells, store).words():
        console.print(gone, highlight=False)
    return any(state in WRONG for state in states)


def wrong_cells(sweep: Sweep, store: Store, made: Container[str] = ()) -> list[str]:
    """A line for each reason that cells have failed or are lost, damaged, stale or absent."""
    jobs = _jobs(store)
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in sweep.cells:
        state, why = cell_state(cell, store, jobs, made)
        if state in WRONG:
            reasons.setdefault((state, why), []).append(cell.name)
    lines = []
    for (state, why), names in reasons.items():
        more = f" and {len(names) - 1} more cells" if len(names) > 1 else ""
        lines.append(f"{state.upper():<8} {why if state == 'damaged' else f'{names[0]}{more}: {why}'}")
    return lines


def _jobs(store: Store) -> Mapping[str, JobState]:
    return queue_states() if any(store.root.glob("*/*.job.json")) else {}


def cell_state(cell: CellPlan, store: Store, jobs: Mapping[str, JobState], made: Container[str] = ()) -> tuple[str, str]:
    """(state, why) of a cell from what lies in the store, and from what SLURM says of its jobs, by id."""
    needed = make_plan([cell], store).to_do
    if not needed:
        return "done", ""
    was_made = cell.key in made or store.status(cell.score).state in ("done", "stale", "damaged")
    pending: dict[str, Any] = {}
    for stage in needed:
        status = store.held(stage)
        if error := store.failure(stage):
            return "failed", f"{_stage_words(stage)}: {error.splitlines()[0]}"
        held, handed_in = store.is_locked(stage), job_of(stage, store)
        job = jobs.get(handed_in["id"]) if handed_in else None
        if handed_in and job and job.state not in OVER:
            place = f"waits ({job.reason})" if job.waits else f"on {job.node}"
            alone = "" if held else "; no command waits for it, the same command takes it up"
            pending["queued" if job.waits else "running"] = f"{_stage_words(stage)}: job {handed_in['id']} {place}{alone}"
        elif held:
            pending["running"] = _stage_words(stage) + (f": {handed_in['queue']} job {handed_in['id']}" if handed_in else "")
        elif store.was_interrupted(stage):
            pending.setdefault("interrupted", f"{_stage_words(stage)}: the command was interrupted; the same command runs it again")
        elif handed_in or store.was_begun(stage):
            pending.setdefault("lost", f"{_stage_words(stage)}: begun, and nobody is at it; the same command runs it again")
        elif status.state in ("damaged", "stale"):
            pending.setdefault(status.state, status.why)
        elif was_made and not status.why:
            gone = f"{stage.kind}/{stage.key} ({stage.label}) is not in the store any more: the same command makes it again"
            pending.setdefault("absent", gone)
        elif status.why:
            pending.setdefault("to do", status.why)
    for state in ("running", "queued", "lost", "interrupted", "damaged", "stale", "absent", "to do"):
        if state in pending:
            return state, pending[state]
    return "to do", ""
