"""One interface, four things behind it: the pool, a scheduler of this process, and (slow) a real SLURM and a real Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Desk, cluster_settings, ray_settings, slurm_settings
from fake_stage import attempts, fake

from bench.config import LocalLauncher
from bench.runner.cluster_queue import QueueLauncher
from bench.runner.launcher import Launcher, StageReport
from bench.runner.launchers import check, make_launcher
from bench.runner.local_pool import Pool
from bench.runner.worker import describe
from bench.store.keys import Stage
from bench.store.store import Store

PATIENCE_S = 90.0
Make = Callable[[], Launcher]


@pytest.fixture(
    params=[
        "local",
        "desk",
        pytest.param("slurm", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ]
)
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a launcher of each kind."""
    monkeypatch.setattr("bench.runner.cluster_queue.REPORT_WAIT_S", 1.0)
    said: list[str] = []
    match request.param:
        case "local":
            return lambda: Pool(
                LocalLauncher(name="local", workers=2, threads=1, stage_timeout_s=60.0, retries=1)
            )
        case "desk":
            return lambda: QueueLauncher(cluster_settings(), Desk(tmp_path), [], said.append)
        case "slurm":
            request.getfixturevalue("slurm")
            return lambda: make_launcher(slurm_settings(), [], tmp_path / "jobs", said.append)
    return lambda: make_launcher(
        ray_settings(request.getfixturevalue("ray_address")), [], tmp_path / "jobs", said.append
    )


@pytest.fixture
def launcher(make: Make) -> Iterator[Launcher]:
    launcher = make()
    yield launcher
    launcher.close()


def start(launcher: Launcher, store: Store, *stages: Stage) -> None:
    for stage in stages:
        assert launcher.can_take("cpu")
        launcher.start(describe(stage, store), store.sidecar(stage, "log"))


def wait(launcher: Launcher, n: int = 1) -> list[StageReport]:
    found: list[StageReport] = []
    until = time.monotonic() + PATIENCE_S
    while len(found) < n and time.monotonic() < until:
        found += launcher.reports(0.2)
    assert len(found) == n
    return found


def until(launcher: Launcher, reached: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end
        launcher.reports(0.2)


def beside(store: Store) -> list[str]:
    return sorted(
        path.name
        for path in (store.root / "fake").iterdir()
        if path.name.endswith((".job.json", ".answer.json"))
    )


def gone(pid: int, within_s: float = 15.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_stages_are_done_and_leave_nothing_but_their_folders_and_logs(
    launcher: Launcher, store: Store
) -> None:
    first, second = fake("first", prints="words"), fake("second")
    start(launcher, store, first, second)
    assert sorted(report.key for report in wait(launcher, 2)) == sorted([first.key, second.key])
    third = fake("third", first)
    start(launcher, store, third)
    assert wait(launcher) == [StageReport(third.key, "done")]
    assert (store.folder(third) / "text").read_text() == "thirdfirst"
    assert "words printed" in store.sidecar(first, "log").read_text()
    assert beside(store) == []


def test_an_exception_is_a_failure_with_its_words(launcher: Launcher, store: Store) -> None:
    stage = fake("bad", fail="expected two, got one")
    start(launcher, store, stage)
    (report,) = wait(launcher)
    assert (report.key, report.outcome) == (stage.key, "failed")
    assert report.error.startswith("ValueError: expected two, got one")
    assert beside(store) == []


def test_a_killed_worker_is_a_lost_stage_which_can_be_tried_again(launcher: Launcher, store: Store) -> None:
    stage = fake("dies", die=1)
    start(launcher, store, stage)
    (report,) = wait(launcher)
    assert report.outcome == "lost"
    assert report.error.startswith("its worker process died (signal SIGKILL)")
    start(launcher, store, stage)
    assert wait(launcher) == [StageReport(stage.key, "done")]
    assert len(attempts(stage, store.root)) == 2


def test_closing_ends_what_runs(make: Make, store: Store) -> None:
    launcher, stage = make(), fake("busy", seconds=120.0)
    start(launcher, store, stage)
    until(launcher, lambda: attempts(stage, store.root))
    pid = attempts(stage, store.root)[0][0]
    launcher.close()
    assert gone(pid)
    assert not [name for name in beside(store) if name.endswith(".job.json")]


# What lies between the command and the nodes --------------------------------------------------------------------------


@pytest.fixture
def job_killer(make: Make) -> Callable[[int], None]:
    """Kills the process on the node that looks after a worker."""
    return lambda pid: os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)


def test_a_job_that_vanishes_is_lost_with_the_schedulers_words(
    make: Make, store: Store, job_killer: Callable[[int], None], request: pytest.FixtureRequest
) -> None:
    launcher = make()
    if isinstance(launcher, Pool):
        launcher.close()
        pytest.skip("the pool has no scheduler")
    stage = fake("orphan", hang=1)
    try:
        start(launcher, store, stage)
        until(launcher, lambda: attempts(stage, store.root))
        job_killer(attempts(stage, store.root)[0][0])
        (report,) = wait(launcher)
        assert report.outcome == "lost"
        ends = ("ended with -9", "ended as FAILED", "ended as CANCELLED", "ended by WorkerCrashedError")
        assert any(words in report.error for words in ends)
        assert gone(attempts(stage, store.root)[0][0])
        start(launcher, store, stage)
        assert wait(launcher) == [StageReport(stage.key, "done")]
    finally:
        launcher.close()


def test_jobs_of_a_command_that_was_killed_are_taken_up(make: Make, store: Store) -> None:
    first = make()
    if isinstance(first, Pool) or first.queue.name == "ray":  # type: ignore[attr-defined]
        first.close()
        pytest.skip("workers of the pool and tasks of Ray end with their command")
    stage = fake("long", seconds=6.0)
    start(first, store, stage)
    until(first, lambda: attempts(stage, store.root))
    assert beside(store) == [f"{stage.key}.job.json"]
    second = make()
    if isinstance(first.queue, Desk):  # type: ignore[attr-defined]
        second.queue = first.queue  # type: ignore[attr-defined]
    try:
        start(second, store, stage)
        assert wait(second) == [StageReport(stage.key, "done")]
        assert len(attempts(stage, store.root)) == 1
    finally:
        second.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_each_stage_gets_a_gpu_of_its_own_and_the_environment(
    kind: str, store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "slurm":
        request.getfixturevalue("slurm")
        plain = slurm_settings()
    else:
        plain = ray_settings(request.getfixturevalue("ray_address"))  # type: ignore[assignment]
    one = plain.cpu.model_copy(update={"gpus": 1})
    settings = plain.model_copy(update={"cpu": one, "env": {"GREETING": "it's me"}})
    check(settings, [fake("x")])
    launcher = make_launcher(settings, [], tmp_path / "jobs", print)
    stages = [fake(f"gpu{i}", meets=f"gpu{1 - i}", shows="CUDA_VISIBLE_DEVICES") for i in range(2)] + [
        fake("says", shows="GREETING")
    ]
    try:
        start(launcher, store, *stages)
        assert {(report.outcome, report.error) for report in wait(launcher, 3)} == {("done", "")}
    finally:
        launcher.close()
    texts = [(store.folder(stage) / "text").read_text() for stage in stages]
    assert (sorted(texts[:2]), texts[2]) == (
        ["0", "1"],
        "it's me",
    )  # the first two ran at the same time: each waited for the other
