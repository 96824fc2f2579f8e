"""A worker process: reads stages as JSON lines on standard input, runs them one after another, answers on a pipe.

Imports are paid once. A stage's own output (trainers' chatter, warnings, native libraries) goes to its log; progress goes to a
file that whoever shows it polls, so that a worker on another machine is followed in the same way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import plan
from bench.store import Source, Stage, Store

ANSWERS = "BENCH_ANSWERS_FD"


class Progress:
    """Rows `{"step", "total", ...metrics}` of a running stage, appended to a file."""

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)
        self._file = path.open("a", buffering=1)

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        self._file.write(json.dumps({"step": step, "total": total, **metrics}) + "\n")

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class StageRun:
    """What a stage's function works with: where inputs lie, where to write, whom to tell."""

    inputs: Mapping[str, Path]
    out: Path
    progress: Progress


@dataclass(frozen=True)
class Outcome:
    """What a stage's function returns: counts for the plan and the lineage, and files that differ from run to run."""

    counts: Mapping[str, int]
    recorded_files: frozenset[str] = frozenset()


def describe(stage: Stage, store: Store) -> dict[str, Any]:
    """A stage as the JSON that a worker takes: its inputs by key and place, with the digests they must have."""
    inputs = {}
    for role, source in stage.inputs.items():
        inputs[role] = {"path": str(store.folder(source)), "key": source.key, "digest": store.digest(source)}
    settings = type(stage.settings).__name__
    return {
        "kind": stage.kind,
        "key": stage.key,
        "settings_type": settings,
        "settings": stage.settings.model_dump(mode="json"),
        "inputs": inputs,
        "store": str(store.root),
    }


def run_stage(job: Mapping[str, Any]) -> None:
    """Run one described stage and commit it. Raises whatever the stage raises."""
    store = Store(Path(job["store"]))
    kind = next(c for c in plan.SETTINGS[job["kind"]] if c.__name__ == job["settings_type"])
    settings = kind.model_validate(job["settings"])
    sources = {role: _Input(Path(facts["path"]), facts["key"]) for role, facts in job["inputs"].items()}
    stage = plan.stage(job["kind"], settings, sources)  # type: ignore[arg-type]
    if stage.key != job["key"]:
        raise RuntimeError(f"this worker makes key {stage.key} of {job['kind']}/{job['key']}: it runs another version of bench")
    module = importlib.import_module(f"bench.stages.{stage.kind}")
    built = store.build_folder(stage)
    progress = Progress(store.beside(stage, "progress.jsonl"))
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        outcome: Outcome = module.run(settings, StageRun({role: s.path for role, s in sources.items()}, built, progress))
    except BaseException:
        import shutil

        shutil.rmtree(built, ignore_errors=True)
        raise
    finally:
        progress.close()
        if stage.kind in ("sft", "train"):
            _reset_libraries()
    store.commit(
        stage,
        built,
        counts=outcome.counts,
        timings={"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu},
        recorded=environment(),
        recorded_files=outcome.recorded_files,
        input_digests={role: facts["digest"] for role, facts in job["inputs"].items()},
    )


@dataclass(frozen=True)
class _Input(Source):
    """An input of a described stage: its key is given, not made of its content."""

    def __init__(self, path: Path, key: str):
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "digest", key)

    @property
    def key(self) -> str:
        return self.digest


def _reset_libraries() -> None:
    """Trainers leave state behind in Accelerate's singletons; the next stage starts from a clean one."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


_ENVIRONMENT: dict[str, Any] = {}


def environment() -> dict[str, Any]:
    """Code revision, versions, device: recorded beside results, not part of their identity."""
    if not _ENVIRONMENT:
        import platform
        import subprocess
        from importlib import metadata

        versions = {}
        for package in ("torch", "transformers", "trl", "accelerate", "peft", "numpy", "scipy"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(package)
        git = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
        )
        device = "cpu"
        if "torch" in sys.modules:
            import torch

            device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        _ENVIRONMENT.update(
            revision=git.stdout.strip() or "unknown",
            packages=versions,
            python=platform.python_version(),
            machine=platform.machine(),
            device=device,
            threads=int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        )
    return _ENVIRONMENT


def _die_with_parent() -> None:
    """A worker whose parent was killed ends itself: nobody would take its result."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    _die_with_parent()
    answers = os.fdopen(int(os.environ[ANSWERS]), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        answer: dict[str, Any] = {"key": job["key"], "ok": True}
        try:
            run_stage(job)
        except Exception as error:  # one stage's failure is one failed row; its reason is kept
            traceback.print_exc()
            answer |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
