"""What a person sees: plain lines, the live view in a terminal, plan and status."""

from __future__ import annotations

import io
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import bench, plans

from bench.commands.cell_states import cell_state
from bench.commands.plan import print_plan
from bench.commands.status import print_status
from bench.forecast.stage_time import StageForecast, estimates, usual_s
from bench.planning.to_do import make_plan
from bench.report import Sweep
from bench.runner.progress_view import LiveScreen, PlainScreen, clock, make_screen, makespan_s
from bench.runner.slurm import JobState
from bench.store.store import Store


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return Sweep("tiny", "does it show?", "method=kto,dpo", plans("method=kto,dpo", "seed=0,1"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def screen_of(
    kind: Any, sweep: Sweep, store: Store, seconds: float | None = None, **console: Any
) -> tuple[Any, io.StringIO]:
    plan = make_plan(sweep.cells, store)
    forecast = {stage: StageForecast(seconds, 100) for stage in plan.to_do}
    out = io.StringIO()
    return kind(Console(file=out, width=120, **console), sweep, plan, forecast, 2), out


def play(screen: Any, sweep: Sweep, tmp_path: Path) -> None:
    """Some stages that end in every way."""
    log = tmp_path / "log"
    log.write_text("Traceback ...\n")
    stages = sweep.cells[1].stages
    train = sweep.cells[1].roles["train"]
    with screen:
        for stage in (*stages[:4], train):
            screen.stage_started(stage)
        screen.stage_ended(stages[0], "done")
        screen.progress(train, {"step": 3, "total": 10, "loss": 0.51234, "tokens_per_second": 12345.6})
        screen.progress(train, {"step": 4, "total": 10, "loss": float("nan")})
        if hasattr(screen, "live"):
            screen.live.refresh()
        screen.stage_ended(stages[1], "retried", "its worker process died (signal SIGKILL)")
        screen.stage_ended(stages[2], "failed", "ValueError: expected [bold]this[/bold]", log)
        screen.stage_ended(stages[3], "elsewhere")
        screen.stage_ended(train, "late", "ran longer than 2 s")
        for cell in sweep.cells[1:3]:
            screen.cell_ended(cell, "preferences: ValueError: no")
        screen.cell_ended(sweep.cells[0], None)
        screen.say("a [word] with brackets")


def test_plain_output_is_not_silent_for_long(
    sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("bench.runner.progress_view.time.monotonic", lambda: now[0])
    screen, out = screen_of(PlainScreen, sweep, store)
    train = sweep.cells[1].roles["train"]
    with screen:
        for step in range(1, 91):
            now[0] += 1
            screen.progress(train, {"step": step, "total": 100, "loss": 0.5})
    lines = [line for line in out.getvalue().splitlines() if "loss" in line]
    assert [re.sub(r"\(\w+\)", "(key)", line.strip()) for line in lines] == [
        f"{clock}  train kto beta 0.1 (key) {step}/100  loss 0.5"
        for clock, step in (("0:30", 30), ("1:00", 60), ("1:30", 90))
    ]


def test_plain_lines_say_how_each_stage_ended(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    screen, out = screen_of(PlainScreen, sweep, store)
    play(screen, sweep, tmp_path)
    lines = out.getvalue().splitlines()
    assert all(re.match(r" +\d+:\d\d  ", line) for line in lines)
    text = "\n".join(line[8:] for line in lines)
    total = len(make_plan(sweep.cells, store).to_do)
    assert f"tiny: 6 cells, 0 stages done, {total} to do, 2 at a time" in text
    first, second, third, *_ = sweep.cells[1].stages
    assert f"{first.kind} {first.label} ({first.key[:6]}) 0.0 s; {total - 1} stages left" in text
    assert f"({second.key[:6]}): its worker process died (signal SIGKILL); the stage runs again" in text
    failed = f"FAILED {third.kind} {third.label} ({third.key[:6]}): ValueError: expected [bold]this[/bold] (log: {tmp_path / 'log'})"
    assert failed in text
    assert "Traceback" not in text  # it is in the log
    assert "LATE train kto beta 0.1" in text
    assert f"cell 1/6 FAILED {sweep.cells[1].name}: preferences: ValueError: no" in text
    assert f"cell 2/6 FAILED {sweep.cells[2].name}: as above" in text
    assert f"cell 3/6 {sweep.cells[0].name}" in text
    assert "a [word] with brackets" in text
    assert (
        screen.summary()
        == "1 stages run, 0 taken from the store, 1 computed by another command, 2 failed in 0:00"
    )


def test_the_live_view_shows_cells_stages_and_progress(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    screen, out = screen_of(LiveScreen, sweep, store, force_terminal=True)
    play(screen, sweep, tmp_path)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert re.search(r"tiny  0/6 cells, 1/\d+ stages +0:00 elapsed, \d+ stages left", text)
    assert "train kto beta 0.1" in text
    assert "4/10  loss nan" in text
    assert "FAILED" in text
    assert "as above" in text


def test_the_live_view_may_be_drawn_at_any_moment(sweep: Sweep, store: Store) -> None:
    """It is drawn by a thread of its own while stages end."""
    screen, _ = screen_of(LiveScreen, sweep, store, seconds=2.0, force_terminal=True)
    errors: list[Exception] = []
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            try:
                screen._view()
            except Exception as error:
                errors.append(error)

    stages = make_plan(sweep.cells, store).to_do
    with screen:
        threads = [threading.Thread(target=draw) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            for stage in stages:
                screen.stage_started(stage)
                screen.progress(stage, {"step": 1, "total": 2})
                screen.stage_ended(stage, "done")
            screen.left.update(dict.fromkeys(stages))
        over.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_the_kind_of_screen_follows_the_terminal(
    sweep: Sweep, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = make_screen(sweep, make_plan(sweep.cells, store), {}, 2)
    assert type(screen) is PlainScreen
    with screen:
        screen.say("to standard error")
    captured = capsys.readouterr()
    assert "to standard error" in captured.err
    assert captured.out == ""  # which is for the table


def test_time_left_counts_workers_and_chains(sweep: Sweep, store: Store) -> None:
    """By the forecast at first, by this run's own timings of a kind later."""
    screen, _ = screen_of(PlainScreen, sweep, store, seconds=60.0)
    stages = make_plan(sweep.cells, store).to_do
    half = len(stages) * 60 / 2
    assert screen._time_left() == f"{len(stages)} stages left, about {int(half) // 60}:{int(half) % 60:02}"
    a, b, *_ = stages
    assert makespan_s({a: 4.0, b: 6.0}, 2) == 6.0
    chain = sweep.cells[1].stages
    assert makespan_s(dict.fromkeys(chain, 1.0), 1000) == max(_depth(stage) for stage in chain)
    assert makespan_s({}, 2) == 0


def test_time_left_goes_by_tokens_at_this_runs_speed(
    sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of half the usual speed: each stage takes twice its usual time, start-up not counted; the time that a running
    stage has had is gone."""
    now = [100.0]
    monkeypatch.setattr("bench.runner.progress_view.time.monotonic", lambda: now[0])
    plan = make_plan(sweep.cells, store)
    screen = PlainScreen(Console(file=io.StringIO()), sweep, plan, estimates(plan.to_do, store), 2)
    assert "about" not in screen._time_left()  # Nothing has run yet.
    base, train = next(stage for stage in plan.to_do if stage.kind == "sft"), sweep.cells[1].roles["train"]
    screen.stage_started(base)
    now[0] += 60
    screen.stage_ended(base, "done", worked_s=2 * usual_s(base))
    assert screen._expected_s(train) == pytest.approx(2 * usual_s(train))
    whole = makespan_s({stage: 2 * usual_s(stage) for stage in screen.left}, 2)
    assert screen._time_left().endswith(f"about {clock(whole).strip()}")
    screen.stage_started(train)
    now[0] += 2 * usual_s(train)
    less = {stage: 2 * usual_s(stage) for stage in screen.left} | {train: 0.0}
    assert screen._time_left().endswith(f"about {clock(makespan_s(less, 2)).strip()}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sweep_name", ["kto_beta", "length_bias", "displacement"])
def test_the_forecast_holds_from_a_third_of_a_first_run_on(sweep_name: str, tmp_path: Path) -> None:
    """Every line's time left ends within a quarter of the whole run from its true end."""
    ran = bench(f"+sweep={sweep_name}", "scale=world_quick", results=tmp_path / "results", timeout_s=1000)
    assert ran.code == 0, ran.err
    lines = re.findall(r"^ *(\d+):(\d\d) .*about (\d+):(\d\d)$", ran.err, re.MULTILINE)
    forecasts = [(60 * int(a) + int(b), 60 * int(c) + int(d)) for a, b, c, d in lines]
    end = 1 + max(at for at, _ in forecasts)
    worst = max(abs(at + left - end) / end for at, left in forecasts if at >= end / 3)
    print(
        f"{sweep_name}: {len(forecasts)} forecasts of a run of {end} s; after a third at most {worst:.0%} of it wrong"
    )
    assert worst <= 0.25


def _depth(stage: Any) -> int:
    return 1 + max((_depth(source) for source in stage.inputs.values()), default=0)


def test_a_plan_is_printed_with_what_is_shared(
    sweep: Sweep, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(sweep.cells, store)
    print_plan(sweep, plan, {stage: StageForecast(30.0, 1000) for stage in plan.to_do}, 2, {})
    out = capsys.readouterr().out
    assert "tiny: 6 cells" in out
    assert re.search(r"train +0 +4 +0 +120 +4,000", out)
    assert re.search(r"time +about \d+:\d\d with 2 at a time\n", out)
    assert f"tokens   at most {1000 * len(plan.to_do):,}" in out
    assert "judge    $0.00 (gold)" in out
    print_plan(sweep, plan, {stage: StageForecast(None, 0) for stage in plan.to_do}, 2, {})
    assert "no forecast: no similar stage has run here yet" in capsys.readouterr().out


def test_status_tells_done_running_failed_lost_and_to_do(
    sweep: Sweep, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    kto, dpo = (
        next(cell for cell in sweep.cells if cell.cell.method.name == name) for name in ("kto", "dpo")
    )
    assert cell_state(kto, store, {}) == ("to do", "")
    train = kto.roles["train"]
    (store.root / "train").mkdir(parents=True)
    store.record_failure(train, "FloatingPointError: loss was nan\nand more")
    state, why = cell_state(kto, store, {})
    assert state == "failed"
    assert why.startswith("train kto beta 0.1")
    assert why.endswith("FloatingPointError: loss was nan")
    running = dpo.roles["train"]
    lock = store.try_lock(running)
    assert lock is not None
    assert cell_state(dpo, store, {})[0] == "running"
    lock.release()
    store.build_folder(running)
    state, why = cell_state(dpo, store, {})
    assert state == "lost"
    assert "it was begun, and no command works on it. Run the sweep again" in why
    assert print_status(sweep, store) is True
    out = capsys.readouterr().out
    assert "1 failed" in out
    assert "1 lost" in out
    assert "4 to do" in out
    store.clear_marks(train)
    assert print_status(sweep, store) is True  # the other is lost
    store.remove_build_folders(running.kind, running.key)
    shutil.rmtree(next(store.root.glob(f"train/{running.key}.build-*")))  # of this process, which lives
    assert print_status(sweep, store) is False


def test_status_says_interrupted_where_the_command_was_and_lost_where_a_worker_vanished(
    sweep: Sweep, store: Store
) -> None:
    cell = sweep.cells[1]
    train = cell.roles["train"]
    store.build_folder(train)
    assert cell_state(cell, store, {})[0] == "lost"
    store.record_interruption(train)
    state, why = cell_state(cell, store, {})
    assert (state, why.startswith("train ")) == ("interrupted", True)
    assert "Run the sweep again to continue" in why
    store.clear_marks(train)
    assert cell_state(cell, store, {})[0] == "lost"


def test_status_tells_queued_jobs_from_running_ones_and_names_them(sweep: Sweep, store: Store) -> None:
    cell = sweep.cells[1]
    train = cell.roles["train"]
    (store.root / "train").mkdir(parents=True)
    store.sidecar(train, "job.json").write_text('{"queue": "slurm", "id": "17_3", "attempt": "a"}')
    lock = store.try_lock(train)
    assert lock is not None
    waiting, running = JobState("PENDING", "Resources", ""), JobState("RUNNING", "None", "node7")
    assert cell_state(cell, store, {"17_3": waiting}) == (
        "queued",
        f"train kto beta 0.1 ({train.key[:6]}): job 17_3 waits (Resources)",
    )
    assert cell_state(cell, store, {"17_3": running}) == (
        "running",
        f"train kto beta 0.1 ({train.key[:6]}): job 17_3 on node7",
    )
    assert cell_state(cell, store, {}) == (
        "running",
        f"train kto beta 0.1 ({train.key[:6]}): slurm job 17_3",
    )  # no squeue on this machine
    lock.release()
    state, why = cell_state(cell, store, {"17_3": running})  # its command was killed
    assert state == "running" and why.endswith("no command waits for it. Run the sweep again to wait for it")
    assert cell_state(cell, store, {"17_3": JobState("NODE_FAIL", "None", "node7")})[0] == "lost"
