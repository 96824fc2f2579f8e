"""What has been asked and paid, in append-only files: a stage's replies by request, and the dollars of a whole store.

A line is written whole and at once. It holds the version of its format and a checksum, so that a line that was damaged, or that another
version wrote, is never read as something else: it is said and dropped, and its request is asked again; of the ledger it counts as much as
the largest amount there. Lines without a version are those of earlier programs and are read as they are. Nothing here holds a key.
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
JOURNAL_DROPPED = "journal_dropped"  # count of a judge stage: see n_dropped


class Misfit(ValueError):
    """A line, or a file of one line, that does not hold what it should."""


def encode(row: dict[str, Any]) -> bytes:
    return json.dumps({"v": FORMAT, "sum": _checksum(row), "row": row}, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class Decoded(NamedTuple):
    row: dict[str, Any]
    checked: bool  # by a checksum


def decode(line: bytes) -> Decoded:
    """The row of a line. Raises Misfit."""
    try:
        found = parse_json(line, "a line")
    except BadFile as error:
        raise Misfit("damaged or cut short") from error
    if not isinstance(found, dict):
        raise Misfit(f"expected an object, got {describe(found)}")
    if "v" not in found:
        return Decoded(found, False)
    if found["v"] != FORMAT:
        raise Misfit(f"of another version ({describe(found['v'])})")
    row = found.get("row")
    if not isinstance(row, dict) or found.get("sum") != _checksum(row):
        raise Misfit("damaged: its checksum is another")
    return Decoded(row, True)


def _checksum(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def write_whole(path: Path, *rows: dict[str, Any]) -> None:
    """A file of these lines, the old one or the new one at any moment."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_bytes(b"".join(map(encode, rows)))
    aside.replace(path)


def say(text: str) -> None:
    """To the stage's log."""
    print(text, flush=True)


class Journal:
    """Replies by the digest of the request: what is in it is not asked again.

    `earlier`: journals of the same requests, by a program that read replies in another way; taken over where there is none here yet.
    `recent`: requests that were answered after replies were last dropped. `taken`: batches whose rows were taken in.
    """

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self.replies: dict[str, Reply] = {}
        self.recent: dict[str, None] = {}
        self.taken: set[str] = set()
        if not self.path.exists() and (found := next((path for path in earlier if path.exists()), None)):
            self._read(found)
            write_whole(self.path, *(_row(request, reply) for request, reply in self.replies.items()))
            say(f"{found}: its {len(self.replies)} replies are taken over; nothing of them is asked again")
        else:
            self._read(self.path)

    def _read(self, path: Path) -> None:
        unchecked, misfits = 0, []
        for place, line in enumerate(_lines(path), 1):
            try:
                row, checked = decode(line)
                self._take(row)
                unchecked += not checked
            except (Misfit, NotACompletion) as error:
                misfits.append(f"line {place}: {error}")
        if misfits:
            say(f"{path}: {len(misfits)} lines do not fit and are dropped, what they answered is asked again; {printable(misfits[0])}")
        if unchecked:
            say(f"{path}: {unchecked} replies of an earlier program, without checksums, are read as they are")

    def _take(self, row: dict[str, Any]) -> None:
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
        """Keep a reply. Raises NotACompletion for one that could not be read again."""
        row = _row(request, reply_from_row(reply.to_json()))
        append(self.path, row)
        self._take(row)

    def add_taken(self, batch: str) -> None:
        append(self.path, {"taken": batch})
        self.taken.add(batch)

    def drop(self, requests: Collection[str], why: str) -> None:
        """Forget replies: their requests are asked again."""
        row = {"dropped": sorted(requests), "why": why}
        append(self.path, row)
        self._take(row)
        say(why)


def _row(request: str, reply: Reply) -> dict[str, Any]:
    return {"request": request, "reply": {name: value for name, value in reply.to_json().items() if value is not None}}


class Ledger:
    """Dollars by judge stage, shared by every worker of a store. A request that is under way counts with the most that it can cost,
    so that no number of requests at once goes over a budget; one whose command was killed, or that may have been billed, stays counted
    so. A line that cannot be read counts for everybody, as much as the largest amount of the file: what it counted is not free again."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, filelock.FileLock(f"{path}.lock")
        self.offset = 0
        self.spent: dict[str, float] = {}
        self.largest, self.n_unread = 0.0, 0

    def reserve(self, stage: str, dollars: float, budget: float, sharing: Collection[str]) -> None:
        """Count the most that a request can cost. Raises OverBudget where the stages that share the budget would go over it."""
        with self.lock:
            spent = self.total(sharing, dollars)
            if spent + dollars > budget:
                unread = f"; {self.n_unread} unreadable lines of {self.path} count with it" if self.n_unread else ""
                raise OverBudget(
                    f"${spent:.4f} of judge.budget_dollars={budget:g} are spent, and the next request can cost ${dollars:.4f}{unread}"
                )
            append(self.path, {"stage": stage, "dollars": dollars})

    def add(self, stage: str, dollars: float) -> None:
        with self.lock:
            append(self.path, {"stage": stage, "dollars": dollars})

    def total(self, stages: Collection[str], unread_dollars: float = 0.0) -> float:
        """What the stages have spent; `unread_dollars`: at least so much for each line that cannot be read."""
        with self.lock:
            known = self.n_unread
            for line in self._new_lines():
                self._take(line)
        if self.n_unread > known:
            say(f"{self.path}: {self.n_unread} lines cannot be read; each counts as ${max(self.largest, unread_dollars):.4f}")
        # what was reserved is given back, never more: a stage below 0 is a damaged line, and frees nothing
        return sum(max(0.0, self.spent.get(stage, 0.0)) for stage in stages) + self.n_unread * max(self.largest, unread_dollars)

    def _take(self, line: bytes) -> None:
        try:
            row = decode(line).row
        except Misfit:
            row = {}
        stage, dollars = row.get("stage"), number(row.get("dollars"))
        if not isinstance(stage, str) or dollars is None:
            self.n_unread += max(1, line.count(b'"dollars"'))  # a line end may be among what is damaged
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
    """What is wrong with a journal or a ledger, a text for each line; a last line that a kill cut short is no fault."""
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
    """Lines of a journal that do not fit, and replies that were dropped from it; what they answered was asked again."""
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
    """One line, by one call of the system, after a line end where a kill has cut the last line short."""
    line = encode(row)
    with path.open("ab+", buffering=0) as file:
        file.seek(0, os.SEEK_END)
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines that are not blank, split at \\n alone: texts may hold other line ends."""
    if path.exists():
        with open_regular(path) as file:
            yield from (line for line in file if line.strip())
