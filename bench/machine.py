"""Facts about this machine: the program's folder and revision, cores, GPUs, and processes."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PACKAGE = Path(__file__).parent  # the folder `bench`
ROOT = PACKAGE.parent  # A process with this folder on its PYTHONPATH imports this `bench`.


@functools.cache
def revision() -> str:
    """The Git revision of the program: `1f0c2a9b7d31`, or `1f0c2a9b7d31-dirty` with changed files.

    Empty outside of a Git checkout.
    """
    describe = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            describe, capture_output=True, encoding="utf-8", check=False, errors="replace"
        ).stdout.strip()
    except OSError:  # Git is not installed.
        return ""


def cores() -> int:
    """The number of cores that this process may use, by its affinity and by the container's CPU limit."""
    allowed = len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cpu_quota(Path("/sys/fs/cgroup")))))


def _cpu_quota(root: Path) -> float:
    """The container's CPU limit in cores (cgroup v2, then v1); infinite where there is none."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
        )
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. torch is not loaded."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = [gpu.strip() for gpu in named.split(",")]
        # -1 ends the list.
        return gpus[: next((i for i, gpu in enumerate(gpus) if not gpu or gpu.startswith("-")), len(gpus))]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def python_path() -> str:
    """The PYTHONPATH of a child process that imports this `bench`."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def die_with_parent(parent: int) -> None:
    """End this process and its children once its parent is gone, because nothing would read its result."""
    end_unless(lambda: os.getppid() == parent)


def end_unless(should_run: Callable[[], bool]) -> None:
    """End this process and its group once `should_run()` is false. A thread checks it twice a second."""

    def watch() -> None:
        while should_run():
            time.sleep(0.5)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
