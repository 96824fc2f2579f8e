"""The W&B tracker: it queues the results of a command, and a child process (child.py) writes them to W&B.

Each cell of a sweep is one W&B run: job type `cell`, group = sweep, id from sweep and key. Each sweep has one
run with the comparison table: job type `table`. Training metrics are logged as `train/*` against our own
`train/step`. The cell's numbers are in the summary as `eval/*`. A missing number is absent, never NaN.

**The tracker never makes a cell fail or wait.** W&B runs in a child process that reads JSON lines from stdin
and is killed when `close` has waited `timeout_s`. A thread would not do: it cannot be killed, and wandb's
exit hooks would hold up our own exit. Calls only queue messages, so only `close` waits. The next run of the
same command writes the runs that are missing: `ledger.jsonl` lists the written ones and their destination, so
no cell gets a second run.

Runs are written online where a key is configured (`WANDB_API_KEY` or `wandb login`), otherwise offline. Once
the server fails, or does not reply for a third of `timeout_s`, the rest of the sweep is written offline.

W&B gets no environment, command line, host name, git state or console output. Text that looks like a secret
is replaced in configs, tags and error messages.

Limits:
- wandb does not report when the upload of a table's file fails in the background; its debug-internal.log
  does.
- Two commands that write the same cell at the same time repeat its rows.
- An offline run cannot be resumed, so an offline cell with changed numbers replaces its earlier folder. If
  that folder was uploaded before, `wandb sync` of the new one repeats its rows there (the summary is right).
"""

from __future__ import annotations

import configparser
import itertools
import json
import netrc
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bench import secrets
from bench.config import WandbTracker, user_path
from bench.machine import ROOT
from bench.tracking.values import Row, brief, cleaned, file_digest, finite, run_id, train_row, under

# These variables name a run of another program: an agent's, a notebook's, or the one that runs this command.
_FOREIGN = {
    "WANDB_SERVICE",
    "WANDB_SWEEP_ID",
    "WANDB_RUN_ID",
    "WANDB_RESUME",
    "WANDB_NOTES",
    "WANDB_MODE",
    "WANDB_DISABLED",
    "WANDB_PROGRAM",
}


