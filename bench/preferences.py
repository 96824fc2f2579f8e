"""Preference rows: reading a user's file, nested fractions, held-out split, and KTO's mismatched partners.

A file holds TRL's paired form (prompt, chosen, rejected) or its unpaired form (prompt, completion, label), as plain text or as
messages. The prompt may stand inside the conversations `chosen` and `rejected`; it does where `prompt` is absent, or is text beside
messages. Plain text stays plain: a prompt of one message with role "text", to which no chat template is applied.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench.config import Form
from bench.records import Message, Pair, Text, Unpaired

Row = TypeVar("Row", Pair, Unpaired)

SHOWN_BAD_ROWS = 20
ROLES = ("system", "developer", "user", "assistant", "tool")
EXPECTED = "expected columns prompt, chosen, rejected or prompt, completion, label"


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
    def form(self) -> Form:
        return "paired" if self.pairs else "unpaired"


def read_prompts(path: Path, answered: bool) -> list[Text]:
    """The different prompts of a file (.jsonl, .json with one object a line, or .parquet), in its order: `prompt`, text or messages, and
    where they must be answered `completion`, text or one assistant message. Completions that nobody asks for are empty.

    Raises BadRows with every bad row, and ValueError for a file of neither kind.
    """
    columns = ("prompt", "completion") if answered else ("prompt",)
    found: dict[str, Text] = {}
    problems = []
    for number, read in _raw_rows(path):
        try:
            raw = read()
            if not isinstance(raw, Mapping) or any(column not in raw for column in columns):
                came = ", ".join(map(str, raw)) if isinstance(raw, Mapping) else type(raw).__name__
                raise ValueError(f"expected columns {' and '.join(columns)}, got {came or 'none'}")
            prompt, texts = _prompt_and_completions(raw, columns[1:]) if answered else (_prompt(raw["prompt"]), [""])
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
        else:
            found.setdefault(prompt_key(prompt), Text(str(number), prompt, texts[0]))
    _raise_bad_rows(problems)
    if not found:
        raise BadRows(f"{path}: no rows; expected columns {' and '.join(columns)}")
    return list(found.values())


def _raise_bad_rows(problems: Sequence[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - SHOWN_BAD_ROWS} more"] if len(problems) > SHOWN_BAD_ROWS else []
        raise BadRows("\n".join([*problems[:SHOWN_BAD_ROWS], *more]))


def read_preferences(path: Path) -> Preferences:
    """Read and check a whole file (.jsonl, .json with one object a line, or .parquet).

    Raises BadRows with every bad row's line (JSONL) or row number (Parquet), and ValueError for a file of neither kind.
    """
    pairs: list[Pair] = []
    unpaired: list[Unpaired] = []
    problems = []
    for number, read in _raw_rows(path):
        try:
            row = _parse(read(), str(number))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
        else:
            (pairs if isinstance(row, Pair) else unpaired).append(row)  # type: ignore[arg-type]
    if pairs and unpaired:
        problems.append(f"{path}: {len(pairs)} paired and {len(unpaired)} unpaired rows; a file holds one form")
    _raise_bad_rows(problems)
    if not pairs and not unpaired:
        raise BadRows(f"{path}: no rows; {EXPECTED}")
    return Preferences(pairs, unpaired)


def _raw_rows(path: Path) -> Iterator[tuple[int, Callable[[], Any]]]:
    """(number, function that reads the row or raises ValueError); only a file that cannot be read at all raises here."""
    match path.suffix.lower():
        case ".parquet":
            import pyarrow.parquet

            try:
                rows = pyarrow.parquet.read_table(path).to_pylist()
            except pyarrow.ArrowException as error:
                raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
            for number, row in enumerate(rows, 1):
                yield number, partial(dict, row)
        case ".jsonl" | ".json":
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    text = line.removeprefix(codecs.BOM_UTF8).strip()
                    if text:
                        yield number, partial(_from_json, text)
        case _:
            raise ValueError(f"{path}: expected .jsonl, .json (one object a line) or .parquet")


def _from_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start} of the line): save the file as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); a line holds one object") from error


def _parse(raw: Any, row_id: str) -> Pair | Unpaired:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object with named columns, got {type(raw).__name__}")
    if "chosen" in raw and "rejected" in raw:
        prompt, (chosen, rejected) = _prompt_and_completions(raw, ("chosen", "rejected"))
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same text: nothing to learn; remove the row")
        return Pair(row_id, prompt, chosen, rejected, "", "")
    if "completion" in raw and "label" in raw:
        prompt, (completion,) = _prompt_and_completions(raw, ("completion",))
        if not isinstance(raw["label"], bool):
            raise ValueError(f"label must be true (desirable) or false, got {raw['label']!r}")
        return Unpaired(row_id, prompt, completion, raw["label"], "")
    raise ValueError(f"{EXPECTED}; got {', '.join(map(str, raw)) or 'none'}")


def _prompt_and_completions(raw: Mapping[str, Any], columns: tuple[str, ...]) -> tuple[list[Message], list[str]]:
    """A row's prompt and the texts of its completions, in any of the accepted shapes."""
    values, prompt = [raw[column] for column in columns], raw.get("prompt")
    if all(isinstance(value, str) for value in values):
        if prompt is None:
            raise ValueError(f"plain text needs a prompt column beside {' and '.join(columns)}")
        return _prompt(prompt), [_filled(value, column) for value, column in zip(values, columns, strict=True)]
    conversations = [_messages(value, column) for value, column in zip(values, columns, strict=True)]
    if isinstance(prompt, list):
        messages = _prompt(prompt)
    elif len(columns) == 1:
        raise ValueError("a completion of messages needs a prompt of messages")
    else:
        shared = _shared(*conversations)
        if not shared:
            raise ValueError("chosen and rejected share no first messages, and no prompt of messages is given")
        messages = _prompt(conversations[0][:shared])
        conversations = [conversation[shared:] for conversation in conversations]
    return messages, [_one_assistant(rest, column) for rest, column in zip(conversations, columns, strict=True)]


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many first messages two conversations share, the last of either aside: that is its completion."""
    return len(list(itertools.takewhile(lambda both: both[0] == both[1], zip(chosen[:-1], rejected[:-1], strict=False))))


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "text", "content": _filled(value, "prompt")}]
    messages = _messages(value, "prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"prompt must end in a user's message, got roles {_roles(messages)}")
    _filled(messages[-1]["content"], "prompt")
    return messages


def _filled(value: str, column: str) -> str:
    if not value.strip():
        raise ValueError(f"{column} is empty")
    return value


def _messages(value: Any, column: str) -> list[Message]:
    """Messages of a conversation, or ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} must be text or a list of messages, got {'[]' if value == [] else type(value).__name__}")
    for message in value:
        if not isinstance(message, Mapping) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ValueError(f"{column} holds a message without a known role ({', '.join(ROLES)}) and content text: {str(message)[:80]}")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _one_assistant(messages: Sequence[Message], column: str) -> str:
    if [m["role"] for m in messages] != ["assistant"]:
        raise ValueError(f"{column} must be exactly one assistant message after the prompt, got roles {_roles(messages)}")
    return _filled(messages[0]["content"], column)


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(m["role"] for m in messages) or "none"


