"""Completions that somebody else wrote: a file of them is a cell, judged like the others and not trained.

JSONL, one object a line. The prompt is named by `id` (an item's), by `prompt` (text, or messages that end in the user's) or by `turns` (the
user's texts of a conversation); what was written stands in `completion` (text) or `completions` (a text a turn). A `completions.jsonl`
of the store is such a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import Completion, Item

EXPECTED = "expected id, prompt or turns, and completion (text) or completions (a text a turn)"
SHOWN_BAD_ROWS = 20


@dataclass(frozen=True)
class Written:
    """One row: texts a turn, and which prompt they answer."""

    id: str | None
    turns: tuple[str, ...] | None
    texts: tuple[str, ...]
    line: int

    @property
    def asked(self) -> str:
        return " / ".join(self.turns) if self.turns else f"id {self.id}"


def read_written(path: Path) -> list[Written]:
    """The whole file, checked. Raises ValueError with every bad row's line and reason."""
    rows: list[Written] = []
    problems = []
    first: dict[Any, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _parse(json.loads(line), number)
            earlier = first.setdefault(row.turns or row.id, number)
            if earlier != number:
                raise ValueError(f"answers what line {earlier} answers: a prompt has one completion")
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
        else:
            rows.append(row)
    if problems:
        more = [f"... and {len(problems) - SHOWN_BAD_ROWS} more"] if len(problems) > SHOWN_BAD_ROWS else []
        raise ValueError("\n".join(problems[:SHOWN_BAD_ROWS] + more))
    if not rows:
        raise ValueError(f"{path}: no rows; {EXPECTED}")
    return rows


def _parse(raw: Any, number: int) -> Written:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    texts = raw.get("completions", [raw["completion"]] if "completion" in raw else None)
    turns = raw.get("turns") if "turns" in raw else _asked(raw["prompt"]) if "prompt" in raw else None
    if texts is None or (turns is None and "id" not in raw):
        raise ValueError(f"{EXPECTED}; got {', '.join(map(str, raw)) or 'none'}")
    for name, value in (("completions", texts), ("turns", turns)):
        if value is not None and not (isinstance(value, list) and value and all(isinstance(text, str) for text in value)):
            raise ValueError(f"{name} must be texts, got {str(value)[:80]}")
    return Written(str(raw["id"]) if "id" in raw else None, None if turns is None else tuple(turns), tuple(texts), number)


def _asked(prompt: Any) -> Any:
    """The user's texts of a prompt."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
        return [message.get("content") for message in prompt if message.get("role") in ("user", "text")]
    raise ValueError(f"prompt must be text or messages, got {str(prompt)[:80]}")


def matched(rows: Iterable[Written], items: Sequence[Item]) -> list[Completion]:
    """The completions of the items that the rows answer, in the items' order; items without one are left out.

    A row is an item's by its texts, or by its id where it brings no texts.
    """
    by_turns = {row.turns: row for row in rows if row.turns is not None}
    by_id = {row.id: row for row in rows if row.turns is None}
    found = []
    for item in items:
        row = by_turns.get(tuple(item.turns)) or by_id.get(item.id)
        if row is not None and len(row.texts) == len(item.turns):
            found.append(Completion(item.id, item.turns, list(row.texts), [], []))
    return found
