"""What a stage is given and what it returns: the interface that stages are written against.

Not in the worker's own module, which runs as `__main__` and would have classes and hooks of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import secrets
from bench.config import Accelerate
from bench.machine import end_unless, is_alive

# What an engine that outlives a stage tells its worker.
AFTER_STAGE: list[Callable[[], None]] = []  # called when a stage has ended
ENGINE_VERSIONS: dict[str, str] = {}  # of packages that run in processes of their own; recorded beside results

REASON_LENGTH = 400  # characters; the whole of an error is in the stage's log


class Progress:
    """Rows `{"step", "total", ...metrics}` of a running stage, appended to a file."""

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
    """A model server that the command has started."""

    base_url: str
    pid: int
    log: str


@dataclass(frozen=True)
class StageRun:
    """What a stage's function works with: where inputs lie, where to write, whom to tell."""

    inputs: Mapping[str, Path]
    out: Path
    progress: Progress
    key: str = ""
    work: Path | None = None  # `<key>.work/`: what outlives a failed attempt
    sharing: tuple[str, ...] = ()  # keys of the judge stages that share a budget
    server: ServerPlace | None = None  # where the command serves the model that this stage asks
    accelerate: Accelerate | None = None  # of a training: its devices and checkpoints
    earlier: tuple[Path, ...] = ()  # `work` of the same stage under keys that it had before


@dataclass(frozen=True)
class Outcome:
    """What a stage's function returns: counts for the plan and the lineage, and files that differ from run to run."""

    counts: Mapping[str, int]
    recorded_files: frozenset[str] = frozenset()


def reason(error: BaseException) -> str:
    """An error in one line, for tables and screens."""
    return secrets.excerpt(f"{type(error).__name__}: {error}", REASON_LENGTH)


def exit_with(worker: int) -> None:
    """End with a worker, also one that is gone already: for processes that its training has started, at whatever remove."""
    end_unless(lambda: is_alive(worker))


class OverBudget(RuntimeError):
    """A stage stopped because the next thing it pays for could cost more than is left; what it has paid for is kept."""
