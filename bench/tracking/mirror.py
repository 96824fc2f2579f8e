"""Weights & Biases: the only file that knows it. The store is the truth; W&B mirrors it.

One run per (sweep, cell), job type `cell`, group = sweep, id from both; one run per sweep with the comparison table,
job type `table`. Training metrics lie under `train/*` against our own `train/step`, headline numbers in the summary
under `eval/*`. A number that is missing is absent, never NaN.

**A tracker never costs a cell.** W&B lives in a child process that reads JSON lines from its stdin and is killed when
`close` has waited `timeout_s`. Not a thread: a thread cannot be killed, and wandb's exit hooks would then hold up our own
exit. Calls only queue, so `close` is the only one that waits. What was not written is written by the next run of the
same command: `ledger.jsonl` holds what was, and where, so that cached cells make no second run.

Online when a key is configured (`WANDB_API_KEY`, or what `wandb login` wrote), offline otherwise, and offline for the rest
of the sweep once the server failed or was silent for a third of `timeout_s`.

W&B gets no environment, command line, host name, git state or console output; what looks like a secret in a config, a tag or
an error message is replaced.

Limits: wandb does not tell when the upload of a table's file fails in the background (a line in the run's debug-internal.log
does). Two commands that write the same cell at once repeat its rows. An offline run cannot be resumed, so an offline cell whose numbers
changed replaces its earlier folder. If that one
had been uploaded, `wandb sync` of the new one repeats its rows there (the summary is right).
"""

from __future__ import annotations

import configparser
import hashlib
import itertools
import json
import math
import netrc
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from bench import secrets
from bench.config import NoTracker, WandbTracker, user_path
from bench.machine import ROOT

Row = Mapping[str, float]


