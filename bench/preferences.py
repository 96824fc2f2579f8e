"""Preference rows: reading a user's file, nested fractions, held-out split, and KTO's mismatched partners.

A file holds TRL's paired form (prompt, chosen, rejected) or its unpaired form (prompt, completion, label), as plain text or as
messages. The prompt may stand inside `chosen` and `rejected`, as what both begin with; it does where `prompt` is absent, or is text
beside messages. Plain text stays plain: a prompt of one message with role "text", to which no chat template is applied.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench.config import Form
from bench.records import Message, Pair, Text, Unpaired

Row = TypeVar("Row", Pair, Unpaired)
T = TypeVar("T")

SHOWN_BAD_ROWS = 20
PUNCTUATION = " .,:;!?\"'`"
ROLES = ("system", "developer", "user", "assistant", "tool")
EXPECTED = "expected columns prompt, chosen, rejected or prompt, completion, label"


class BadRows(ValueError):
    """The file holds rows that cannot be used; the message lists them with line number and reason."""


class Unusable(ValueError):
    """A row of the right shape that nothing can be learnt from; readers of public datasets drop it and count it by its `reason`."""

    def __init__(self, text: str, reason: str):
        super().__init__(text)
        self.reason = reason


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
    for number, read in raw_rows(path):
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
    for number, read in raw_rows(path):
        try:
            row = parse_row(read(), str(number))
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


def raw_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, Callable[[], Any]]]:
    """(number, function that reads the row or raises ValueError); only a file that cannot be read at all raises here.

    `columns`: of a Parquet file only these are read, all where none are named.
    JSON is one object a line (.jsonl, .json, either with .gz), or a list of objects in a .json file.
    """
    match path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower():
        case ".parquet":
            import pyarrow.parquet

            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    wanted = [name for name in file.schema_arrow.names if not columns or name in columns]
                    batches = file.iter_batches(1024, columns=wanted)
                    for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                        yield number, partial(dict, row)
            except pyarrow.ArrowException as error:
                raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
        case ".jsonl" | ".json":
            with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
                if path.suffix.lower() == ".json" and file.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":  # type: ignore[union-attr]
                    for number, row in enumerate(_json_list(path, file.read()), 1):
                        yield number, partial(_sound, row)
                    return
                for number, line in enumerate(file, 1):
                    text = line.removeprefix(codecs.BOM_UTF8).strip()
                    if text:
                        yield number, partial(_from_json, text)
        case _:
            raise ValueError(f"{path}: expected .jsonl, .json (one object a line, or a list of them), either with .gz, or .parquet")


def _sound(row: Any) -> Any:
    """The row, where it can be written as UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"holds {half}, half of a character that takes two: write the whole one, or none") from error
    return row


def _json_list(path: Path, text: bytes) -> list[Any]:
    try:
        return json.loads(text.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ValueError(f"{path}: begins as a list of objects and is not JSON ({error})") from error


def _from_json(line: bytes) -> Any:
    try:
        return _sound(json.loads(line.decode())) if b"\\u" in line else json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start} of the line): save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); a line holds one object") from error


def parse_row(raw: Any, row_id: str) -> Pair | Unpaired:
    """A row in any of TRL's forms; ValueError says what is wrong with it."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object with named columns, got {type(raw).__name__}")
    if "chosen" in raw and "rejected" in raw:
        prompt, (chosen, rejected) = _prompt_and_completions(raw, ("chosen", "rejected"))
        return make_pair(row_id, prompt, chosen, rejected)
    if "completion" in raw and "label" in raw:
        prompt, (completion,) = _prompt_and_completions(raw, ("completion",))
        if not isinstance(raw["label"], bool):
            raise ValueError(f"label must be true (desirable) or false, got {raw['label']!r}")
        return Unpaired(row_id, prompt, completion, raw["label"], "")
    raise ValueError(f"{EXPECTED}; got {', '.join(map(str, raw)) or 'none'}")


def make_pair(row_id: str, prompt: list[Message], chosen: str, rejected: str) -> Pair:
    """Raises Unusable where the two completions, or one of them or the prompt, leave nothing to learn."""
    _filled(prompt[-1]["content"], "prompt")
    if _filled(chosen, "chosen") == _filled(rejected, "rejected"):
        raise Unusable("chosen and rejected are the same text: nothing to learn; remove the row", "same completions")
    return Pair(row_id, prompt, chosen, rejected, "", "")


def _prompt_and_completions(raw: Mapping[str, Any], columns: tuple[str, ...]) -> tuple[list[Message], list[str]]:
    """A row's prompt and the texts of its completions, in any of the accepted shapes."""
    values, prompt = [raw[column] for column in columns], raw.get("prompt")
    if all(isinstance(value, str) for value in values):
        if prompt is None:
            if len(columns) == 1:
                raise ValueError("plain text needs a prompt column beside completion")
            prompt, values = _implicit(*values)
        return _prompt(prompt), [_filled(value, column) for value, column in zip(values, columns, strict=True)]
    conversations = [read_messages(value, column) for value, column in zip(values, columns, strict=True)]
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


def _implicit(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """The prompt that two plain texts begin with, and their ends; a space between belongs to the ends, as in TRL's extract_prompt."""
    shared = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    shared -= chosen[:shared].endswith(" ")
    if not chosen[:shared].strip():
        raise ValueError("chosen and rejected begin differently, and plain text needs its prompt at their start or in a prompt column")
    return chosen[:shared], [chosen[shared:], rejected[shared:]]


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many first messages two conversations share, the last of either aside: that is its completion."""
    return len(list(itertools.takewhile(lambda both: both[0] == both[1], zip(chosen[:-1], rejected[:-1], strict=False))))


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "text", "content": _filled(value, "prompt")}]
    messages = read_messages(value, "prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"prompt must end in a user's message, got roles {_roles(messages)}")
    _filled(messages[-1]["content"], "prompt")
    return messages


def _filled(value: str, column: str) -> str:
    if not value.strip():
        raise Unusable(f"{column} is empty", "empty prompt" if column == "prompt" else "empty completion")
    return value


def read_messages(value: Any, column: str) -> list[Message]:
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


def normalised(text: str) -> str:
    """A text less what copies of it differ in: letter case, width of characters, white space, punctuation at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(PUNCTUATION) or text


def prompt_group(prompt: Sequence[Message]) -> str:
    """What copies of a prompt have in common: its roles and normalised texts."""
    return json.dumps([[m["role"], normalised(m["content"])] for m in prompt], ensure_ascii=False)


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


def nested_subset(rows: Sequence[T], fraction: float, seed: int) -> list[T]:
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
