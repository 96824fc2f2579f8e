"""The `local` launcher: a pool of long-lived worker processes on this machine.

When a worker dies, its stage is reported as lost; the scheduler may try it again. The launchers `slurm` and
`ray` are in slurm.py, ray_tasks.py and cluster_queue.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.config import ClusterLauncher, LocalLauncher
from bench.machine import cores, python_path, visible_gpus
from bench.runner.launcher import StageReport
from bench.runner.worker import IMPORTS, PARENT, REPORTS
from bench.store.stage_settings import Need

# Set before torch is imported. Idle threads sleep instead of taking another worker's core; telemetry is off.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "WANDB_MODE": "disabled",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",  # Other packages name no encoding when they open files; the locale must not decide it.
}
# Variables that `accelerate launch` sets. Workers must not inherit them: they change precision or sharding,
# and are in no key.
FOREIGN = ("ACCELERATE_", "FSDP_", "DEEPSPEED_", "MEGATRON_", "PARALLELISM_CONFIG_")
EXIT_WAIT_S = 5.0  # longest wait for the exit of a worker that has closed its pipe


@dataclass
class _Worker:
    """A worker process, the pipe that it reports on, and the stage that it runs."""

    process: subprocess.Popen[bytes]
    answers: int
    buffer: bytes = b""
    key: str | None = None  # key of the stage that it runs
    since: float = field(default_factory=time.monotonic)  # when it began that stage, or became idle


class Pool:
    """Long-lived worker processes; each runs one stage at a time.

    `imports`: modules that an idle worker loads. Each worker sees `devices` of the GPUs that this process
    sees, or with `share_gpus` all of them.
    """

    def __init__(
        self, settings: LocalLauncher, imports: Sequence[str] = (), devices: int = 1, share_gpus: bool = False
    ):
        self.settings = settings
        self.devices = devices  # GPUs that a worker is given
        self.imports = imports
        self.gpus = [] if share_gpus else visible_gpus()
        self.workers: list[_Worker | None] = [None] * pool_size(settings, devices)
        self.selector = selectors.DefaultSelector()

    @property
    def free(self) -> int:
        return sum(worker is None or worker.key is None for worker in self.workers)

    def can_take(self, needs: Need) -> bool:
        return self.free > 0

    def start(self, job: Mapping[str, Any], log: Path) -> None:
        slot = self._idle_slot()
        line = json.dumps({**job, "log": str(log)}).encode() + b"\n"
        worker = self.workers[slot]
        # It may have died while idle. That is no attempt at a stage.
        if worker is None or not _write(worker, line):
            if worker is not None:
                self._remove_worker(slot)
            worker = self._spawn(slot)
            _write(worker, line)  # If this process dies at once, the stage is reported as lost.
        worker.key, worker.since = job["key"], time.monotonic()

    def _idle_slot(self) -> int:
        """The slot of the worker that has been idle longest, because it has loaded most modules.

        An empty slot is last.
        """
        idle = [
            (worker.since if worker else math.inf, slot)
            for slot, worker in enumerate(self.workers)
            if not (worker and worker.key)
        ]
        return min(idle)[1]

    def _spawn(self, slot: int) -> _Worker:
        read, write = os.pipe()
        os.set_blocking(read, False)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(self.settings.threads)}
        environment |= {REPORTS: str(write), PARENT: str(os.getpid()), IMPORTS: ",".join(self.imports)}
        environment["PYTHONPATH"] = python_path()
        if self.gpus:
            first = slot * self.devices
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                self.gpus[(first + i) % len(self.gpus)] for i in range(self.devices)
            )
        process = subprocess.Popen(
            # -P: ignore a package `bench` in the working folder.
            [sys.executable, "-P", "-m", "bench.runner.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write,),
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only the command, which ends its workers.
        )
        os.close(write)
        worker = _Worker(process, read)
        self.workers[slot] = worker
        self.selector.register(read, selectors.EVENT_READ, slot)
        return worker

    def reports(self, timeout_s: float) -> list[StageReport]:
        reports: list[StageReport] = []
        ended = {
            ready.data
            for ready, _ in self.selector.select(timeout_s)
            if self._read_answers(ready.data, reports)
        }
        for slot, worker in enumerate(self.workers):
            if worker is None:
                continue
            # A child of the worker may hold the pipe open, so check the process too.
            if slot in ended or worker.process.poll() is not None:
                self._read_answers(slot, reports)
                reports += self._remove_worker(slot)
            elif worker.key and time.monotonic() - worker.since > self.settings.stage_timeout_s:
                limit = f"{self.settings.stage_timeout_s:g} s"
                reports.append(
                    StageReport(
                        worker.key,
                        "late",
                        f"took longer than {limit} and was stopped: raise hydra.launcher.stage_timeout_s",
                    )
                )
                worker.key = None
                self._end(worker)
                self._remove_worker(slot)
        return reports

    def _read_answers(self, slot: int, reports: list[StageReport]) -> bool:
        """Append the reports that a worker has written. True when it has closed its pipe."""
        worker = self.workers[slot]
        assert worker is not None
        ended = False
        with contextlib.suppress(BlockingIOError):
            while data := os.read(worker.answers, 65536):
                worker.buffer += data
            ended = True
        *lines, worker.buffer = worker.buffer.split(b"\n")
        for line in lines:
            report = json.loads(line)
            worker.key, worker.since = None, time.monotonic()
            outcome: Literal["done", "failed", "over_budget"] = "done" if report["ok"] else "failed"
            reports.append(
                StageReport(
                    report["key"],
                    "over_budget" if report.get("over_budget") else outcome,
                    report.get("error", ""),
                )
            )
        return ended

    def _remove_worker(self, slot: int) -> list[StageReport]:
        """Free the slot of a worker that has died or closed its pipe.

        Returns a `lost` report for its stage.
        """
        worker = self.workers[slot]
        assert worker is not None
        self.workers[slot] = None
        self.selector.unregister(worker.answers)
        os.close(worker.answers)
        try:
            code = worker.process.wait(EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self._end(worker)
            code = worker.process.wait()
        self._end(worker)  # Its children may still hold GPU memory.
        assert worker.process.stdin is not None
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return [StageReport(worker.key, "lost", f"its worker process died ({how})")] if worker.key else []

    @staticmethod
    def _end(worker: _Worker) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill every worker. The next command removes their build folders."""
        workers = [(slot, worker) for slot, worker in enumerate(self.workers) if worker is not None]
        for _, worker in workers:
            self._end(worker)
        for slot, _ in workers:
            self._remove_worker(slot)
        self.selector.close()


def _write(worker: _Worker, line: bytes) -> bool:
    """Write a line to a worker. Returns whether the worker is alive and took it."""
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(line)
        worker.process.stdin.flush()
    except OSError:
        return False
    return worker.process.poll() is None


def pool_size(settings: LocalLauncher | ClusterLauncher, devices: int = 1) -> int:
    """The number of stages that run at once.

    That is the configured number, else one for each `devices` GPUs, else one for each `devices` cores.
    """
    if isinstance(settings, ClusterLauncher):
        return settings.max_jobs
    return settings.workers or max(1, (len(visible_gpus()) or cores()) // devices)
