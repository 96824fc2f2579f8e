"""Model servers for judges: vLLM's OpenAI-compatible server, on a free loopback port, while a command runs.

The command starts a server before the first stage that needs it and stops it at its end, also after Ctrl-C. A
small process stands between the command and the server: if the command is killed, it stops the server. A
stage waits until the server is ready.
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

START_S = 1200.0  # Long enough to read a large model from a slow disk.
STOP_S = 15.0

HAS_GPU = Path("/dev/nvidia0").exists()

# For vLLM on a machine without a GPU. Without the first variable vLLM reserves nearly all memory; the second
# one avoids a compiler.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | (
    {} if HAS_GPU else CPU_ENVIRONMENT
)


def vllm_command(folder: Path, name: str, dtype: str, port: int, more: Sequence[str]) -> list[str]:
    """The command that starts vLLM's server.

    It runs the module, because vLLM's builds for CPUs have no `vllm` script.
    """
    words = [
        "--model",
        str(folder),
        "--served-model-name",
        name,
        "--dtype",
        dtype,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    words += [] if HAS_GPU else ["--enforce-eager"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *more]


class Servers:
    """The model servers of a command; each is started when a stage first needs it."""

    def __init__(self, logs: Path):
        self.logs = logs
        self.running: dict[str, tuple[subprocess.Popen[bytes], ServerPlace]] = {}

    def place(self, stage: Stage) -> dict[str, Any] | None:
        """Address of the server of a stage's model, started if needed; None for a stage that needs no server.

        Does not wait until the server is ready.
        """
        settings = stage.settings
        if (
            not isinstance(settings, LanguageJudgeSettings)
            or settings.asking is None
            or settings.asking.server != "vllm"
        ):
            return None
        source = stage.inputs["model"]
        folder = source.path  # type: ignore[union-attr]  # It is a folder of the user's.
        model_key = hash_key([source.key, settings.dtype, settings.server_args])
        if model_key not in self.running or self.running[model_key][0].poll() is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
            port, log = free_port(), self.logs / f"{model_key}.server.log"
            command = vllm_command(folder, folder.name, settings.dtype, port, settings.server_args)
            process = start(command, log)
            self.running[model_key] = (
                process,
                ServerPlace(f"http://127.0.0.1:{port}/v1", process.pid, str(log)),
            )
        return dataclasses.asdict(self.running[model_key][1])

    def close(self) -> None:
        """Stop all servers."""
        for process, _ in self.running.values():
            stop(process)
        self.running.clear()


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in its own session, under a process that stops it when the current process ends."""
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
    """Ask the whole process group to end; kill it after STOP_S seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_ready(place: ServerPlace, timeout_s: float = START_S) -> None:
    """Wait until the server lists its models.

    Raises RuntimeError if the server has ended or takes too long.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{place.base_url}/models", timeout=5) as reply,
        ):
            if reply.status == 200:
                return
        if not is_alive(place.pid):
            log = Path(place.log)
            lines = (
                [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
                if log.exists()
                else []
            )
            last = lines[-1][:200] if lines else "its log is empty"
            raise RuntimeError(f"the judge's model server ended while it was starting: {last} (log: {log})")
        time.sleep(0.25)
    raise RuntimeError(f"the judge's model server was not ready within {timeout_s:g} s (log: {place.log})")


def main() -> None:
    """Run the command `argv[2:]` while the process `argv[1]` lives, then end the whole process group."""
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
