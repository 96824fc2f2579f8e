"""Append-only files: a stage's journal of replies by request, and the store's ledger of dollars spent.

Each line is written by one call. It holds a format version and a checksum, so a damaged line, or a line of
another version, is never misread. In a journal such a line is reported and dropped, and its request is sent
again. In the ledger it counts as the largest amount in the file. Lines without a version are from earlier
programs and are read unchecked. These files hold no API key.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from bench.judges.asked.chat_completion import NotACompletion, reply_from_row
from bench.judges.asked.request import Reply
from bench.store.stage_run import OverBudget
from bench.text_files import BadFile, describe, number, open_regular, parse_json, printable

FORMAT = 1
JOURNAL_DROPPED = "journal_dropped"  # Name of the count n_dropped in a judge stage.


class Misfit(ValueError):
    """A line cannot be read: it is damaged, of another version, or holds other data."""


def encode(row: dict[str, Any]) -> bytes:
    """The line of a row, with version and checksum."""
    return (
        json.dumps(
            {"v": FORMAT, "sum": _checksum(row), "row": row}, ensure_ascii=False, allow_nan=False
        ).encode()
        + b"\n"
    )


class Decoded(NamedTuple):
    """A decoded line."""

    row: dict[str, Any]
    checked: bool  # It had a checksum.


def decode(line: bytes) -> Decoded:
    """The row in a line. Raises Misfit."""
    try:
        line_data = parse_json(line, "a line")
    except BadFile as error:
        raise Misfit("damaged or cut short") from error
    if not isinstance(line_data, dict):
        raise Misfit(f"expected an object, got {describe(line_data)}")
    if "v" not in line_data:
        return Decoded(line_data, False)
    if line_data["v"] != FORMAT:
        raise Misfit(f"written by another version ({describe(line_data['v'])})")
    row = line_data.get("row")
    if not isinstance(row, dict) or line_data.get("sum") != _checksum(row):
        raise Misfit("damaged: its checksum does not match")
    return Decoded(row, True)


def _checksum(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def write_whole(path: Path, *rows: dict[str, Any]) -> None:
    """Replace a file by these rows atomically: readers see the old file or the new one."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_bytes(b"".join(map(encode, rows)))
    aside.replace(path)


def log(text: str) -> None:
    """Print to the stage's log."""
    print(text, flush=True)


class Journal:
    """Stored replies by the request's digest. A request with a stored reply is not sent again.

    `earlier`: journals of the same requests from versions that read replies in another way. The first one
    that exists is copied if this folder has no journal yet. `recent`: requests answered since replies were
    last dropped. `taken`: ids of batches with their rows already stored here.
    """

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self.replies: dict[str, Reply] = {}
        self.recent: dict[str, None] = {}
        self.taken: set[str] = set()
        if not self.path.exists() and (older := next((path for path in earlier if path.exists()), None)):
            self._read(older)
            write_whole(self.path, *(_row(request, reply) for request, reply in self.replies.items()))
            log(
                f"Copied {len(self.replies)} replies from the journal of an earlier version, {older}. Their requests are not sent again."
            )
        else:
            self._read(self.path)

    def _read(self, path: Path) -> None:
        unchecked, misfits = 0, []
        for place, line in enumerate(_lines(path), 1):
            try:
                row, checked = decode(line)
                self._apply(row)
                unchecked += not checked
            except (Misfit, NotACompletion) as error:
                misfits.append(f"line {place}: {error}")
        if misfits:
            log(
                f"{path}: dropped {len(misfits)} unreadable lines (first: {printable(misfits[0])}). Their requests are sent again."
            )
        if unchecked:
            log(f"{path}: read {unchecked} replies without checksums, written by an earlier version.")

    def _apply(self, row: dict[str, Any]) -> None:
        if isinstance(dropped := row.get("dropped"), list):
            for request in dropped:
                self.replies.pop(str(request), None)
            self.recent = {}
            return
        if isinstance(batch := row.get("taken"), str):
            self.taken.add(batch)
            return
        if not isinstance(request := row.get("request"), str):
            raise Misfit(f"request must be text, got {describe(request)}")
        self.replies[request] = reply_from_row(row.get("reply"))
        self.recent[request] = None

    def add(self, request: str, reply: Reply) -> None:
        """Store a reply. Raises NotACompletion for a reply that could not be read back."""
        row = _row(request, reply_from_row(reply.to_json()))
        append(self.path, row)
        self._apply(row)

    def add_taken(self, batch: str) -> None:
        """Record that a batch's rows are stored."""
        append(self.path, {"taken": batch})
        self.taken.add(batch)

    def drop(self, requests: Collection[str], why: str) -> None:
        """Drop replies, so that their requests are sent again."""
        row = {"dropped": sorted(requests), "why": why}
        append(self.path, row)
        self._apply(row)
        log(why)