class Tracker(Protocol):
    """What a run reports. No call raises, and none but `close` waits."""

    def follow(self, *, sweep: str, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str], rows: Sequence[Row]) -> None:
        """Rows of a running cell, as they come; the first opens the cell's run. Rows carry their own `step`."""

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
        """A cell that ended: its whole stored history, cached or not; rows that were followed are not repeated.

        status: "failed" marks the run as failed; any other is only recorded. reason: why it failed.
        """

    def sweep(self, *, sweep: str, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """The comparison table, and the files that go with it as an artifact."""

    def close(self) -> None:
        """Waits until all is written, at most `timeout_s`. May be called twice."""

    @property
    def notes(self) -> list[str]:
        """What the user should be told; complete after `close`."""


def open_tracker(settings: WandbTracker | NoTracker, directory: Path) -> Tracker:
    """directory: where W&B's files go, offline runs included, e.g. results/wandb."""
    if isinstance(settings, NoTracker):
        return _Silent()
    account = _account()
    if settings.mode == "auto" and account.mode == "disabled":
        return _Silent(["W&B: disabled by WANDB_MODE or `wandb disabled`"])
    return _Wandb(settings, Path(directory).absolute(), account)


class _Silent:
    def __init__(self, notes: Sequence[str] = ()) -> None:
        self._notes = list(notes)

    def follow(self, **_: Any) -> None: ...

    def cell(self, **_: Any) -> None: ...

    def sweep(self, **_: Any) -> None: ...

    def close(self) -> None: ...

    @property
    def notes(self) -> list[str]:
        return list(self._notes)


# What the user has configured for W&B -------------------------------------------------------------------------------


class _Account(NamedTuple):
    base_url: str
    has_key: bool
    mode: str | None  # of WANDB_MODE or `wandb offline`


def _account() -> _Account:
    """Read as wandb reads it, without importing wandb: a re-run of a cached sweep needs no more than this."""
    config_dir = user_path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    stored = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        stored.read(config_dir / "settings")

    def setting(name: str) -> str | None:
        return os.environ.get(f"WANDB_{name.upper()}") or stored.get("default", name, fallback=None)

    base_url = (setting("base_url") or "https://api.wandb.ai").rstrip("/")
    has_key = bool(setting("api_key") or setting("identity_token_file") or _netrc_has(urlsplit(base_url).netloc))
    return _Account(base_url, has_key, setting("mode"))


def _netrc_has(host: str) -> bool:
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            return netrc.netrc(user_path(path)).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False


# What may be written ------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; numbers that JSON cannot hold become None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool):
        return value
    return _number(value) if isinstance(value, Real) else str(value)


def _written(value: Any) -> Any:
    return secrets.clean_value(_plain(value))


def _number(value: Any) -> int | float | None:
    """A finite number, or None."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) else None


def _train_row(row: Any) -> dict[str, int | float] | None:
    """A history row under W&B's names; None when it has no step."""
    if not isinstance(row, Mapping):
        return None
    step = _number(row.get("step"))
    if step is None:
        return None
    numbers = {_under("train", str(k)): n for k, v in row.items() if k != "step" and (n := _number(v)) is not None}
    return {**numbers, "train/step": step}


def _under(section: str, name: str) -> str:
    return name if name.startswith(f"{section}/") else f"{section}/{name}"


def _run_id(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# Our side: a queue, a child, and a deadline --------------------------------------------------------------------------

# A run that these name is somebody else's: an agent's, a notebook's, or the one around us.
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


class _Wandb:
    def __init__(self, settings: WandbTracker, directory: Path, account: _Account) -> None:
        self._timeout_s = settings.timeout_s
        self._directory = directory
        self._notes: list[str] = []
        self._sent = 0  # cells and tables
        self._answered = 0
        self._ended = threading.Event()  # the child has said its last word, or died
        self._report: dict[str, Any] | None = None
        self._closed = False
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None

        mode = settings.mode
        if mode == "auto":
            mode = "online" if account.has_key and account.mode not in ("offline", "dryrun") else "offline"
            if mode == "offline":
                why = (
                    "WANDB_MODE or `wandb offline` says so" if account.has_key else "no key is configured (WANDB_API_KEY or `wandb login`)"
                )
                self._notes.append(f"W&B: runs are written offline, {why}")
        self._send(
            op="open",
            directory=str(directory),
            project=settings.project,
            entity=settings.entity,
            mode=mode,
            base_url=secrets.clean(account.base_url),  # said and kept in the ledger; wandb reads its own
            timeout_s=settings.timeout_s,
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._process = _start(directory)
        except OSError as error:
            self._notes.append(f"W&B: nothing is written, its process did not start: {_brief(error)}")
            self._ended.set()
            return
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def follow(self, *, sweep: str, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str], rows: Sequence[Row]) -> None:
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
            numbers = {_under("eval", str(k)): n for k, v in summary.items() if (n := _number(v)) is not None}
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
                id=_run_id("table", sweep),
                name=sweep,
                group=sweep,
                job_type="table",
                tags=[],
                config={"sweep": sweep},
                columns=[str(column) for column in columns],
                data=[[_written(row.get(column)) for column in columns] for row in rows],
                files={file: _file_digest(file) for file in present},
            )
            if len(present) < len(files):
                self._notes.append(f"W&B: {len(files) - len(present)} of {len(files)} files of {sweep} do not exist and were left out")

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
            if self._report:  # the rest is wandb tidying up after itself
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
        self._process.kill()  # wandb's own helper process leaves by itself when its parent is gone
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
                f"W&B: {what}; {self._sent - self._answered} of {self._sent} runs may be missing there, results are not touched. "
                f"The same command writes them again; see {where}/tracker.log"
            )
            return
        written, before = self._report["written"], self._report["before"]
        if written.get("online"):
            yield f"W&B: runs written: {written['online']}, see {self._report['url']}"
        if written.get("offline"):
            runs = shlex.quote(_shown(Path(self._report["runs"])))
            yield f"W&B: runs written offline: {written['offline']}; to upload them: wandb sync {runs}/offline-run-*"
        if before and not sum(written.values()):
            yield f"W&B: nothing new, all {before} runs were written before"
        if self._report["failed"]:
            yield f"W&B: {self._report['failed']} of {self._sent} runs were not written; see {where}/tracker.log"

    def _cell(self, sweep: str, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
        return {
            "id": _run_id("cell", sweep, key),
            "name": name,
            "group": sweep,
            "job_type": "cell",
            "tags": list(dict.fromkeys(secrets.clean(tag)[:64] for tag in tags if tag)),  # 64: W&B's limit
            "config": {**_written(config), "sweep": sweep, "key": key},
        }

    def _rows(self, rows: Sequence[Any], name: str) -> list[dict[str, int | float]]:
        read = [_train_row(row) for row in rows]
        good = [row for row in read if row is not None]
        if len(good) < len(read):
            self._notes.append(f"W&B: {len(read) - len(good)} of {len(read)} history rows of {name} have no step and were left out")
        return good

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._notes.append(f"W&B: {name} was not written: {_brief(error)}")

    def _send(self, **message: Any) -> None:
        self._sent += message["op"] in ("cell", "sweep")
        self._lines.put(json.dumps(message) + "\n")

    def _write(self) -> None:
        """Thread: the pipe fills up when the child is stuck, and nobody but this thread may wait for it."""
        assert self._process and self._process.stdin
        try:
            while not self._ended.is_set():
                line = self._lines.get()
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # the child is gone; _read says so

    def _read(self) -> None:
        """Thread: what the child says, until it ends."""
        assert self._process and self._process.stdout
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # cut off in the middle
            if "note" in message:
                self._notes.append(secrets.shown(message["note"]))
            elif "answered" in message:
                self._answered += 1
            elif "report" in message:
                self._report = message["report"]
                self._ended.set()
        self._ended.set()


def _start(directory: Path) -> subprocess.Popen[str]:
    package_root = str(ROOT)
    environ = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "WANDB_ERROR_REPORTING": "false",  # else it posts telemetry, offline too
        "WANDB_SILENT": "true",
        "WANDB_DATA_DIR": str(directory / "data"),  # artifacts wait here until they are uploaded
        "WANDB_CACHE_DIR": str(directory / "data"),
    }
    with (directory / "tracker.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.tracking.mirror"],  # -P: a folder `wandb` lies in its working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=environ,
            cwd=directory,
            start_new_session=True,  # Ctrl-C is for the sweep, which then closes us
        )


