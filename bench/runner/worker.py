"""A worker process: it reads stages as JSON lines on standard input, runs each, and reports on a pipe.

Heavy modules are imported once, where possible while the worker is idle. The output of a stage (trainers,
warnings, native libraries) goes to its log. Its progress goes to a file that the command polls, so that a
worker on another machine is followed in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import gc
import importlib
import json
import os
import select
import shutil
import stat
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import secrets
from bench.config import Accelerate
from bench.machine import die_with_parent, revision
from bench.store import stage_settings
from bench.store.keys import Source, Stage, tree_stamp
from bench.store.stage_run import (
    AFTER_STAGE,
    ENGINE_VERSIONS,
    Outcome,
    OverBudget,
    Progress,
    ServerPlace,
    StageRun,
    reason,
)
from bench.store.store import Store

# Environment variables that the launcher sets: the pipe to report on, the parent's process id,
# modules to import when idle.
REPORTS, PARENT, IMPORTS = "BENCH_REPORTS_FD", "BENCH_PARENT_PID", "BENCH_IMPORTS"

# Modules by kind of stage that take seconds to import.
HEAVY_IMPORTS = {
    "sft": ("bench.world.models", "trl.trainer.sft_trainer"),
    "sample": ("bench.engines.hf",),
    "logps": ("bench.engines.hf",),
    "generate": ("bench.engines.hf",),
    "tasks": ("bench.engines.hf",),
    "train": ("bench.training.trainers", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer"),
}


def describe(stage: Stage, store: Store) -> dict[str, Any]:
    """A stage as the JSON job that a worker takes.

    It holds the settings, and the path, key and expected digest of each input.
    """
    inputs = {}
    for role, source in stage.inputs.items():
        inputs[role] = {"path": str(store.folder(source)), "key": source.key, "digest": store.digest(source)}
        if isinstance(source, Source):
            inputs[role]["stamp"] = source.stamp
    settings = type(stage.settings).__name__
    return {
        "kind": stage.kind,
        "key": stage.key,
        "needs": stage_settings.needs(stage),
        "settings_type": settings,
        "settings": stage.settings.model_dump(mode="json"),
        "inputs": inputs,
        "store": str(store.root),
    }


def _check_inputs(job: Mapping[str, Any], store: Store) -> None:
    """Check the digests of the input stages. Raises RuntimeError for one that differs from the plan."""
    for role, facts in job["inputs"].items():
        if "stamp" in facts:
            continue
        try:
            manifest = store.verified_manifest(Path(facts["path"]))
            if manifest.evicted:
                raise ValueError(f"the weights in {facts['path']} were deleted while the sweep ran (keep=)")
        except ValueError as error:
            raise RuntimeError(
                f"its input {role} cannot be used: {error}. Run the same command again to make it."
            ) from error
        if manifest.digest != facts["digest"]:
            changed = f"its input {role} ({facts['path']}) changed on disk while the sweep ran"
            raise RuntimeError(f"{changed}. Run the same command again to continue.")


def _check_sources(job: Mapping[str, Any]) -> None:
    """Raise RuntimeError where a file of the user has changed since the command made its key."""
    for role, facts in job["inputs"].items():
        if facts.get("stamp") and tree_stamp(Path(facts["path"])) != facts["stamp"]:
            changed = f"its input {role} ({facts['path']}) was changed while the sweep ran"
            raise RuntimeError(f"{changed}. Run the same command again to read the new content.")


def run_stage(job: Mapping[str, Any]) -> None:
    """Run the stage of a job and commit it to the store. Errors of the stage are raised."""
    store = Store(Path(job["store"]))
    kind = next(c for c in stage_settings.SETTINGS[job["kind"]] if c.__name__ == job["settings_type"])
    settings = kind.model_validate(job["settings"])
    sources = {role: _Input(Path(facts["path"]), facts["key"]) for role, facts in job["inputs"].items()}
    stage = stage_settings.stage(job["kind"], settings, sources)  # type: ignore[arg-type]
    if stage.key != job["key"]:
        problem = f"the worker computes key {stage.key} for stage {job['kind']}/{job['key']}"
        raise RuntimeError(f"{problem}: it runs another version of bench than the command")
    begun = time.perf_counter()
    for name in HEAVY_IMPORTS.get(stage.kind, ()):  # They are no part of the stage's time.
        importlib.import_module(name)
    module = importlib.import_module(f"bench.stages.{stage.kind}")
    import_s = time.perf_counter() - begun
    built = store.build_folder(stage)
    try:
        progress = Progress(store.sidecar(stage, "progress.jsonl"))
    except OSError:
        shutil.rmtree(built, ignore_errors=True)
        raise
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        _check_inputs(job, store)
        _check_sources(job)
        paths = {role: source.path for role, source in sources.items()}
        server = ServerPlace(**job["server"]) if job.get("server") else None
        work, sharing = store.sidecar(stage, "work"), tuple(job.get("sharing", ()))
        accelerate = Accelerate.model_validate(job["accelerate"]) if job.get("accelerate") else None
        earlier = tuple(
            store.sidecar(before, "work") for before in getattr(module, "earlier", lambda _: ())(stage)
        )
        outcome: Outcome = module.run(
            settings, StageRun(paths, built, progress, stage.key, work, sharing, server, accelerate, earlier)
        )
        _check_sources(job)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    finally:
        progress.close()
    store.commit(
        stage,
        built,
        counts=outcome.counts,
        timings={
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "import_s": import_s,
        },
        recorded=environment(),
        recorded_files=outcome.recorded_files,
        input_digests={role: facts["digest"] for role, facts in job["inputs"].items()},
    )


@dataclass(frozen=True)
class _Input(Source):
    """An input of a job. Its key is given, not computed from its content."""

    def __init__(self, path: Path, key: str):
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "digest", key)

    @property
    def key(self) -> str:
        return self.digest


def release_memory() -> None:
    """Free a stage's models and reset Accelerate's singletons, so that the next stage starts clean.

    A fused head puts a model into a reference cycle, which only the garbage collector frees.
    """
    for hook in AFTER_STAGE:
        hook()
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    gc.collect()
    gc.freeze()  # Half a million objects of modules are alive now; each collection of them takes 0.24 s.
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@functools.cache
def _versions() -> dict[str, Any]:
    import platform
    from importlib import metadata

    packages = {}
    for package in ("torch", "transformers", "trl", "accelerate", "peft", "numpy", "scipy", "lm_eval"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    return {
        "revision": revision() or "unknown",
        "packages": packages,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
    }


def environment() -> dict[str, Any]:
    """Code revision, package versions and device. They are recorded in the manifest, but in no key."""
    device = "cpu"
    if "torch" in sys.modules:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    facts = {**_versions(), "device": device}
    return facts | {"packages": facts["packages"] | ENGINE_VERSIONS}


def _lines() -> Iterator[str]:
    """Yield the lines of standard input, one job each. While none waits, import the modules of later jobs."""
    modules = iter([name for name in os.environ.get(IMPORTS, "").split(",") if name])
    first = True
    while True:
        # The first job is on its way when a worker starts. The reader's buffer is always empty here, because
        # the next job comes only when the last is done.
        if (
            not first
            and not select.select([sys.stdin], [], [], 0.2)[0]
            and (module := next(modules, None)) is not None
        ):
            with contextlib.suppress(Exception):  # The stage that needs it will raise the error.
                importlib.import_module(module)
            continue
        first = False
        if not (line := sys.stdin.readline()):
            return
        yield line


def _mode(path: str) -> int:
    """The mode bits of a path, of a link itself; 0 where there is none."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _log_to(path: str) -> None:
    """Send all further output of this process to a stage's log. Raises OSError, also for a link or a pipe."""
    if stat.S_ISFIFO(_mode(path)):  # To open a pipe would wait for its reader.
        raise OSError(errno.EINVAL, "expected a file, got a pipe: move it away", path)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable()  # A crash in native code then writes its trace to the log.


def main() -> None:
    """Run jobs from standard input until it ends, and write one JSON report per job
    to the launcher's pipe."""
    die_with_parent(int(os.environ[PARENT]))
    secrets.guard_streams()
    reports = os.fdopen(int(os.environ[REPORTS]), "w", buffering=1, encoding="utf-8")
    for line in _lines():
        job = json.loads(line)
        report: dict[str, Any] = {"key": job["key"], "ok": True}
        try:
            _log_to(job["log"])
            run_stage(job)
        except (Exception, SystemExit) as error:  # A failed stage does not end the worker.
            with contextlib.suppress(OSError):  # The disk may be full.
                traceback.print_exc()
            report |= {"ok": False, "error": reason(error), "over_budget": isinstance(error, OverBudget)}
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        with contextlib.suppress(OSError):
            secrets.clean_file(Path(job["log"]))  # Native libraries and child processes write there too.
        reports.write(json.dumps(report) + "\n")
        if job["kind"] in HEAVY_IMPORTS:
            release_memory()


if __name__ == "__main__":
    main()