def _row(request: str, reply: Reply) -> dict[str, Any]:
    return {
        "request": request,
        "reply": {name: value for name, value in reply.to_json().items() if value is not None},
    }


class Ledger:
    """Dollars by judge stage, shared by all workers of a store.

    A request under way counts with its maximum cost, so that requests in parallel cannot exceed a budget. If
    its command was killed, or if it may have been billed, it stays counted that way. An unreadable line
    counts for every stage, as the largest amount in the file, so that damage never frees money.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, filelock.FileLock(f"{path}.lock")
        self.offset = 0
        self.spent: dict[str, float] = {}
        self.largest, self.n_unread = 0.0, 0

    def reserve(self, stage: str, dollars: float, budget: float, sharing: Collection[str]) -> None:
        """Count the maximum cost of a request.

        Raises OverBudget if the stages sharing the budget would exceed it.
        """
        with self.lock:
            spent = self.total(sharing, dollars)
            if spent + dollars > budget:
                unread = (
                    f"; this counts {self.n_unread} unreadable lines of {self.path}" if self.n_unread else ""
                )
                raise OverBudget(
                    f"${spent:.4f} of judge.budget_dollars={budget:g} are spent, and the next request can cost ${dollars:.4f}{unread}"
                )
            append(self.path, {"stage": stage, "dollars": dollars})

    def add(self, stage: str, dollars: float) -> None:
        """Add dollars to a stage; a negative amount returns part of a reservation."""
        with self.lock:
            append(self.path, {"stage": stage, "dollars": dollars})

    def total(self, stages: Collection[str], unread_dollars: float = 0.0) -> float:
        """Dollars spent by the stages. `unread_dollars`: the minimum for each unreadable line."""
        with self.lock:
            known = self.n_unread
            for line in self._new_lines():
                self._apply(line)
        if self.n_unread > known:
            log(
                f"{self.path}: {self.n_unread} unreadable lines. Each counts as ${max(self.largest, unread_dollars):.4f} spent."
            )
        # A stage gives back at most its reservations. A total below 0 comes from damage; it counts as 0.
        return sum(max(0.0, self.spent.get(stage, 0.0)) for stage in stages) + self.n_unread * max(
            self.largest, unread_dollars
        )

    def _apply(self, line: bytes) -> None:
        try:
            row = decode(line).row
        except Misfit:
            row = {}
        stage, dollars = row.get("stage"), number(row.get("dollars"))
        if not isinstance(stage, str) or dollars is None:
            self.n_unread += max(1, line.count(b'"dollars"'))  # The damage may include line ends.
            return
        self.spent[stage] = self.spent.get(stage, 0.0) + dollars
        self.largest = max(self.largest, dollars)

    def _new_lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with open_regular(self.path) as file:
            file.seek(self.offset)
            new = file.read()
        self.offset += len(new)
        return [line for line in new.split(b"\n") if line.strip()]


def check(path: Path) -> list[str]:
    """Faults of a journal or a ledger, one text per line.

    An incomplete last line, left by a kill, is not a fault.
    """
    faults = []
    with open_regular(path) as file:
        content = file.read()
    for place, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            if line.strip():
                decode(line)
        except Misfit as error:
            faults.append(f"{path}:{place}: {error}")
    return faults


def n_dropped(path: Path) -> int:
    """Number of unreadable lines and dropped replies of a journal. Their requests were sent again."""
    n = 0
    for line in _lines(path):
        try:
            row = decode(line).row
        except Misfit:
            n += 1
        else:
            n += len(dropped) if isinstance(dropped := row.get("dropped"), list) else 0
    return n


def append(path: Path, row: dict[str, Any]) -> None:
    """Append one line with one system call. A line cut short by a kill is ended first."""
    line = encode(row)
    with path.open("ab+", buffering=0) as file:
        file.seek(0, os.SEEK_END)
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)


def _lines(path: Path) -> Iterator[bytes]:
    """Non-blank lines, split at \\n only, since texts may hold other line ends."""
    if path.exists():
        with open_regular(path) as file:
            yield from (line for line in file if line.strip())
