"""Where stages run. A launcher takes stages whose inputs are done and tells what became of each.

`local`: a pool of long-lived worker processes on this machine. A dead worker is one lost stage and, by the caller, one retry.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from bench.config import LocalLauncher
from bench.worker import ANSWERS

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
}


@dataclass(frozen=True)
class Report:
    """What became of a stage: `lost` when its worker died, so that trying again makes sense."""

    key: str
    outcome: Literal["done", "failed", "lost", "late"]
    error: str = ""


class Launcher(Protocol):
    @property
    def free(self) -> int:
        """How many more stages it can take now."""
        ...

    def start(self, job: Mapping[str, Any], log: Path) -> None: ...

    def reports(self, timeout_s: float) -> Iterator[Report]:
        """What became of stages since the last call; waits up to `timeout_s` for the first."""
        ...

    def close(self) -> None: ...


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    answers: int
    buffer: bytes = b""
    key: str | None = None
    log: Path | None = None
    since: float = field(default_factory=time.monotonic)


class Pool:
    """Long-lived worker processes, a stage at a time each."""

    def __init__(self, settings: LocalLauncher):
        self.settings = settings
        self.gpus = visible_gpus()
        self.size = pool_size(settings)
        self.workers: list[_Worker | None] = [None] * self.size
        self.selector = selectors.DefaultSelector()

    @property
    def free(self) -> int:
        return sum(worker is None or worker.key is None for worker in self.workers)

    def start(self, job: Mapping[str, Any], log: Path) -> None:
        # A worker that has run before has its imports paid: take it first.
        slots = sorted(range(self.size), key=lambda i: self.workers[i] is None)
        slot = next(i for i in slots if (w := self.workers[i]) is None or w.key is None)
        worker = self.workers[slot] or self._spawn(slot)
        worker.key, worker.log, worker.since = job["key"], log, time.monotonic()
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps({**job, "log": str(log)}).encode() + b"\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died while idle: its closed pipe is reported as a lost stage

    def _spawn(self, slot: int) -> _Worker:
        read, write = os.pipe()
        environment = {**os.environ, **WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(self.settings.threads), ANSWERS: str(write)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
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

    def reports(self, timeout_s: float) -> Iterator[Report]:
        for ready, _ in self.selector.select(timeout_s):
            slot = ready.data
            worker = self.workers[slot]
            assert worker is not None
            data = os.read(worker.answers, 65536)
            if not data:
                yield from self._bury(slot)
                continue
            worker.buffer += data
            *lines, worker.buffer = worker.buffer.split(b"\n")
            for line in lines:
                answer = json.loads(line)
                worker.key = None
                yield Report(answer["key"], "done" if answer["ok"] else "failed", answer.get("error", ""))
        for slot, worker in enumerate(self.workers):
            if worker and worker.key and time.monotonic() - worker.since > self.settings.stage_timeout_s:
                key, worker.key = worker.key, None
                self._end(worker)
                list(self._bury(slot))
                yield Report(key, "late", f"ran longer than stage_timeout_s={self.settings.stage_timeout_s:g} s and was ended")

    def _bury(self, slot: int) -> Iterator[Report]:
        worker = self.workers[slot]
        assert worker is not None
        self.selector.unregister(worker.answers)
        os.close(worker.answers)
        code = worker.process.wait()
        self.workers[slot] = None
        if worker.key is not None:
            yield Report(worker.key, "lost", f"its worker process died ({_exit_words(code)})")

    @staticmethod
    def _end(worker: _Worker) -> None:
        try:
            os.killpg(worker.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """End every worker at once; what they were building is swept away by the next run."""
        for slot, worker in enumerate(self.workers):
            if worker is not None:
                self._end(worker)
                list(self._bury(slot))
        self.selector.close()


def pool_size(settings: LocalLauncher) -> int:
    """As many workers as were asked for, else one a GPU, else one a core that this process may use."""
    cores = len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count() or 1
    return settings.workers or len(visible_gpus()) or cores


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without loading torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in named.split(",") if gpu.strip()]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _exit_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
