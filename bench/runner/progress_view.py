"""Shows the progress of a sweep: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import secrets
from bench.forecast.stage_time import StageForecast, usual_s
from bench.planning.inputs import CellPlan
from bench.planning.to_do import Plan
from bench.report import Sweep
from bench.runner.launcher import chain_lengths
from bench.store.keys import Stage
from bench.store.stage_settings import BaseSettings, needs
from bench.terminal import Terminal


def make_screen(
    sweep: Sweep, plan: Plan, forecast: Mapping[Stage, StageForecast], workers: int
) -> PlainScreen:
    """A live view where stderr is a terminal, otherwise plain lines."""
    console = Terminal(stderr=True)
    kind = LiveScreen if console.is_interactive else PlainScreen
    return kind(console, sweep, plan, forecast, workers)


@dataclass
class KindPace:
    """Seconds and tokens of stages that have ended."""

    seconds: float = 0.0
    tokens: float = 0.0
    n: int = 0

    def add(self, seconds: float, tokens: float) -> None:
        self.seconds, self.tokens, self.n = self.seconds + seconds, self.tokens + tokens, self.n + 1

    def seconds_of(self, tokens: float) -> float:
        """Seconds of a stage of so many tokens; the mean of all stages where tokens are not known."""
        return self.seconds / self.tokens * tokens if tokens and self.tokens else self.seconds / self.n


QUIET_S = 30.0  # after so long without a line, plain output prints how far a stage is


class PlainScreen:
    """Prints a line for each stage that ends and each cell that is complete.

    Where nothing ends for QUIET_S, it prints how far a running stage is.
    """

    def __init__(
        self,
        console: Terminal,
        sweep: Sweep,
        plan: Plan,
        forecast: Mapping[Stage, StageForecast],
        workers: int,
    ):
        self.console, self.sweep, self.plan, self.forecast, self.workers = (
            console,
            sweep,
            plan,
            forecast,
            workers,
        )
        self.started = self.last_line = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.cells_ended = 0
        self.since: dict[str, float] = {}
        self.paces: dict[str, KindPace] = {}  # of this run's stages, by kind
        self.usual = KindPace()  # of all of them, with their usual seconds as tokens
        self.left = dict.fromkeys(plan.to_do)
        self.shown_reasons: set[str] = set()  # reasons of failed cells that were printed

    def __enter__(self) -> Self:
        done = f"{len(self.plan.done)} stages done, {len(self.plan.to_do)} to do"
        self.say(f"{self.sweep.name}: {len(self.sweep.cells)} cells, {done}, {self.workers} at a time")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        self.last_line = time.monotonic()
        line = f"{clock(self.last_line - self.started)}  {secrets.shown(text)}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stage_started(self, stage: Stage) -> None:
        self.since[stage.key] = time.monotonic()

    def stage_ended(
        self,
        stage: Stage,
        outcome: str,
        error: str = "",
        log: Path | None = None,
        worked_s: float | None = None,
    ) -> None:
        """Show how a stage has ended; `worked_s`: its time without start-up and imports, in seconds."""
        seconds = time.monotonic() - self.since.pop(stage.key, time.monotonic())
        self.outcomes[outcome] += 1
        if outcome == "retried":
            self.say(f"{stage_words(stage)}: {error}; the stage runs again")
            return
        self.left.pop(stage, None)
        if outcome == "done":
            worked = seconds if worked_s is None else worked_s
            self.paces.setdefault(stage.kind, KindPace()).add(worked, self._tokens(stage))
            self.usual.add(worked, usual_s(stage))
            self._stage_done(stage, seconds)
        elif outcome != "elsewhere":
            words = outcome.upper().replace("_", " ")
            self.say(
                f"{words} {stage_words(stage)}: {error}"
                + (f" (log: {log})" if log is not None and log.exists() else "")
            )

    def _stage_done(self, stage: Stage, seconds: float) -> None:
        self.say(f"{stage_words(stage)} {seconds:.1f} s; {self._time_left()}")

    def progress(self, stage: Stage, row: Mapping[str, float]) -> None:
        if time.monotonic() - self.last_line >= QUIET_S:
            self.say(f"{stage_words(stage)} {_progress_words(row)}")

    def cell_ended(self, cell: CellPlan, reason: str | None) -> None:
        self.cells_ended += 1
        count = f"cell {self.cells_ended}/{len(self.sweep.cells)}"
        if reason:
            self.say(f"{count} FAILED {cell.name}: {'as above' if reason in self.shown_reasons else reason}")
            self.shown_reasons.add(reason)
        elif self.plan.to_do:
            self.say(f"{count} {cell.name}")

    def summary(self) -> str:
        counts = [f"{self.outcomes['done']} stages run", f"{len(self.plan.done)} taken from the store"]
        if self.outcomes["elsewhere"]:
            counts.append(f"{self.outcomes['elsewhere']} computed by another command")
        if bad := sum(self.outcomes[name] for name in ("failed", "over_budget", "late", "lost")):
            counts.append(f"{bad} failed")
        return f"{', '.join(counts)} in {clock(time.monotonic() - self.started).strip()}"

    def _time_left(self) -> str:
        """The number of stages left, and the expected time.

        The time is estimated from this run's stages of the same kind, else from earlier similar stages. Stages
        of the world's models have a third way: what they usually take, at this run's speed. The time is left out
        unless every stage has an estimate.
        """
        left = list(self.left)  # A copy, because the live view calls this from its own thread.
        now, since = time.monotonic(), dict(self.since)
        seconds = {
            stage: None
            if (s := self._expected_s(stage)) is None
            else max(0.0, s - now + since.get(stage.key, now))
            for stage in left
        }
        count = f"{len(left)} stage{'' if len(left) == 1 else 's'} left"
        known = {stage: s for stage, s in seconds.items() if s is not None}
        if not left or len(known) < len(left):
            return count
        return f"{count}, about {clock(makespan_s(known, self.workers)).strip()}"

    def _expected_s(self, stage: Stage) -> float | None:
        if (pace := self.paces.get(stage.kind)) is not None:
            return pace.seconds_of(self._tokens(stage))
        known = self.forecast[stage].seconds if stage in self.forecast else None
        if known is None and self.usual.tokens and _is_usual(stage):
            return self.usual.seconds_of(usual_s(stage))
        return known

    def _tokens(self, stage: Stage) -> int:
        return self.forecast[stage].tokens if stage in self.forecast else 0


class LiveScreen(PlainScreen):
    """A live view: cells done, the running stages with their progress, and the time left."""

    def __enter__(self) -> Self:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=self.console)
        self.tasks: dict[str, TaskID] = {}
        self.live = Live(
            get_renderable=self._view, console=self.console, refresh_per_second=4, transient=True
        )
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def _stage_done(self, stage: Stage, seconds: float) -> None: ...

    def _view(self) -> Table:
        view = Table.grid()
        total, done = len(self.plan.statuses), len(self.plan.statuses) - len(self.left)
        cells = f"[bold]{self.sweep.name}[/]  {self.cells_ended}/{len(self.sweep.cells)} cells, {done}/{total} stages"
        view.add_row(
            f"{cells}   {clock(time.monotonic() - self.started).strip()} elapsed, {self._time_left()}"
        )
        view.add_row(self.bars)
        return view

    def stage_started(self, stage: Stage) -> None:
        super().stage_started(stage)
        self.tasks[stage.key] = self.bars.add_task(stage_words(stage), total=None, words="")

    def progress(self, stage: Stage, row: Mapping[str, float]) -> None:
        self.bars.update(
            self.tasks[stage.key], completed=row["step"], total=row["total"], words=_progress_words(row)
        )

    def stage_ended(
        self,
        stage: Stage,
        outcome: str,
        error: str = "",
        log: Path | None = None,
        worked_s: float | None = None,
    ) -> None:
        if (task := self.tasks.pop(stage.key, None)) is not None:
            self.bars.remove_task(task)
        super().stage_ended(stage, outcome, error, log, worked_s)


def _is_usual(stage: Stage) -> bool:
    """Whether `usual_s` knows the proportions of a stage: it has no model, or one of the controlled world."""
    return needs(stage) == "cpu" or any(isinstance(one.settings, BaseSettings) for one in stage.walk())


def makespan_s(seconds: Mapping[Stage, float], workers: int) -> float:
    """The least time in seconds that stages take on `workers` workers.

    It is the larger of two bounds: all workers always busy, and the longest chain of stages. `seconds` must
    list inputs before their readers.
    """
    return max(
        [
            sum(seconds.values()) / workers,
            *chain_lengths(list(seconds), lambda stage: seconds[stage]).values(),
        ]
    )


def stage_words(stage: Stage) -> str:
    """A stage's name on screen: kind, label, beta, and the first digits of its key."""
    words = f"{stage.kind} {stage.label}" if stage.label and stage.label != stage.kind else stage.kind
    beta = getattr(getattr(stage.settings, "method", None), "beta", None)
    return f"{words}{'' if beta is None else f' beta {beta:g}'} ({stage.key[:6]})"


def _progress_words(row: Mapping[str, float]) -> str:
    words = f"{row['step']:g}/{row['total']:g}"
    for name, short in (("loss", "loss"), ("rewards/accuracies", "acc"), ("tokens_per_second", "tok/s")):
        if name in row:
            words += (
                f"  {short} {row[name]:.3g}" if name != "tokens_per_second" else f"  {row[name]:,.0f} tok/s"
            )
    return words


def clock(seconds: float) -> str:
    """A duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:3}:{rest:02}"
