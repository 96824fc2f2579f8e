"""The pool with real worker processes; only what the stages do is made up."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fake_stages"))

from fake_stage import HERE, Fake, attempts, fake

from bench.config import LocalLauncher
from bench.machine import _cpu_quota, visible_gpus
from bench.runner.launcher import StageReport, chain_lengths
from bench.runner.local_pool import Pool, pool_size
from bench.runner.worker import describe
from bench.store import stage_settings
from bench.store.keys import Stage
from bench.store.store import Store

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_settings.SETTINGS, "fake", (Fake,))
    monkeypatch.setitem(stage_settings.VERSIONS, "fake", 1)
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "fake").mkdir()
    return Store(tmp_path)


def settings(workers: int = 1, timeout_s: float = 60.0) -> LocalLauncher:
    return LocalLauncher(name="local", workers=workers, threads=1, stage_timeout_s=timeout_s, retries=1)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(settings())
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not: in a container perhaps nobody collects it)."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(*pids: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def log_of(stage: Stage, store: Store) -> Path:
    return store.sidecar(stage, "log")


def start(pool: Pool, store: Store, *stages: Stage) -> None:
    for stage in stages:
        pool.start(describe(stage, store), log_of(stage, store))


def wait(pool: Pool, n: int = 1) -> list[StageReport]:
    found: list[StageReport] = []
    until = time.monotonic() + PATIENCE_S
    while len(found) < n and time.monotonic() < until:
        found += pool.reports(0.5)
    assert len(found) == n
    return found


def run(pool: Pool, store: Store, stage: Stage) -> StageReport:
    start(pool, store, stage)
    return wait(pool)[0]


def test_a_worker_runs_stage_after_stage_in_one_process(pool: Pool, store: Store) -> None:
    stages = [fake(f"s{i}") for i in range(3)]
    assert [run(pool, store, stage) for stage in stages] == [
        StageReport(stage.key, "done") for stage in stages
    ]
    pids = {pid for stage in stages for pid, _ in attempts(stage, store.root)}
    assert len(pids) == 1
    assert all(Store(store.root).status(stage).state == "done" for stage in stages)


def test_an_exception_is_a_reason_and_the_worker_goes_on(pool: Pool, store: Store) -> None:
    bad, good = fake("bad", fail="expected two\n  lines, " + "got one, " * 100), fake("good")
    report = run(pool, store, bad)
    assert report.outcome == "failed"
    assert report.error.startswith("ValueError: expected two lines, got one, got one")
    assert "\n" not in report.error
    assert len(report.error) < 500
    assert "Traceback" in log_of(bad, store).read_text()
    assert log_of(bad, store).read_text().count("got one") == 100  # the log has the whole of it
    assert run(pool, store, good).outcome == "done"
    assert attempts(bad, store.root)[0][0] == attempts(good, store.root)[0][0]
    assert not list((store.root / "fake").glob("*.build-*"))


def test_a_library_that_ends_the_process_is_a_failure_with_its_words(pool: Pool, store: Store) -> None:
    stage = fake("exits", exit=True)
    assert run(pool, store, stage) == StageReport(
        stage.key, "failed", "SystemExit: a library ended the process"
    )


def test_what_a_stage_writes_goes_to_its_log_and_nowhere_else(
    pool: Pool, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        run(pool, store, fake(name, prints=f"chatter of {name}"))
        log = log_of(fake(name, prints=f"chatter of {name}"), store).read_text()
        for how in ("printed", "to stderr", "natively", "by a child"):
            assert f"chatter of {name} {how}" in log
        assert ("second" in log) == (name == "second")
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_is_a_lost_stage_and_the_next_one_gets_a_new_worker(pool: Pool, store: Store) -> None:
    stage = fake("dies", die=1)
    assert run(pool, store, stage) == StageReport(
        stage.key, "lost", "its worker process died (signal SIGKILL)"
    )
    assert pool.free == 1
    assert run(pool, store, stage).outcome == "done"
    (first, _), (second, _) = attempts(stage, store.root)
    assert first != second


def test_a_death_is_noticed_although_a_child_holds_the_pipe_open(pool: Pool, store: Store) -> None:
    stage = fake("orphan", orphan=True, die=1)
    began = time.monotonic()
    assert run(pool, store, stage).outcome == "lost"
    assert time.monotonic() - began < 10  # the child would live for 20 s
    assert gone(int((store.root / "fake" / "orphan.pid").read_text()))


def test_a_worker_that_died_idle_costs_no_stage_a_try(pool: Pool, store: Store) -> None:
    run(pool, store, fake("before"))
    os.kill(pool.workers[0].process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    time.sleep(0.3)
    assert run(pool, store, fake("after")).outcome == "done"
    assert len(attempts(fake("after"), store.root)) == 1


def test_a_stage_beyond_its_time_is_ended(store: Store) -> None:
    pool = Pool(settings(timeout_s=2.0))
    try:
        stage = fake("hangs", seconds=60.0)
        start(pool, store, stage)
        pid = pool.workers[0].process.pid  # type: ignore[union-attr]
        report = wait(pool)[0]
        assert report == StageReport(
            stage.key, "late", "took longer than 2 s and was stopped: raise hydra.launcher.stage_timeout_s"
        )
        assert gone(pid, within_s=0.5)
        assert pool.free == 1
    finally:
        pool.close()


def test_a_worker_that_answered_and_died_at_once_has_done_its_stage(pool: Pool, store: Store) -> None:
    """The answer and the end of the pipe arrive in one read."""
    stage = fake("last")
    start(pool, store, stage)
    process = pool.workers[0].process  # type: ignore[union-attr]
    until = time.monotonic() + PATIENCE_S
    while Store(store.root).status(stage).state != "done" and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert wait(pool) == [StageReport(stage.key, "done")]
    assert pool.workers == [None]


def test_several_workers_run_side_by_side(store: Store) -> None:
    pool = Pool(settings(workers=2))
    try:
        stages = [fake(f"slow{i}", seconds=2.0) for i in range(2)]
        start(pool, store, *stages)
        assert pool.free == 0
        assert {report.outcome for report in wait(pool, 2)} == {"done"}
        (a, began_a), (b, began_b) = (attempts(stage, store.root)[0] for stage in stages)
        assert a != b
        assert abs(began_a - began_b) < 2.0
    finally:
        pool.close()


def test_each_worker_sees_one_of_the_gpus_and_one_that_shares_sees_them_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")

    def seen(pool: Pool, *names: str) -> list[str]:
        stages = [fake(name, seconds=0.5, shows="CUDA_VISIBLE_DEVICES") for name in names]
        try:
            start(pool, store, *stages)
            wait(pool, len(stages))
        finally:
            pool.close()
        return sorted((store.folder(stage) / "text").read_text() for stage in stages)

    automatic = LocalLauncher(name="local", workers=None, threads=1, stage_timeout_s=60.0, retries=1)
    assert seen(Pool(automatic), "a", "b") == ["0", "3"]
    assert seen(Pool(settings(), share_gpus=True), "c") == ["0,3"]


def test_closing_ends_every_worker_at_once(store: Store) -> None:
    pool = Pool(settings(workers=2))
    start(pool, store, fake("busy", seconds=60.0), fake("busy too", seconds=60.0))
    pids = [worker.process.pid for worker in pool.workers if worker]
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 2
    assert gone(*pids, within_s=0.5)


def test_workers_end_when_their_command_is_killed(store: Store) -> None:
    """A command that is killed cannot end its workers: they notice."""
    code = f"""