class WandbMirror:
    """The W&B tracker: queues messages and sends them to the child process."""

    def __init__(self, settings: WandbTracker, directory: Path, account: Account) -> None:
        self._timeout_s = settings.timeout_s
        self._directory = directory
        self._notes: list[str] = []
        self._sent = 0  # messages of cells and tables
        self._answered = 0
        self._ended = threading.Event()  # set once the child has sent its report or died
        self._report: dict[str, Any] | None = None
        self._closed = False
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None

        mode = settings.mode
        if mode == "auto":
            mode = "online" if account.has_key and account.mode not in ("offline", "dryrun") else "offline"
            if mode == "offline":
                why = (
                    "WANDB_MODE or `wandb offline` says so"
                    if account.has_key
                    else "no key is configured: set WANDB_API_KEY or run `wandb login`"
                )
                self._notes.append(f"W&B: runs are written offline, because {why}")
        self._send(
            op="open",
            directory=str(directory),
            project=settings.project or account.project or "bench",
            entity=settings.entity or account.entity,
            mode=mode,
            # It is printed, and is in the ledger. wandb reads its own.
            base_url=secrets.clean(account.base_url),
            timeout_s=settings.timeout_s,
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._process = _start(directory)
        except OSError as error:
            self._notes.append(f"W&B: nothing is written, because its process did not start: {brief(error)}")
            self._ended.set()
            return
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def follow(
        self,
        *,
        sweep: str,
        key: str,
        name: str,
        config: Mapping[str, Any],
        tags: Sequence[str],
        rows: Sequence[Row],
    ) -> None:
        with self._noted(name):
            self._send(op="follow", **self._cell(sweep, key, name, config, tags), rows=self._rows(rows, name))

    def cell(
        self,
        *,
        sweep: str,
        key: str,
        name: str,
        config: Mapping[str, Any],
        history: Sequence[Row],
        summary: Mapping[str, float | None],
        tags: Sequence[str],
        status: str,
        reason: str | None = None,
    ) -> None:
        with self._noted(name):
            numbers = {under("eval", str(k)): n for k, v in summary.items() if (n := finite(v)) is not None}
            words = {"status": status, **({"reason": secrets.clean(str(reason))} if reason else {})}
            self._send(
                op="cell",
                **self._cell(sweep, key, name, config, tags),
                rows=self._rows(history, name),
                summary=numbers | words,
                exit_code=int(status == "failed"),
            )

    def sweep(self, *, sweep: str, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        with self._noted(sweep):
            columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
            present = [str(Path(file).absolute()) for file in files if Path(file).is_file()]
            self._send(
                op="sweep",
                id=run_id("table", sweep),
                name=sweep,
                group=sweep,
                job_type="table",
                tags=[],
                config={"sweep": sweep},
                columns=[str(column) for column in columns],
                data=[[cleaned(row.get(column)) for column in columns] for row in rows],
                files={file: file_digest(file) for file in present},
            )
            if len(present) < len(files):
                self._notes.append(
                    f"W&B: {len(files) - len(present)} of {len(files)} files of {sweep} do not exist and were left out"
                )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._process is None:
            return
        until = time.monotonic() + self._timeout_s
        try:
            self._send(op="close")
            in_time = self._ended.wait(self._timeout_s)
            if self._report:  # wandb only cleans up after the report.
                try:
                    self._process.wait(max(0.0, min(3.0, until - time.monotonic())))
                except subprocess.TimeoutExpired:
                    pass
        finally:
            self._stop()
        self._notes += self._closing_notes(in_time)

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def _stop(self) -> None:
        assert self._process and self._process.stdin and self._process.stdout
        self._process.kill()  # wandb's helper process exits when its parent is gone.
        self._process.wait()
        self._ended.set()
        self._lines.put("")  # wakes _write
        for thread in self._threads:
            thread.join(1)
        if not any(thread.is_alive() for thread in self._threads):
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    pipe.close()

    def _closing_notes(self, in_time: bool) -> Iterator[str]:
        where = _shown(self._directory)
        if not self._report:
            what = (
                "its process ended early"
                if in_time
                else f"it did not finish within {self._timeout_s:g} s (tracker.timeout_s) and was stopped"
            )
            yield (
                f"W&B: {what}, so {self._sent - self._answered} of {self._sent} runs may be missing there. The results are complete. "
                f"Run the same command again to write the missing runs; {where}/tracker.log has the error"
            )
            return
        written, before = self._report["written"], self._report["before"]
        if written.get("online"):
            yield f"W&B: runs written: {written['online']}, see {self._report['url']}"
        if written.get("offline"):
            runs = shlex.quote(_shown(Path(self._report["runs"])))
            yield f"W&B: runs written offline: {written['offline']}; to upload them: wandb sync {runs}/offline-run-*"
        if before and not sum(written.values()):
            yield f"W&B: nothing new to write, all {before} runs were written before"
        if self._report["failed"]:
            yield f"W&B: {self._report['failed']} of {self._sent} runs were not written; {where}/tracker.log has the error"

    def _cell(
        self, sweep: str, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str]
    ) -> dict[str, Any]:
        return {
            "id": run_id("cell", sweep, key),
            "name": name,
            "group": sweep,
            "job_type": "cell",
            "tags": list(dict.fromkeys(secrets.clean(tag)[:64] for tag in tags if tag)),  # 64: W&B's limit
            "config": {**cleaned(config), "sweep": sweep, "key": key},
        }

    def _rows(self, rows: Sequence[Any], name: str) -> list[dict[str, int | float]]:
        read = [train_row(row) for row in rows]
        good = [row for row in read if row is not None]
        if len(good) < len(read):
            self._notes.append(
                f"W&B: {len(read) - len(good)} of {len(read)} history rows of {name} have no step and were left out"
            )
        return good

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._notes.append(f"W&B: {name} was not written: {brief(error)}")

    def _send(self, **message: Any) -> None:
        self._sent += message["op"] in ("cell", "sweep")
        self._lines.put(json.dumps(message) + "\n")

    def _write(self) -> None:
        """Thread: write messages to the child. Only this thread may wait when the pipe is full."""
        assert self._process and self._process.stdin
        try:
            while not self._ended.is_set():
                line = self._lines.get()
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # The child is gone; `_read` sees that.

    def _read(self) -> None:
        """Thread: read the child's messages until it ends."""
        assert self._process and self._process.stdout
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # The line is cut.
            if "note" in message:
                self._notes.append(secrets.shown(message["note"]))
            elif "answered" in message:
                self._answered += 1
            elif "report" in message:
                self._report = message["report"]
                self._ended.set()
        self._ended.set()


def _start(directory: Path) -> subprocess.Popen[str]:
    """Start the child process. Its output goes to tracker.log."""
    package_root = str(ROOT)
    environ = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "WANDB_ERROR_REPORTING": "false",  # Otherwise it sends telemetry, even offline.
        "WANDB_SILENT": "true",
        "WANDB_DATA_DIR": str(directory / "data"),  # Artifacts wait here for their upload.
        "WANDB_CACHE_DIR": str(directory / "data"),
    }
    with (directory / "tracker.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            # -P: the working folder holds a folder `wandb`.
            [sys.executable, "-P", "-m", "bench.tracking.wandb_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=environ,
            cwd=directory,
            start_new_session=True,  # Ctrl-C reaches only the command, which closes the tracker.
        )


def _shown(path: Path) -> str:
    """The path, relative to the working folder where it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class Account(NamedTuple):
    """The user's W&B settings, from environment variables and W&B's files."""

    base_url: str
    has_key: bool
    mode: str | None  # from WANDB_MODE or `wandb offline`
    project: str | None  # from WANDB_PROJECT
    entity: str | None  # from WANDB_ENTITY


def configured_account() -> Account:
    """The user's W&B settings, as wandb reads them. wandb is not imported: a sweep
    that is done needs no more."""
    config_dir = user_path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    stored = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        stored.read(config_dir / "settings")

    def setting(name: str) -> str | None:
        return os.environ.get(f"WANDB_{name.upper()}") or stored.get("default", name, fallback=None)

    base_url = (setting("base_url") or "https://api.wandb.ai").rstrip("/")
    has_key = bool(
        setting("api_key") or setting("identity_token_file") or _netrc_has(urlsplit(base_url).netloc)
    )
    return Account(base_url, has_key, setting("mode"), setting("project"), setting("entity"))


def _netrc_has(host: str) -> bool:
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            return netrc.netrc(user_path(path)).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False
