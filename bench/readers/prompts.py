"""Prompts of a user's file, for the loops: alone, with a completion, or as conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.readers.conversations import first_turn, messages_of
from bench.readers.rows import (
    BadRows,
    Unusable,
    check_columns,
    column_names,
    prompt_and_completions,
    prompt_messages,
    raise_bad_rows,
    raw_rows,
    refusal,
)
from bench.readers.subsets import prompt_key
from bench.records import Text


@dataclass(frozen=True)
class Prompts:
    """Prompts of a file, each with its completion, or an empty one where it was not asked for.

    `dropped`: conversations that cannot be used, by reason; None for a file of prompts, which has to be right.
    """

    rows: list[Text]
    dropped: Counter[str] | None

    def different(self) -> list[Text]:
        """The first row of each prompt."""
        by_key: dict[str, Text] = {}
        for row in self.rows:
            by_key.setdefault(prompt_key(row.prompt), row)
        return list(by_key.values())


def read_prompts(path: Path, with_completions: bool) -> Prompts:
    """Prompts of a file (.jsonl, .json with one object a line, or .parquet), in its order.

    Column `prompt` is text or messages. With `with_completions`, column `completion` (text or one assistant
    message) is needed too. A row with `messages` and no `completion` is a conversation (UltraChat, TRL), whose
    first turn is read. Raises BadRows with every bad row, and ValueError for a file of another kind.
    """
    columns = ("prompt", "completion") if with_completions else ("prompt",)
    expected = f"columns {' and '.join(columns)}, or messages"
    rows: list[Text] = []
    problems: list[str] = []
    dropped: Counter[str] = Counter()
    conversations = False
    for number, read in raw_rows(path):
        try:
            raw = read()
            if isinstance(raw, Mapping) and "messages" in raw and "completion" not in raw:
                conversations = True
                check_columns(raw, ("prompt", "messages"))
                try:
                    rows.append(first_turn(str(number), messages_of(raw["messages"])))
                except Unusable as error:
                    dropped[error.reason] += 1
                continue
            if not isinstance(raw, Mapping) or any(column not in raw for column in columns):
                raise ValueError(f"expected {expected}, got {column_names(raw)}")
            check_columns(raw, columns)
            prompt, texts = (
                prompt_and_completions(raw, columns[1:])
                if with_completions
                else (prompt_messages(raw["prompt"]), [""])
            )
        except ValueError as error:
            problems.append(refusal(f"{path}:{number}", error))
        else:
            rows.append(Text(str(number), prompt, texts[0]))
    raise_bad_rows(problems)
    if not rows:
        lost = "".join(f"; {n} dropped: {reason}" for reason, n in dropped.items())
        raise BadRows(f"{path}: no rows{lost}; expected {expected}")
    return Prompts(rows, dropped if conversations else None)
