"""`python -m bench ...` without the seconds that its imports take: a process that has imported what a command and its workers need
forks one that carries the command out. Its workers are forked in turn.

What a command does, its arguments, folder, streams, exit code and process tree are as ever; only `import` finds everything loaded. What
tests ask of the imports themselves, of signals or of variables that are read at import start a process of its own (tiny.py, `cold`).
"""

from __future__ import annotations

import array
import atexit
import contextlib
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
COMMAND, WORKER = "bench", "bench.runner.worker"
LENGTH = 8  # bytes of a message's length
POSSIBLE = sys.platform == "linux"  # elsewhere a fork after imports like torch's is not safe


def environment() -> dict[str, str]:
    """What the server is started with: the variables of this process, and of workers those that packages read at import."""
    from bench.runner.local_pool import WORKER_ENVIRONMENT

    workers = {name: value for name, value in WORKER_ENVIRONMENT.items() if name != "WANDB_MODE"}
    return {**os.environ, **workers, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Warm:
    """A client of a server of its own, which ends with this process."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        line = [sys.executable, "-P", __file__, str(theirs.fileno())]
        self.process = subprocess.Popen(line, env=environment(), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        theirs.close()
        self.lock = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        self.ours.close()
        self.process.wait()

    def run(self, words: Sequence[str], folder: Path, environ: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """As subprocess.run of `python -m bench` with both streams captured."""
        with self.lock:
            return self._run(words, folder, environ, timeout_s)

    def _run(self, words: Sequence[str], folder: Path, environ: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        streams = [os.pipe(), os.pipe()]
        asked = json.dumps({"words": list(words), "folder": str(folder), "environ": dict(environ)}).encode()
        fds = array.array("i", [write for _, write in streams])
        self.ours.sendmsg([len(asked).to_bytes(LENGTH, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self.ours.sendall(asked)
        for _, write in streams:
            os.close(write)
        pid = int.from_bytes(_read(self.ours, LENGTH), "big")
        said = [b"", b""]

        def listen(i: int) -> None:
            with open(streams[i][0], "rb") as file:
                said[i] = file.read()

        listeners = [threading.Thread(target=listen, args=(i,), daemon=True) for i in range(2)]
        for listener in listeners:
            listener.start()
        self.ours.settimeout(timeout_s)
        try:
            code = int.from_bytes(_read(self.ours, LENGTH), "big", signed=True)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self.ours.settimeout(None)
            _read(self.ours, LENGTH)
            raise subprocess.TimeoutExpired([*words], timeout_s, said[0], said[1]) from None
        finally:
            self.ours.settimeout(None)
        for listener in listeners:
            listener.join()
        out, err = (text.decode().replace("\r\n", "\n") for text in said)
        return subprocess.CompletedProcess(["bench", *words], code, out, err)


def _read(source: socket.socket, n: int) -> bytes:
    found = b""
    while len(found) < n:
        more = source.recv(n - len(found))
        if not more:
            raise EOFError("the server of tests/warm.py has ended")
        found += more
    return found


# The server -----------------------------------------------------------------------------------------------------------


def serve(source: socket.socket) -> None:
    """Carry out one command after another, until the client leaves."""
    _import()
    while True:
        try:
            head, control, *_ = source.recvmsg(LENGTH, socket.CMSG_SPACE(2 * array.array("i").itemsize))
        except ConnectionError:
            return
        if not head:
            return
        fds = array.array("i", control[0][2])
        asked = json.loads(_read(source, int.from_bytes(head + _read(source, LENGTH - len(head)), "big")))
        pid = os.fork()
        if not pid:
            source.close()
            for i, fd in enumerate(fds, start=1):
                os.dup2(fd, i)
                os.close(fd)
            os.chdir(asked["folder"])
            os.environ.clear()
            os.environ.update(asked["environ"])
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
            _fork_workers()
            _carry_out(COMMAND, asked["words"], asked["folder"])
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ConnectionError):
            source.sendall(pid.to_bytes(LENGTH, "big"))
            source.sendall(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]).to_bytes(LENGTH, "big", signed=True))


def _import() -> None:
    from bench.runner.worker import HEAVY_IMPORTS

    for folder in ("commands", "stages", "methods", "judges"):
        for path in sorted((ROOT / "bench" / folder).glob("*.py")):
            importlib.import_module(f"bench.{folder}.{path.stem}".removesuffix(".__init__"))
    for name in sorted({name for names in HEAVY_IMPORTS.values() for name in names}):
        importlib.import_module(name)
    gc.freeze()


def _carry_out(module: str, words: Sequence[str], folder: str) -> NoReturn:
    """As `python -m module words`, in a process that has just been forked."""
    sys.argv = [module, *words]
    sys.path[:] = [folder, *sys.path] if folder else sys.path
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _fork_workers() -> None:
    from bench.runner import local_pool

    names = ("PIPE", "DEVNULL", "TimeoutExpired")
    local_pool.subprocess = SimpleNamespace(Popen=_start, **{name: getattr(subprocess, name) for name in names})  # type: ignore[attr-defined]


def _start(line: Sequence[str], **how: Any) -> Any:
    worker = [sys.executable, "-P", "-m", WORKER]
    return _Worker(**how) if list(line) == worker else subprocess.Popen(line, **how)


class _Worker:
    """A forked worker, as much of a Popen as the pool asks for. Its streams: a pipe to read jobs from, and the null device."""

    def __init__(self, pass_fds: Sequence[int], env: Mapping[str, str], **_: Any):
        read, write = os.pipe()
        self.stdin = open(write, "wb")
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(read, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            kept = {0, 1, 2, *pass_fds}
            for name in os.listdir("/proc/self/fd"):
                if (fd := int(name)) not in kept:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            sys.stdin = open(0, encoding="utf-8", closefd=False)
            sys.stdout, sys.stderr = (open(i, "w", encoding="utf-8", closefd=False) for i in (1, 2))
            gc.freeze()
            _carry_out(WORKER, [], "")
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
    serve(socket.socket(fileno=int(sys.argv[1])))
