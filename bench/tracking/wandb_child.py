"""The tracker's child process: a W&B client that reads JSON messages from stdin, one a line."""

from __future__ import annotations

import json
import math
import os
import queue
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import secrets
from bench.tracking.values import brief, digest, finite


@dataclass
class _Open:
    """A W&B run that is being written.

    `logged`: the names of its logged metrics by step. A resumed run already holds every step before
    `resumed_at`; of the step `resumed_at` itself, the names are in `logged`.
    """

    run: Any
    online: bool
    resumed_at: float = -math.inf
    logged: dict[float, set[str]] = field(default_factory=dict)

    def log(self, rows: Sequence[dict[str, float]]) -> None:
        """Log the metrics that the run does not hold yet.

        A cell's whole history is sent at its end, after `follow` may have sent some of its rows.
        """
        for row in rows:
            step = row["train/step"]
            if step < self.resumed_at:
                continue
            seen = self.logged.setdefault(step, set())
            if new := {name: value for name, value in row.items() if name not in seen}:
                self.run.log({**new, "train/step": step})
                seen.update(new)


class _Client:
    """Writes cells and tables to W&B: online, or offline once the server has failed."""

    def __init__(self, opening: Mapping[str, Any], say: Any) -> None:
        self.say = say
        self.directory = Path(opening["directory"])
        # wandb always adds a folder `wandb`.
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
        """The folder that W&B writes its runs to."""
        return self.root / "wandb"

    def report(self) -> dict[str, Any]:
        return {
            "written": self.written,
            "before": self.before,
            "failed": self.failed,
            "url": self.url,
            "runs": str(self.runs),
        }

    def follow(self, message: Mapping[str, Any]) -> None:
        run_id = message["id"]
        if not message["rows"] or run_id in self.unopened:
            return
        try:
            self._opened(message).log(message["rows"])
        except Exception:
            self.unopened.add(run_id)  # `cell` tries again at the end.
            raise

    def cell(self, message: Mapping[str, Any]) -> None:
        self._write_once(message, self._write_cell)

    def sweep(self, message: Mapping[str, Any]) -> None:
        self._write_once(message, self._write_table)

    def close(self) -> None:
        """Mark the runs of unfinished cells as interrupted. The next command completes them."""
        for entry in self.open.values():
            entry.run.summary["status"] = "interrupted"
            entry.run.finish(exit_code=1)
        self.open.clear()

    def _write_once(self, message: Mapping[str, Any], write: Any) -> None:
        """Write a message that is not in the ledger; offline where the server fails."""
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
            self._write_once(message, write)
            return
        try:
            entry.run.finish(exit_code=message.get("exit_code", 0))
        except TimeoutError as error:
            # It is not written again offline: after a sync the uploaded part would be there twice.
            self._go_offline(error)
            raise TimeoutError(
                f"its upload did not finish; run `wandb sync {_folder(entry)}` to complete it"
            ) from error
        where = "online" if entry.online else "offline"
        self.written[where] = self.written.get(where, 0) + 1
        self._record(message, entry)

    def _write_cell(self, entry: _Open, message: Mapping[str, Any]) -> None:
        entry.log(message["rows"])
        final = {name: value for row in message["rows"] for name, value in row.items()}
        if entry.run.summary.get("reason") is not None and "reason" not in message["summary"]:
            del entry.run.summary["reason"]  # An earlier attempt failed.
        entry.run.summary.update(final | message["summary"])

    def _write_table(self, entry: _Open, message: Mapping[str, Any]) -> None:
        import wandb

        if message["files"]:
            artifact = wandb.Artifact(
                "table-" + re.sub(r"[^\w.-]", "-", message["name"])[:100], type="comparison"
            )
            for file in message["files"]:
                artifact.add_file(file, name=Path(file).name)
            entry.run.log_artifact(artifact)
        # This is last: online it sends a request to the server, and raises where that fails.
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
                # An interrupted run, or an earlier one that this run replaces.
                shutil.rmtree(stale, ignore_errors=True)
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
        if run.resumed and (last := finite(run.summary.get("train/step"))) is not None:
            entry.resumed_at = last
            entry.logged[last] = set(run.summary.keys())
        return entry

    def _go_offline(self, error: Exception) -> None:
        if self.mode == "online":
            self.mode = "offline"
            # Their earlier rows are online only: `cell` writes the whole history.
            self.unopened |= self.open.keys()
            self.open.clear()
            with suppress(Exception):
                sys.modules["wandb"].teardown(exit_code=1)  # Otherwise the ids of its runs stay in use.
            self.say(
                note=f"W&B: {self.base_url} failed ({brief(error)}), so runs are written offline from here on"
            )

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
        return digest({**message, "files": files, "project": self.project, "entity": self.entity})

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
            continue  # A kill has cut the line: that run is written again.
    return ledger


def _serve() -> None:
    """Run the child process: read messages from stdin, write replies to the original stdout."""
    secrets.guard_streams()
    # Prints and wandb's helper process must not write here.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        try:
            print(json.dumps(message), file=replies, flush=True)
        except OSError:
            pass  # The command is gone. Its messages are still written.

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
                say(note=f"W&B: {message['name']} was not written: {brief(error)}")
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
    """Thread: read messages from stdin.

    After its end, the process has `timeout_s` to write them and is then ended.
    """
    for line in sys.stdin:
        try:
            messages.put(json.loads(line))
        except ValueError:
            break  # The line is cut: the command was killed.
    messages.put(None)
    time.sleep(timeout_s)
    os._exit(1)


if __name__ == "__main__":
    _serve()