def _brief(error: Exception) -> str:
    return secrets.excerpt(f"{type(error).__name__}: {error}", 200)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The child: one W&B client --------------------------------------------------------------------------------------------


@dataclass
class _Open:
    """A run that is being written. `logged`: its metrics by step; a resumed run has all up to `resumed_at`, where only what is
    in `logged` is known by name."""

    run: Any
    online: bool
    resumed_at: float = -math.inf
    logged: dict[float, set[str]] = field(default_factory=dict)

    def log(self, rows: Sequence[dict[str, float]]) -> None:
        """What is there is not repeated: a history is sent whole after it was followed, perhaps from its middle on."""
        for row in rows:
            step = row["train/step"]
            if step < self.resumed_at:
                continue
            seen = self.logged.setdefault(step, set())
            if new := {name: value for name, value in row.items() if name not in seen}:
                self.run.log({**new, "train/step": step})
                seen.update(new)


class _Client:
    def __init__(self, opening: Mapping[str, Any], say: Any) -> None:
        self.say = say
        self.directory = Path(opening["directory"])
        # wandb always adds a folder of its own name
        self.root = self.directory.parent if self.directory.name == "wandb" else self.directory
        self.project, self.entity, self.mode = opening["project"], opening["entity"], opening["mode"]
        self.base_url = opening["base_url"]
        self.patience_s = max(1.0, opening["timeout_s"] / 3)
        self.ledger_path = self.directory / "ledger.jsonl"
        self.ledger = _read_ledger(self.ledger_path)
        self.open: dict[str, _Open] = {}
        self.unopened: set[str] = set()
        self.written: dict[str, int] = {}
        self.before = self.failed = 0
        self.url = ""

    @property
    def runs(self) -> Path:
        return self.root / "wandb"

    def report(self) -> dict[str, Any]:
        return {"written": self.written, "before": self.before, "failed": self.failed, "url": self.url, "runs": str(self.runs)}

    def follow(self, message: Mapping[str, Any]) -> None:
        run_id = message["id"]
        if not message["rows"] or run_id in self.unopened:
            return
        try:
            self._opened(message).log(message["rows"])
        except Exception:
            self.unopened.add(run_id)  # `cell` tries again
            raise

    def cell(self, message: Mapping[str, Any]) -> None:
        self._once(message, self._write_cell)

    def sweep(self, message: Mapping[str, Any]) -> None:
        self._once(message, self._write_table)

    def close(self) -> None:
        """Runs of cells that have not ended; the next run of the command completes them."""
        for entry in self.open.values():
            entry.run.summary["status"] = "interrupted"
            entry.run.finish(exit_code=1)
        self.open.clear()

    def _once(self, message: Mapping[str, Any], write: Any) -> None:
        """Write what the ledger does not hold; offline if the server fails."""
        if self._is_written(message):
            self.before += 1
            return
        entry = self._opened(message)
        del self.open[message["id"]]
        try:
            write(entry, message)
        except Exception as error:
            if not entry.online:
                raise
            self._go_offline(error)
            self._once(message, write)
            return
        try:
            entry.run.finish(exit_code=message.get("exit_code", 0))
        except TimeoutError as error:  # not written again offline: what did arrive would be there twice after a sync
            self._go_offline(error)
            raise TimeoutError(f"its upload did not end; `wandb sync {_folder(entry)}` completes it") from error
        where = "online" if entry.online else "offline"
        self.written[where] = self.written.get(where, 0) + 1
        self._record(message, entry)

    def _write_cell(self, entry: _Open, message: Mapping[str, Any]) -> None:
        entry.log(message["rows"])
        final = {name: value for row in message["rows"] for name, value in row.items()}
        if entry.run.summary.get("reason") is not None and "reason" not in message["summary"]:
            del entry.run.summary["reason"]  # it failed before
        entry.run.summary.update(final | message["summary"])

    def _write_table(self, entry: _Open, message: Mapping[str, Any]) -> None:
        import wandb

        if message["files"]:
            artifact = wandb.Artifact("table-" + re.sub(r"[^\w.-]", "-", message["name"])[:100], type="comparison")
            for file in message["files"]:
                artifact.add_file(file, name=Path(file).name)
            entry.run.log_artifact(artifact)
        # Last: online this asks the server, and raises if that fails.
        table = wandb.Table(columns=message["columns"], data=message["data"], allow_mixed_types=True)
        entry.run.log({"comparison": table})

    def _opened(self, message: Mapping[str, Any]) -> _Open:
        if message["id"] not in self.open:
            try:
                self.open[message["id"]] = self._init(message)
            except Exception as error:
                if self.mode == "offline":
                    raise
                self._go_offline(error)
                self.open[message["id"]] = self._init(message)
        return self.open[message["id"]]

    def _init(self, message: Mapping[str, Any]) -> _Open:
        import wandb

        if self.mode == "offline":
            for stale in self.runs.glob(f"offline-run-*-{message['id']}"):
                shutil.rmtree(stale, ignore_errors=True)  # interrupted, or superseded by what comes now
        run = wandb.init(
            id=message["id"],
            name=message["name"],
            group=message["group"],
            job_type=message["job_type"],
            tags=message["tags"],
            config=message["config"],
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            resume="allow",
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(
                root_dir=str(self.root),
                use_dot_wandb=False,
                disable_git=True,
                disable_code=True,
                console="off",
                host="",
                init_timeout=min(20.0, self.patience_s),
                finish_timeout=self.patience_s,
                finish_timeout_raises=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        if message["job_type"] == "cell":
            run.define_metric("train/step")
            run.define_metric("train/*", step_metric="train/step")
        entry = _Open(run, online=self.mode == "online")
        if entry.online:
            self.url = run.project_url or self.base_url
        if run.resumed and (last := _number(run.summary.get("train/step"))) is not None:
            entry.resumed_at = last
            entry.logged[last] = set(run.summary.keys())
        return entry

    def _go_offline(self, error: Exception) -> None:
        if self.mode == "online":
            self.mode = "offline"
            self.unopened |= self.open.keys()  # their earlier rows are lost to us: `cell` writes them whole
            self.open.clear()
            with suppress(Exception):
                sys.modules["wandb"].teardown(exit_code=1)  # else the ids of its runs stay in use
            self.say(note=f"W&B: {self.base_url} failed ({_brief(error)}), so runs are written offline from here on")

    def _destination(self, *, online: bool) -> str:
        return f"{self.base_url} {self.entity or ''}/{self.project}" if online else "offline"

    def _is_written(self, message: Mapping[str, Any]) -> bool:
        if message["id"] in self.open:
            return False
        entry = self.ledger.get((message["id"], self._destination(online=self.mode == "online")))
        if entry is None or entry["digest"] != self._digest(message):
            return False
        return self.mode == "online" or (self.runs / entry["folder"]).is_dir()

    def _digest(self, message: Mapping[str, Any]) -> str:
        files = {Path(file).name: digest for file, digest in message.get("files", {}).items()}
        return _digest({**message, "files": files, "project": self.project, "entity": self.entity})

    def _record(self, message: Mapping[str, Any], entry: _Open) -> None:
        destination = self._destination(online=entry.online)
        line = {
            "id": message["id"],
            "name": message["name"],
            "to": destination,
            "digest": self._digest(message),
            "folder": _folder(entry).name,
        }
        self.ledger[line["id"], destination] = line
        with self.ledger_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _folder(entry: _Open) -> Path:
    return Path(entry.run.dir).parent


def _read_ledger(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    ledger = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for text in lines:
        try:
            line = json.loads(text)
            ledger[line["id"], line["to"]] = {"digest": line["digest"], "folder": line["folder"]}
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill: that run is written again
    return ledger


def _serve() -> None:
    """The child's main: messages in on stdin, answers out on what was stdout."""
    secrets.guard_streams()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # ours alone: neither prints nor wandb's helper may reach it
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        try:
            print(json.dumps(message), file=answers, flush=True)
        except OSError:
            pass  # the sweep is gone; finish for its sake what it sent

    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    opening = json.loads(sys.stdin.readline())
    threading.Thread(target=_receive, args=(messages, opening["timeout_s"]), daemon=True).start()
    client = _Client(opening, say)
    notes_left = 3
    while (message := messages.get()) is not None and message["op"] != "close":
        try:
            getattr(client, message["op"])(message)
        except Exception as error:
            traceback.print_exc()
            client.failed += message["op"] != "follow"
            if notes_left and message["op"] != "follow":
                notes_left -= 1
                say(note=f"W&B: {message['name']} was not written: {_brief(error)}")
        if message["op"] != "follow":
            say(answered=message["id"])
    try:
        client.close()
    finally:
        say(report=client.report())
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()
        os._exit(0)


def _receive(messages: queue.SimpleQueue[dict[str, Any] | None], timeout_s: float) -> None:
    """Thread: when the sweep is gone without a word, what it sent is still written, but not for ever."""
    for line in sys.stdin:
        try:
            messages.put(json.loads(line))
        except ValueError:
            break  # cut off: the sweep was killed
    messages.put(None)
    time.sleep(timeout_s)
    os._exit(1)


if __name__ == "__main__":
    _serve()
