"""Preference rows: reading a user's file, nested fractions, held-out split, and KTO's mismatched partners.

A file holds TRL's paired form (prompt, chosen, rejected; the prompt may stand inside both conversations) or its unpaired form
(prompt, completion, label), as plain text or as messages. Plain text stays plain: a prompt of one message with role "text",
to which no chat template is applied.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.records import Message, Pair, Unpaired

Row = TypeVar("Row", Pair, Unpaired)

SHOWN_BAD_ROWS = 20


class BadRows(ValueError):
    """The file holds rows that cannot be used; the message lists them with line number and reason."""


@dataclass(frozen=True)
class Preferences:
    """Either form, not both: the list of the other is empty."""

    pairs: list[Pair]
    unpaired: list[Unpaired]

    @property
    def rows(self) -> list[Pair] | list[Unpaired]:
        return self.pairs or self.unpaired

    @property
    def form(self) -> str:
        return "paired" if self.pairs else "unpaired"


def read_preferences(path: Path) -> Preferences:
    """Read and check a whole file (.jsonl, .json with one object a line, or .parquet).

    Raises BadRows with every bad row's line (JSONL) or row number (Parquet), and ValueError for a file of neither kind.
    """
    rows, problems = [], []
    for number, raw in _raw_rows(path):
        try:
            rows.append(_parse(raw, f"{number}"))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    pairs = [row for row in rows if isinstance(row, Pair)]
    unpaired = [row for row in rows if isinstance(row, Unpaired)]
    if pairs and unpaired:
        problems.append(f"{path}: {len(pairs)} paired and {len(unpaired)} unpaired rows; a file holds one form")
    if problems:
        more = [f"... and {len(problems) - SHOWN_BAD_ROWS} more"] if len(problems) > SHOWN_BAD_ROWS else []
        raise BadRows("\n".join(problems[:SHOWN_BAD_ROWS] + more))
    if not rows:
        raise BadRows(f"{path}: no rows; expected prompt, chosen, rejected or prompt, completion, label")
    return Preferences(pairs, unpaired)


def _raw_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path}: expected .jsonl, .json (one object a line) or .parquet")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    yield number, {"__error__": f"not JSON ({error})"}


def _parse(raw: Any, row_id: str) -> Pair | Unpaired:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object with named columns, got {type(raw).__name__}")
    if "__error__" in raw:
        raise ValueError(raw["__error__"])
    if "chosen" in raw and "rejected" in raw:
        prompt, chosen, rejected = _prompt_and_completions(raw, ("chosen", "rejected"))
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same text: nothing to learn; remove the row")
        return Pair(row_id, prompt, chosen, rejected, "", "")
    if "completion" in raw and "label" in raw:
        prompt, completion = _prompt_and_completions(raw, ("completion",))
        if not isinstance(raw["label"], bool):
            raise ValueError(f"label must be true (desirable) or false, got {raw['label']!r}")
        return Unpaired(row_id, prompt, completion, raw["label"], "")
    raise ValueError(f"expected columns prompt, chosen, rejected or prompt, completion, label; got {', '.join(map(str, raw)) or 'none'}")


def _prompt_and_completions(raw: Mapping[str, Any], columns: tuple[str, ...]) -> list[Any]:
    """[prompt messages, completion text, ...] of a row in any of the accepted shapes."""
    values = [raw[column] for column in columns]
    if all(isinstance(value, str) for value in values):
        if "prompt" not in raw:
            raise ValueError(f"plain text needs a prompt column beside {' and '.join(columns)}")
        texts = [_filled(value, column) for value, column in zip(values, columns, strict=True)]
        return [_prompt(raw["prompt"]), *texts]
    messages = [_messages(value, column) for value, column in zip(values, columns, strict=True)]
    if raw.get("prompt") is not None:
        prompt = _prompt(raw["prompt"])
    else:
        if len(columns) == 1:
            raise ValueError("an unpaired row needs a prompt column")
        shared = 0
        while all(len(m) > shared for m in messages) and all(m[shared] == messages[0][shared] for m in messages):
            shared += 1
        prompt, messages = messages[0][:shared], [m[shared:] for m in messages]
        if not prompt:
            raise ValueError("no prompt column, and chosen and rejected share no first messages")
    return [prompt, *(_one_assistant(m, column) for m, column in zip(messages, columns, strict=True))]


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "text", "content": _filled(value, "prompt")}]
    return _messages(value, "prompt")


def _filled(value: str, column: str) -> str:
    if not value.strip():
        raise ValueError(f"{column} is empty")
    return value


def _messages(value: Any, column: str) -> list[Message]:
    """Messages of a conversation, or ValueError. Text among messages counts as one assistant message."""
    if isinstance(value, str) and column != "prompt":
        return [{"role": "assistant", "content": _filled(value, column)}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} must be text or a list of messages, got {type(value).__name__}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"{column} holds a message without role and content text: {str(message)[:80]}")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _one_assistant(messages: Sequence[Message], column: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"{column} must end in exactly one assistant message after the prompt, got roles {[m['role'] for m in messages]}")
    return _filled(messages[0]["content"], column)


# Splits and partners -------------------------------------------------------------------------------------------------


def prompt_key(prompt: Sequence[Message]) -> str:
    return json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_heldout(rows: Sequence[Row], heldout_fraction: float) -> tuple[list[Row], list[Row]]:
    """(train, held-out) with every prompt on one side; which side depends on the prompt's text alone."""
    train = [row for row in rows if hash_fraction(prompt_key(row.prompt)) >= heldout_fraction]
    heldout = [row for row in rows if hash_fraction(prompt_key(row.prompt)) < heldout_fraction]
    return train, heldout


def nested_subset(rows: Sequence[Row], fraction: float, seed: int) -> list[Row]:
    """The first round(fraction * n) rows of a seeded order, at least one: a smaller fraction is inside a larger one."""
    order = list(range(len(rows)))
    random.Random(f"fraction/{seed}").shuffle(order)
    keep = sorted(order[: max(1, round(fraction * len(rows)))])
    return [rows[i] for i in keep]


def partners(prompts: Sequence[str], seed: int) -> list[int]:
    """For each row the index of a row with another prompt, from one seeded cycle through all rows.

    Raises ValueError when all rows have one prompt: then no completion is mismatched.
    """
    if len(set(prompts)) < 2:
        raise ValueError("mismatched completions need rows of at least two prompts")
    order = list(range(len(prompts)))
    random.Random(f"partners/{seed}").shuffle(order)
    chosen = [0] * len(prompts)
    for position, row in enumerate(order):
        step = next(s for s in range(1, len(order)) if prompts[order[(position + s) % len(order)]] != prompts[row])
        chosen[row] = order[(position + step) % len(order)]
    return chosen


def with_partners(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows that carry the completions which estimate KTO's KL term at their prompts."""
    index = partners([prompt_key(row.prompt) for row in rows], seed)
    fill: Callable[[Any, Any], Any] = _fill_pair if isinstance(rows[0], Pair) else _fill_unpaired
    return [fill(row, rows[i]) for row, i in zip(rows, index, strict=True)]


def _fill_pair(row: Pair, partner: Pair) -> Pair:
    return Pair(row.id, row.prompt, row.chosen, row.rejected, partner.chosen, partner.rejected)


def _fill_unpaired(row: Unpaired, partner: Unpaired) -> Unpaired:
    return Unpaired(row.id, row.prompt, row.completion, row.label, partner.completion)
