"""What tests of launchers share: a real SLURM and a real Ray where they can be had, and a scheduler of this process."""

from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "fake_stages"))

from fake_stage import HERE, Fake

from bench.config import ClusterLauncher, RayLauncher, Resources, SlurmLauncher, SlurmResources
from bench.runner.cluster_queue import Ending, Refused
from bench.runner.node_job import NodeJob
from bench.store import stage_settings
from bench.store.store import Store

SCRIPT = Path(__file__).parent / "slurm.sh"
OWN = {
    "threads": 1,
    "stage_timeout_s": 60.0,
    "retries": 1,
    "max_jobs": 8,
    "queue_cpu": True,
    "here_workers": 1,
}


@pytest.fixture(autouse=True)
def _known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_settings.SETTINGS, "fake", (Fake,))
    monkeypatch.setitem(stage_settings.VERSIONS, "fake", 1)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{Path(__file__).parent.parent.parent.parent}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store" / "fake").mkdir(parents=True)
    return Store(tmp_path / "store")


def cluster_settings(**changes: object) -> ClusterLauncher:
    given = Resources(gpus=0, cpus=1, mem_gb=None, time_min=5)
    return ClusterLauncher(**{**OWN, "env": {}, "gpu": given, "cpu": given, "stages": {}, **changes})  # type: ignore[arg-type]


def slurm_settings(**changes: object) -> SlurmLauncher:
    given = SlurmResources(gpus=0, cpus=1, mem_gb=None, time_min=5, partition=None, account=None)
    own = {
        "requeues": 1,
        "signal_delay_s": 20,
        "poll_s": 1.0,
        "setup": (),
        "sbatch": {},
        "env": {},
        "gpu": given,
        "cpu": given,
    }
    return SlurmLauncher(name="slurm", stages={}, **{**OWN, **own, **changes})  # type: ignore[arg-type]


def ray_settings(address: str | None, **changes: object) -> RayLauncher:
    given = Resources(gpus=0, cpus=1, mem_gb=None, time_min=5)
    own = {"env": {}, "gpu": given, "cpu": given, "stages": {}, "runtime_env": {}}
    return RayLauncher(name="ray", address=address, **{**OWN, **own, **changes})  # type: ignore[arg-type]


@dataclass
class Desk:
    """A scheduler of this process: a job is a process of its own, started at once. `most`: so many, and the rest is refused."""

    folder: Path
    most: int = 99
    name: str = "desk"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    waves: list[list[str]] = field(default_factory=list)  # labels of what was handed in together

    def submit(self, jobs: Sequence[NodeJob]) -> list[str]:
        if len(self.processes) + len(jobs) > self.most:
            raise Refused("the desk is full")
        self.waves.append([job.job["settings"]["name"] for job in jobs])
        return [self._start(job) for job in jobs]

    def _start(self, job: NodeJob) -> str:
        path = self.folder / f"{job.attempt}.pkl"
        path.write_bytes(pickle.dumps(job))
        process = subprocess.Popen(
            [sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))()"]
        )
        self.processes[str(process.pid)] = process
        return str(process.pid)

    def ended(self, ids: Collection[str]) -> dict[str, Ending]:
        codes = {job_id: self.processes[job_id].poll() for job_id in ids if job_id in self.processes}
        return {job_id: Ending(f"ended with {code}") for job_id, code in codes.items() if code is not None}

    def is_alive(self, job_id: str) -> bool:
        return Path(f"/proc/{job_id}").exists()

    def cancel(self, ids: Sequence[str]) -> None:
        for job_id in ids:
            self.processes[job_id].kill()
            self.processes[job_id].wait()

    def remove_files(self, job_id: str) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a real SLURM of one node with two devices that stand for GPUs; SLURM_CONF names it."""
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed: pip install -c constraints.txt -e '.[slurm]'")
    if os.getuid() != 0:
        pytest.skip("a SLURM of our own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    up = subprocess.run([str(SCRIPT), "up", str(folder)], capture_output=True, text=True, timeout=600)
    try:
        if up.returncode:
            pytest.skip(
                f"no SLURM could be brought up here (tests/runner/clusters/slurm.sh): {(up.stdout + up.stderr)[-500:]}"
            )
        yield folder
    finally:
        subprocess.run([str(SCRIPT), "down", str(folder)], timeout=60)
        del os.environ["SLURM_CONF"]


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Ray of one node with two cores and, so it believes, two GPUs."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install -c constraints.txt -e '.[ray]'")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        "--num-gpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    line = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        *words,
        f"--object-store-memory={100 * 2**20}",
    ]
    log = tmp_path_factory.mktemp("ray") / "log"
    os.environ["RAY_AUTH_MODE"] = (
        "disabled"  # a token that another Ray of this user has left would not be this one's
    )
    with log.open("wb") as file:
        head = subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while (
            "Ray runtime started" not in log.read_text() and head.poll() is None and time.monotonic() < until
        ):
            time.sleep(0.5)
        if "Ray runtime started" not in log.read_text():
            pytest.skip(f"no Ray could be started here: {log.read_text()[-500:]}")
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)
        del os.environ["RAY_AUTH_MODE"]
