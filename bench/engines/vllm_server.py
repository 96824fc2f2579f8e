"""A model server for the length of a command: vLLM's OpenAI-compatible one on a free loopback port.

The command starts it before the first stage that asks it and stops it at its end, after Ctrl-C too. A small process stands between:
should the command be killed outright, that one sees it and ends the server. A stage waits until the server answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import secrets
from bench.machine import free_port, is_alive, python_path
from bench.store.keys import Stage, hash_key
from bench.store.stage_run import ServerPlace
from bench.store.stage_settings import LanguageJudgeSettings

START_S = 1200.0  # a large model is read from a slow disk
STOP_S = 15.0

HAS_GPU = Path("/dev/nvidia0").exists()

# For vLLM on a machine without a GPU: without the first it tries to reserve nearly all memory, the second spares a compiler.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | ({} if HAS_GPU else CPU_ENVIRONMENT)


def vllm_command(folder: Path, name: str, dtype: str, port: int, more: Sequence[str]) -> list[str]:
    """The module, not the `vllm` script, which builds of vLLM for CPUs lack."""
    words = ["--model", str(folder), "--served-model-name", name, "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    words += [] if HAS_GPU else ["--enforce-eager"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *more]


class Servers:
    """The servers of a command, each started when it is first asked for."""

    def __init__(self, logs: Path):
        self.logs = logs
        self.running: dict[str, tuple[subprocess.Popen[bytes], ServerPlace]] = {}

    def place(self, stage: Stage) -> dict[str, Any] | None:
        """Where a stage's model is served; None for a stage that asks no server of ours. Does not wait until it answers."""
        settings = stage.settings
        if not isinstance(settings, LanguageJudgeSettings) or settings.asking is None or settings.asking.server != "vllm":
            return None
        source = stage.inputs["model"]
        folder = source.path  # type: ignore[union-attr]  # a folder of the user's
        which = hash_key([source.key, settings.dtype, settings.server_args])
        if which not in self.running or self.running[which][0].poll() is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
            port, log = free_port(), self.logs / f"{which}.server.log"
            command = vllm_command(folder, folder.name, settings.dtype, port, settings.server_args)
            process = start(command, log)
            self.running[which] = process, ServerPlace(f"http://127.0.0.1:{port}/v1", process.pid, str(log))
        return dataclasses.asdict(self.running[which][1])

    def close(self) -> None:
        for process, _ in self.running.values():
            stop(process)
        self.running.clear()


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, under a process that ends it when this one is gone."""
    environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": python_path()}
    out, _ = secrets.pipe_into(log)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.engines.vllm_server", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(out)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, then end it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_ready(place: ServerPlace, timeout_s: float = START_S) -> None:
    """Until the server lists its models. Raises RuntimeError when it has ended, or takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{place.base_url}/models", timeout=5) as answer:
            if answer.status == 200:
                return
        if not is_alive(place.pid):
            log = Path(place.log)
            lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] if log.exists() else []
            last = lines[-1][:200] if lines else "it said nothing"
            raise RuntimeError(f"the judge's server ended while it was starting: {last} (log: {log})")
        time.sleep(0.25)
    raise RuntimeError(f"the judge's server did not answer within {timeout_s:g} s (log: {place.log})")


def main() -> None:
    """Run a command for as long as the process `argv[1]` lives; ends with the whole group."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        child.terminate()
        time.sleep(STOP_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    sys.exit(child.wait())


if __name__ == "__main__":
    main()