import sys, time
sys.path[:0] = [{str(HERE)!r}]
import sitecustomize
from pathlib import Path
from fake_stage import fake
from bench.config import LocalLauncher
from bench.runner.local_pool import Pool
from bench.store.store import Store
from bench.runner.worker import describe
store = Store(Path({str(store.root)!r}))
pool = Pool(LocalLauncher(name="local", workers=2, threads=1, stage_timeout_s=60.0, retries=1))
stages = [fake("busy", seconds=30.0), fake("quick")]
for stage in stages:
    pool.start(describe(stage, store), store.sidecar(stage, "log"))
while pool.free == 0:
    pool.reports(0.5)
print(*[worker.process.pid for worker in pool.workers], flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{Path(__file__).parent.parent.parent}"}
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert command.stdout is not None
    pids = [int(pid) for pid in command.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    command.kill()
    command.wait()
    assert gone(*pids)


def test_modules_are_imported_while_a_worker_is_idle(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ponderous.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{tmp_path}")
    pool = Pool(settings(), imports=["no_such_module", "ponderous"])
    try:
        assert run(pool, store, fake("first")).outcome == "done"
        until = time.monotonic() + PATIENCE_S
        while not (tmp_path / "imported").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert run(pool, store, fake("second")).outcome == "done"
    finally:
        pool.close()


# Order and size ------------------------------------------------------------------------------------------------------


def test_chain_lengths_by_hand() -> None:
    """a (3) -> b (2) -> d (1), a -> c (5): a waits for max(2 + 1, 5) + 3 = 8."""
    a = fake("a")
    b, c = fake("b", a), fake("c", a)
    d = fake("d", b)
    seconds = {a: 3.0, b: 2.0, c: 5.0, d: 1.0}
    assert chain_lengths([a, b, c, d], lambda stage: seconds[stage]) == {a: 8.0, b: 3.0, c: 5.0, d: 1.0}


def test_the_pool_has_a_worker_per_gpu_else_per_core_unless_a_number_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    automatic = LocalLauncher(name="local", workers=None, threads=1, stage_timeout_s=1.0, retries=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert (visible_gpus(), pool_size(automatic), pool_size(settings(workers=5))) == (["0", "3"], 2, 5)
    assert (pool_size(automatic, devices=2), pool_size(automatic, devices=4)) == (
        1,
        1,
    )  # trainings that take both
    for none in ("", "-1", " "):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus() == []
        assert 1 <= pool_size(automatic) <= (os.cpu_count() or 1)


def test_the_quota_of_a_container_is_read_in_both_layouts(tmp_path: Path) -> None:
    assert _cpu_quota(tmp_path) == math.inf
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert _cpu_quota(tmp_path) == math.inf
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert _cpu_quota(tmp_path) == 2.5
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cpu_quota(tmp_path) == math.inf