# Splits and partners -------------------------------------------------------------------------------------------------


def prompt_key(prompt: Sequence[Message]) -> str:
    return json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_heldout(rows: Sequence[Row], heldout_fraction: float) -> tuple[list[Row], list[Row]]:
    """(train, held-out) with every prompt on one side; which side depends on the prompt's text alone."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        (heldout if hash_fraction(prompt_key(row.prompt)) < heldout_fraction else train).append(row)
    return train, heldout


def nested_subset(rows: Sequence[Row], fraction: float, seed: int) -> list[Row]:
    """The first round(fraction * n) rows of a seeded order, at least one: a smaller fraction is inside a larger one."""
    order = list(range(len(rows)))
    random.Random(f"fraction/{seed}").shuffle(order)
    keep = sorted(order[: max(1, round(fraction * len(rows)))])
    return [rows[i] for i in keep]


def partners(prompts: Sequence[str], seed: int) -> list[int]:
    """For each row the index of a row with another prompt: the next such one on a seeded cycle through all rows.

    Raises ValueError when all rows have one prompt: then no completion is mismatched.
    """
    if len(set(prompts)) < 2:
        raise ValueError("mismatched completions need rows of at least two prompts")
    order = list(range(len(prompts)))
    random.Random(f"partners/{seed}").shuffle(order)
    partner = [0] * len(prompts)
    following = order[0]
    for row in reversed([*order, *order]):  # backwards, twice round: rows at the end of the cycle look past its start
        partner[row] = following if prompts[following] != prompts[row] else partner[following]
        following = row
    return partner


def with_partners(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows that carry the completions which estimate KTO's KL term at their prompts."""
    index = partners([prompt_key(row.prompt) for row in rows], seed)
    fill: Callable[[Any, Any], Any] = _fill_pair if isinstance(rows[0], Pair) else _fill_unpaired
    return [fill(row, rows[i]) for row, i in zip(rows, index, strict=True)]


def _fill_pair(row: Pair, partner: Pair) -> Pair:
    return Pair(row.id, row.prompt, row.chosen, row.rejected, partner.chosen, partner.rejected)


def _fill_unpaired(row: Unpaired, partner: Unpaired) -> Unpaired:
    return Unpaired(row.id, row.prompt, row.completion, row.label, partner.completion)
