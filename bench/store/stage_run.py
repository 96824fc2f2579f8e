"""The interface of a stage's function: its argument `StageRun`, its result `Outcome`, its `Progress`.

These are not in worker.py, because a worker runs that file as `__main__`:
classes and hooks would then exist twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import secrets
from bench.config import Accelerate
from bench.machine import end_unless, is_alive

# Registered by engines that stay loaded from one stage to the next.
AFTER_STAGE: list[Callable[[], None]] = []  # Hooks that the worker calls after each stage.
# Versions of packages that run in processes of their own, by package. They are recorded in the manifest.
ENGINE_VERSIONS: dict[str, str] = {}

REASON_LENGTH = 400  # characters; the stage's log has the whole error


class Progress:
    """Appends rows `{"step", "total", ...metrics}` of a running stage to a file."""

    def __init__(self, path: Path):
        self.path = path
        path.unlink(missing_ok=True)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        self._file.write(json.dumps({"step": step, "total": total, **metrics}) + "\n")

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class ServerPlace:
    """Address, process id and log file of a model server that the command started."""

    base_url: str
    pid: int
    log: str


@dataclass(frozen=True)
class StageRun:
    """The argument of a stage's function: input paths, output folder, progress, facts about the attempt."""

    inputs: Mapping[str, Path]
    out: Path
    progress: Progress
    key: str = ""
    work: Path | None = None  # `<key>.work/`, kept when an attempt fails
    sharing: tuple[str, ...] = ()  # Keys of the judge stages that share one budget.
    server: ServerPlace | None = None  # The server of the judge model, where the command runs one.
    accelerate: Accelerate | None = None  # Devices and checkpoints of a training stage.
    earlier: tuple[Path, ...] = ()  # `work` folders of this stage under its earlier keys.


@dataclass(frozen=True)
class Outcome:
    """The result of a stage's function.

    `counts` go into the manifest. `recorded_files` differ from run to run (speeds) and are not
    in the digest.
    """

    counts: Mapping[str, int]
    recorded_files: frozenset[str] = frozenset()


def reason(error: BaseException) -> str:
    """An error as one line of at most REASON_LENGTH characters, without secrets, for tables and screens."""
    return secrets.excerpt(f"{type(error).__name__}: {error}", REASON_LENGTH)


def exit_with(worker: int) -> None:
    """End this process as soon as the worker `worker` (a process id) is gone.

    For the processes of a training.
    """
    end_unless(lambda: is_alive(worker))


class OverBudget(RuntimeError):
    """A judge stage stopped because its next request could exceed the budget. Paid replies are kept."""
