"""`python -m bench ...` without the seconds that its imports take: a server that has imported what commands and their workers need forks
one that carries the command out, whose workers are forked in turn. One server serves all processes of a run of the tests.

Arguments, folder, streams, exit code and the tree of processes are as ever; only `import` finds everything loaded. Tests that ask about
the imports themselves, about signals or about variables that are read at import start a Python of their own (tiny.py: `cold`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
WORKER = "bench.runner.worker"
SHARED = "BENCH_TESTS_SHARED"  # the variable that names a folder of this run of the tests, for all of its processes
POSSIBLE = sys.platform == "linux"  # elsewhere a fork after imports like torch's is not safe
SIZE = 8  # bytes of a number that is sent


class Started:
    """A process that the server has started in a session of its own; `poll` and `wait` as of a Popen."""

    def __init__(self, asked: Mapping[str, Any], out: int, err: int):
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(_address())
        said = json.dumps(asked).encode()
        socket.send_fds(self.line, [len(said).to_bytes(SIZE, "big")], [out, err])
        self.line.sendall(said)
        self.pid = int.from_bytes(_receive(self.line, SIZE), "big")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self.line.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(_receive(self.line, SIZE), "big", signed=True)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a forked process", timeout or 0) from None
            self.line.close()
        return self.returncode


def start(code: str, *words: str, folder: Path, environ: Mapping[str, str], log: int) -> Started:
    """As Popen of `python -c code words`, with both streams in a log."""
    return Started({"code": code, "words": words, "folder": str(folder), "environ": dict(environ)}, log, log)


def run(
    module: str, *words: str, folder: Path, environ: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run of `python -m module words` with both streams captured."""
    pipes = [os.pipe(), os.pipe()]
    asked = {"module": module, "words": words, "folder": str(folder), "environ": dict(environ)}
    process = Started(asked, *(write for _, write in pipes))
    said = [b"", b""]

    def listen(i: int) -> None:
        with open(pipes[i][0], "rb") as file:
            said[i] = file.read()

    listeners = [threading.Thread(target=listen, args=(i,), daemon=True) for i in range(2)]
    for listener, (_, write) in zip(listeners, pipes, strict=True):
        os.close(write)
        listener.start()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    for listener in listeners:
        listener.join()
    out, err = (text.decode().replace("\r\n", "\n") for text in said)
    return subprocess.CompletedProcess([module, *words], code, out, err)


def _receive(source: socket.socket, n: int) -> bytes:
    found = b""
    while len(found) < n:
        if not (more := source.recv(n - len(found))):
            raise EOFError("the server of tests/warm.py has ended")
        found += more
    return found


@functools.cache
def _address() -> str:
    """Of the server of this run of the tests, started by whoever asks first."""
    from filelock import FileLock

    from bench.runner.local_pool import WORKER_ENVIRONMENT

    path = Path(os.environ[SHARED]) / "warm.socket"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            # what packages read at import: the variables of the tests and of workers
            workers = {name: value for name, value in WORKER_ENVIRONMENT.items() if name != "WANDB_MODE"}
            environment = {**os.environ, **workers, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
            server = subprocess.Popen([sys.executable, "-P", __file__, str(path)], env=environment, **streams)  # type: ignore[call-overload]
            while not path.exists():
                assert server.poll() is None, "the server of tests/warm.py has ended"
                time.sleep(0.05)
    return str(path)


# The server -----------------------------------------------------------------------------------------------------------


def serve(path: Path) -> None:
    """Start what is asked for until the folder of the tests is removed or their process is gone."""
    warnings.filterwarnings(
        "ignore", message=".*fork", category=DeprecationWarning
    )  # Python 3.12 counts threads of native libraries
    _import()
    door = socket.socket(socket.AF_UNIX)
    door.bind(f"{path}.new")
    door.listen(16)
    door.settimeout(1.0)
    os.rename(f"{path}.new", path)
    tests = int(path.parent.name.rpartition("-")[2])
    while path.exists() and Path(f"/proc/{tests}").exists():
        with contextlib.suppress(TimeoutError):
            line, _ = door.accept()
            if not os.fork():
                door.close()
                _handle(line)
            line.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _import() -> None:
    from bench.runner.worker import HEAVY_IMPORTS

    for folder in ("commands", "stages", "methods", "judges"):
        for path in sorted((ROOT / "bench" / folder).glob("*.py")):
            importlib.import_module(f"bench.{folder}.{path.stem}".removesuffix(".__init__"))
    of_figures = ("matplotlib.pyplot", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
    for name in sorted({name for names in (*HEAVY_IMPORTS.values(), of_figures) for name in names}):
        importlib.import_module(name)
    gc.freeze()


def _handle(line: socket.socket) -> NoReturn:
    """Fork what is asked for, say its process and in the end its exit code."""
    line.settimeout(None)
    size, streams, *_ = socket.recv_fds(line, SIZE, 2)
    asked = json.loads(_receive(line, int.from_bytes(size, "big")))
    if pid := os.fork():
        for fd in streams:
            os.close(fd)
        with contextlib.suppress(OSError):  # whoever asked may have left
            line.sendall(pid.to_bytes(SIZE, "big"))
            line.sendall(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]).to_bytes(SIZE, "big", signed=True))
        os._exit(0)
    line.close()
    os.setsid()
    for i, fd in enumerate(streams, start=1):
        os.dup2(fd, i)
    for fd in streams:
        os.close(fd)
    os.chdir(asked["folder"])
    _become(asked["environ"])
    _fork_workers()
    sys.path.insert(0, asked["folder"])
    sys.argv = [asked.get("module", "-c"), *asked["words"]]
    _carry_out(asked.get("module"), asked.get("code"))


def _become(environ: Mapping[str, str]) -> None:
    """Take variables and streams, as a Python that starts does."""
    hub = {name: value for name, value in os.environ.items() if name.startswith("HF_")}
    os.environ.clear()
    os.environ.update(environ)
    if hub != {name: value for name, value in environ.items() if name.startswith("HF_")}:
        importlib.reload(
            sys.modules["huggingface_hub.constants"]
        )  # where its variables are read, and its other modules look them up
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def _carry_out(module: str | None, code: str | None) -> NoReturn:
    """As `python -m module` or `python -c code`, in a process that has just been forked."""
    status: Any = 0
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            exec(compile(code or "", "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as leaving:
        status = leaving.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


# Workers --------------------------------------------------------------------------------------------------------------


def _fork_workers() -> None:
    from bench.runner import local_pool

    def begin(line: Sequence[str], **how: Any) -> Any:
        return (
            _Worker(**how)
            if list(line) == [sys.executable, "-P", "-m", WORKER]
            else subprocess.Popen(line, **how)
        )

    names = ("PIPE", "DEVNULL", "TimeoutExpired")
    local_pool.subprocess = SimpleNamespace(
        Popen=begin, **{name: getattr(subprocess, name) for name in names}
    )  # type: ignore[attr-defined]


class _Worker:
    """A forked worker, as much of a Popen as the pool asks for: it reads jobs from a pipe and prints to the null device."""

    def __init__(self, pass_fds: Sequence[int], env: Mapping[str, str], **_: Any):
        read, write = os.pipe()
        self.stdin = os.fdopen(write, "wb")
        self.returncode: int | None = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(read, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *pass_fds}:
                with contextlib.suppress(OSError):
                    os.close(fd)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            _become(env)
            sys.argv = [WORKER]
            gc.freeze()
            _carry_out(WORKER, None)
        os.close(read)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(WORKER, timeout_s or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
