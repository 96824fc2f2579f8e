"""What has been asked and paid, in append-only files: a stage's replies by request, and the dollars of a whole store.

A line is written whole and at once; a last line that a kill cut short is not read. Nothing here holds a key.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import filelock

from bench.judges.asking import Reply
from bench.store import OverBudget


class Journal:
    """Replies by the digest of the request: what is in it is not asked again."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self.replies: dict[str, Reply] = {}
        for row in _rows(self.path):
            self.replies[row["request"]] = Reply.from_json(row["reply"])

    def add(self, request: str, reply: Reply) -> None:
        self.replies[request] = reply
        _append(self.path, {"request": request, "reply": {k: v for k, v in reply.to_json().items() if v is not None}})


class Ledger:
    """Dollars by judge stage, shared by every worker of a store. A request that is under way counts with the most that it can cost,
    so that no number of requests at once goes over a budget; one whose command was killed, or that timed out, stays counted so."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, filelock.FileLock(f"{path}.lock")
        self.offset = 0
        self.spent: dict[str, float] = {}

    def reserve(self, stage: str, dollars: float, budget: float, sharing: Collection[str]) -> None:
        """Count the most that a request can cost. Raises OverBudget where the stages that share the budget would go over it."""
        with self.lock:
            spent = self.total(sharing)
            if spent + dollars > budget:
                raise OverBudget(f"${spent:.4f} of judge.budget_dollars={budget:g} are spent, and the next request can cost ${dollars:.4f}")
            _append(self.path, {"stage": stage, "dollars": dollars})

    def add(self, stage: str, dollars: float) -> None:
        with self.lock:
            _append(self.path, {"stage": stage, "dollars": dollars})

    def total(self, stages: Collection[str]) -> float:
        rows, self.offset = _read_from(self.path, self.offset)
        for row in rows:
            self.spent[row["stage"]] = self.spent.get(row["stage"], 0.0) + row["dollars"]
        return sum(self.spent.get(stage, 0.0) for stage in stages)


def check(path: Path) -> list[str]:
    """What is wrong with a journal or a ledger, a text for each line; a last line that a kill cut short is no fault."""
    faults = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            if not isinstance(json.loads(line), dict):
                raise ValueError
        except (ValueError, RecursionError):
            faults.append(f"{path}:{number}: is no row, and is not read")
    return faults


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("ab+") as file:
        file.seek(0, 2)
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")  # after a line that was cut short
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    return _read_from(path, 0)[0]


def _read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """(rows of whole lines from `offset`, where the next reader starts); lines that a kill has broken are passed over."""
    if not path.exists():
        return [], offset
    rows = []
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows, offset
