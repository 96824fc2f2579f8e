"""This machine: where the program lies, its cores and GPUs, and how a process ends with its parent."""

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
ROOT = PACKAGE.parent  # the folder that a process needs on its PYTHONPATH to import this `bench`


@functools.cache
def revision() -> str:
    """Git's revision of the program, `1f0c2a9b7d31` or `1f0c2a9b7d31-dirty` where files have changed since; empty outside of Git."""
    describe = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, encoding="utf-8", check=False, errors="replace").stdout.strip()
    except OSError:  # no git here
        return ""


def cores() -> int:
    """Cores that this process may use: its affinity, and a container's share of time where one is set."""
    allowed = len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cpu_quota(Path("/sys/fs/cgroup")))))


def _cpu_quota(root: Path) -> float:
    """Cores' worth of time that the container may use (cgroup v2, then v1); infinite where no limit is set."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without loading torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = [gpu.strip() for gpu in named.split(",")]
        return gpus[: next((i for i, gpu in enumerate(gpus) if not gpu or gpu.startswith("-")), len(gpus))]  # -1: none from here on
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def python_path() -> str:
    """PYTHONPATH of a process that is to import this `bench`."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def die_with_parent(parent: int) -> None:
    """A worker whose parent was killed ends itself and its children: nobody would take its result."""

    end_unless(lambda: os.getppid() == parent)


def end_unless(goes_on: Callable[[], bool]) -> None:
    def watch() -> None:
        while goes_on():
            time.sleep(0.5)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
