"""The real smoke sweep through a real SLURM and a real Ray, with death on the way: the table of an undisturbed run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tiny import Ran, bench, command_line, environment, smoke, smoke_cells

from bench.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SMALL = ("hydra.launcher.gpu.gpus=0", "hydra.launcher.gpu.cpus=1", "hydra.launcher.gpu.time_min=30")


def started(*words: str, results: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = command_line(*words, results=results)
    return subprocess.Popen(
        line, text=True, env=environment(), cwd=results.parent, start_new_session=True, **pipes
    )  # type: ignore[call-overload]


def wait_for(reached: Callable[[], object], command: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 900
    while not reached():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def builders(results: Path, kind: str) -> list[int]:
    """Processes that build a stage of a kind now."""
    pids = [int(path.name.split("-")[-2]) for path in results.glob(f"store/{kind}/*.build-*")]
    return [pid for pid in pids if psutil.pid_exists(pid)]


def kill_a_worker_in_the_middle(words: tuple[str, ...], results: Path) -> None:
    """SIGKILL for a worker that trains a policy; then the sweep to its end."""
    command = started(*words, results=results)
    wait_for(lambda: builders(results, "train"), command)
    os.kill(builders(results, "train")[0], signal.SIGKILL)
    out, err = command.communicate(timeout=3000)
    assert command.returncode == 0, err
    assert re.search(
        r"train .*: its worker process died \(signal SIGKILL\) \(job .* on .*\); the stage runs again", err
    )
    undisturbed = smoke()
    assert Ran(results, 0, out, err, 0).table()["table.csv"] == undisturbed.table()["table.csv"]
    stores = Store(results / "store"), undisturbed.store
    for stage in {stage for cell in smoke_cells() for stage in cell.stages}:
        assert stores[0].digest(stage) == stores[1].digest(stage) is not None, stage.label
    assert not list(results.glob("store/*/*.build-*"))
    assert not list(results.glob("store/*/*.job.json"))


def test_smoke_on_slurm(slurm: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = ("+sweep=smoke", "hydra/launcher=slurm", "hydra.launcher.poll_s=2", *SMALL)

    command = started(
        *words, results=results
    )  # Ctrl-C while a job runs: it is cancelled, and the status says so
    wait_for(lambda: builders(results, "sft"), command)
    status = bench("+sweep=smoke", "do=status", results=results).out
    assert re.search(r"running .* job \d+ on", " ".join(status.split()))
    os.killpg(command.pid, signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Traceback" not in err
    until = time.monotonic() + 30
    queue = ["squeue", "--noheader", "--array"]
    while (
        left := subprocess.run(queue, capture_output=True, text=True, check=True).stdout
    ) and time.monotonic() < until:
        time.sleep(0.5)
    assert left == ""
    status = bench("+sweep=smoke", "do=status", results=results).out
    assert "5 interrupted" in status

    kill_a_worker_in_the_middle(words, results)


def test_smoke_on_ray(ray_address: str, tmp_path: Path) -> None:
    words = ("+sweep=smoke", "hydra/launcher=ray", f"hydra.launcher.address={ray_address}", *SMALL)
    kill_a_worker_in_the_middle(words, tmp_path / "results")
