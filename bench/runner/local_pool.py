"""Where stages run. A launcher takes stages whose inputs are done and tells what became of each.

`local`: a pool of long-lived worker processes on this machine. A dead worker is one lost stage and, by the caller, one retry.
`slurm` and `ray` have files of their own (slurm.py, ray_tasks.py, cluster_queue.py).
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
from bench.runner.worker import ANSWERS, IMPORTS, PARENT
from bench.store.stage_settings import Need

# Set before torch is imported: idle threads sleep (they would steal the other worker's core), nothing phones home.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "WANDB_MODE": "disabled",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",  # other packages open files and print without naming an encoding: the locale must not decide
}
# A shell that has run `accelerate launch` leaves these behind: they would change precision or sharding, unkeyed.
FOREIGN = ("ACCELERATE_", "FSDP_", "DEEPSPEED_", "MEGATRON_", "PARALLELISM_CONFIG_")
EXIT_WAIT_S = 5.0  # the longest that a worker may take to go once it has closed its pipe


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    answers: int
    buffer: bytes = b""
    key: str | None = None  # of the stage that it runs
    since: float = field(default_factory=time.monotonic)  # when it began that stage, or became idle


class Pool:
    """Long-lived worker processes, a stage at a time each. `imports`: modules that a worker loads while it has nothing to do.

    Each worker sees `devices` of the GPUs that this process sees; `share_gpus`: all of them.
    """

    def __init__(self, settings: LocalLauncher, imports: Sequence[str] = (), devices: int = 1, share_gpus: bool = False):
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
        if worker is None or not _write(worker, line):  # it may have died while it was idle: that costs no stage a try
            if worker is not None:
                self._remove_worker(slot)
            worker = self._spawn(slot)
            _write(worker, line)  # a process that dies at once is reported as a lost stage
        worker.key, worker.since = job["key"], time.monotonic()

    def _idle_slot(self) -> int:
        """The worker that has been idle for longest has most of its imports paid; an empty slot comes last."""
        idle = [(worker.since if worker else math.inf, slot) for slot, worker in enumerate(self.workers) if not (worker and worker.key)]
        return min(idle)[1]

    def _spawn(self, slot: int) -> _Worker:
        read, write = os.pipe()
        os.set_blocking(read, False)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(self.settings.threads)}
        environment |= {ANSWERS: str(write), PARENT: str(os.getpid()), IMPORTS: ",".join(self.imports)}
        environment["PYTHONPATH"] = python_path()
        if self.gpus:
            first = slot * self.devices
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[(first + i) % len(self.gpus)] for i in range(self.devices))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.runner.worker"],  # -P: not a package `bench` of the folder that one stands in
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write,),
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the command alone, which then ends its workers
        )
        os.close(write)
        worker = _Worker(process, read)
        self.workers[slot] = worker
        self.selector.register(read, selectors.EVENT_READ, slot)
        return worker

    def reports(self, timeout_s: float) -> list[StageReport]:
        found: list[StageReport] = []
        ended = {ready.data for ready, _ in self.selector.select(timeout_s) if self._read_answers(ready.data, found)}
        for slot, worker in enumerate(self.workers):
            if worker is None:
                continue
            if slot in ended or worker.process.poll() is not None:  # a child of the worker may hold its pipe open: ask the process too
                self._read_answers(slot, found)
                found += self._remove_worker(slot)
            elif worker.key and time.monotonic() - worker.since > self.settings.stage_timeout_s:
                limit = f"{self.settings.stage_timeout_s:g} s (hydra.launcher.stage_timeout_s)"
                found.append(StageReport(worker.key, "late", f"ran longer than {limit} and was ended"))
                worker.key = None
                self._end(worker)
                self._remove_worker(slot)
        return found

    def _read_answers(self, slot: int, found: list[StageReport]) -> bool:
        """Add the answers that a worker has written; True when it will write no more."""
        worker = self.workers[slot]
        assert worker is not None
        ended = False
        with contextlib.suppress(BlockingIOError):
            while data := os.read(worker.answers, 65536):
                worker.buffer += data
            ended = True
        *lines, worker.buffer = worker.buffer.split(b"\n")
        for line in lines:
            answer = json.loads(line)
            worker.key, worker.since = None, time.monotonic()
            outcome: Literal["done", "failed", "over_budget"] = "done" if answer["ok"] else "failed"
            found.append(StageReport(answer["key"], "over_budget" if answer.get("over_budget") else outcome, answer.get("error", "")))
        return ended

    def _remove_worker(self, slot: int) -> list[StageReport]:
        """Free the slot of a worker that has died or closed its pipe; its stage, if it had one, is lost."""
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
        self._end(worker)  # children that it left, which may hold memory of a GPU
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
        """End every worker at once; what they were building is swept away by the next run."""
        workers = [(slot, worker) for slot, worker in enumerate(self.workers) if worker is not None]
        for _, worker in workers:
            self._end(worker)
        for slot, _ in workers:
            self._remove_worker(slot)
        self.selector.close()


def _write(worker: _Worker, line: bytes) -> bool:
    """Whether the worker took the line."""
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(line)
        worker.process.stdin.flush()
    except OSError:
        return False
    return worker.process.poll() is None


def pool_size(settings: LocalLauncher | ClusterLauncher, devices: int = 1) -> int:
    """Stages at once: as many as were asked for, else one for each `devices` GPUs, else as many for the cores that this process may use."""
    if isinstance(settings, ClusterLauncher):
        return settings.max_jobs
    return settings.workers or max(1, (len(visible_gpus()) or cores()) // devices)
