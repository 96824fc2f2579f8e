"""Completions that somebody else wrote: a file of them is a cell, judged like the others and not trained.

JSONL, one object a line. The prompt is named by `id` (an item's), by `prompt` (text, or all its messages) or by `turns` (the user's texts
of a conversation); what was written stands in `completion` (text) or `completions` (a text a turn). A `completions.jsonl` of the store
is such a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import NO_UNICODE, Completion, Item, is_unicode

EXPECTED = "expected id, prompt or turns, and completion (text) or completions (a text a turn)"
SHOWN_BAD_ROWS = 20


Messages = tuple[tuple[str, str], ...]  # (role, content)


@dataclass(frozen=True)
class Written:
    """One row: texts a turn, and which prompt they answer - by what the row names, the others are None."""

    id: str | None
    messages: Messages | None
    turns: tuple[str, ...] | None
    texts: tuple[str, ...]

    @property
    def asked(self) -> str:
        return " / ".join(self.turns or [content for _, content in self.messages or ()]) or f"id {self.id}"


def read_written(path: Path) -> list[Written]:
    """The whole file, checked. Raises ValueError with every bad row's line and reason."""
    rows: list[Written] = []
    problems = []
    first: dict[Any, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines(): texts may hold U+2028
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSONL in UTF-8, got other bytes (at {error.start}): {EXPECTED}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _parse(raw := json.loads(line))
            if not is_unicode(json.dumps(raw, ensure_ascii=False)):
                raise ValueError(NO_UNICODE)
            earlier = first.setdefault((row.id, row.messages, row.turns), number)
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


def _parse(raw: Any) -> Written:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    names = [name for name in ("id", "prompt", "turns") if raw.get(name) is not None]
    written = [name for name in ("completion", "completions") if name in raw]
    if not names or len(written) != 1:
        raise ValueError(f"{EXPECTED}; got {', '.join(map(str, raw)) or 'none'}")
    messages, turns = None, raw.get("turns")
    match raw.get("prompt"):
        case str() as text:
            turns = [text]
        case [*found] if all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in found):
            messages = tuple((str(m["role"]), str(m["content"])) for m in found)
        case None:
            pass
        case other:
            raise ValueError(f"prompt must be text or messages, got {str(other)[:80]}")
    texts = raw["completions"] if "completions" in raw else [raw["completion"]]
    for name, value in (("completions", texts), ("turns", turns)):
        if value is not None and not (isinstance(value, list) and value and all(isinstance(text, str) for text in value)):
            raise ValueError(f"{name} must be texts, got {str(value)[:80]}")
    return Written(str(raw["id"]) if "id" in names else None, messages, None if turns is None else tuple(turns), tuple(texts))


def matched(rows: Iterable[Written], items: Sequence[Item]) -> list[Completion]:
    """The completions of the items that the rows answer, in the items' order; items without one are left out.

    A row is an item's by its id, if what else it names is not another's; else by all its messages; else by its turns, where no messages
    stand before them.
    """
    rows = list(rows)
    by_id, by_messages, by_turns = ({getattr(row, key): row for row in rows} for key in ("id", "messages", "turns"))
    found = []
    for item in items:
        turns, messages = tuple(item.turns), _messages(item)
        row = by_id.get(item.id)
        if row is not None and (row.turns not in (None, turns) or row.messages not in (None, messages)):
            row = None
        row = row or by_messages.get(messages) or (None if item.context else by_turns.get(turns))
        if row is not None and len(row.texts) == len(item.turns):
            found.append(Completion(item.id, item.turns, list(row.texts), [], []))
    return found


def _messages(item: Item) -> Messages:
    """What is asked first."""
    asked = ("text" if item.plain else "user", item.turns[0])
    return (*((message["role"], message["content"]) for message in item.context), asked)
