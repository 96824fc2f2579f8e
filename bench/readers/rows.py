"""Reader of preference rows in TRL's formats, from a user's file.

A file holds paired rows (prompt, chosen, rejected) or unpaired rows (prompt, completion, label), as plain
text or as messages. The prompt may be the common beginning of `chosen` and `rejected`. This is so where
`prompt` is absent, or is text while the completions are messages. Plain text stays plain: it becomes a prompt
of one message with role "text", and no chat template is applied.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.config import Form
from bench.readers.subsets import normalised, prompt_key
from bench.records import Message, Pair, Unpaired
from bench.text_files import (
    ROW_LIMIT_ENV,
    BadFile,
    begins_as_list,
    describe,
    json_lines,
    listed_problems,
    printable,
    read_list,
    row_limit,
)

ROLES = ("system", "developer", "user", "assistant", "tool")
EXPECTED = "expected columns prompt, chosen, rejected or prompt, completion, label"

# Columns that TRL or a chat template would read and this reader does not. A row with a value in one is
# refused.
NOT_TRAINED_ON = frozenset(
    {
        "tools",
        "functions",
        "tool_calls",
        "function_call",
        "images",
        "image",
        "videos",
        "video",
        "audios",
        "audio",
        "chat_template_kwargs",
    }
)
# Refused in a message; ignored as a column of a row.
THOUGHTS = frozenset({"reasoning_content", "reasoning", "thinking"})
# Columns without which a row means the same. They are ignored, and the rows that have them are counted.
NOT_READ = THOUGHTS | {
    "margin", "weight", "weights", "score", "score_chosen", "score_rejected", "chosen_score", "rejected_score", "ref_logps",
    "system", "system_prompt", "history",  # columns of other trainers, put before the prompt there
    "ref_chosen_logps", "ref_rejected_logps",
}  # fmt: skip
NOT_READ_IN_MESSAGES = frozenset({"name", "weight", "train"})
LEFT_ASIDE = NOT_TRAINED_ON | NOT_READ  # columns that are checked in addition to those that are read


# Ends of the reasons for which rows are noted and kept.
OTHER_PROMPT = "with a prompt that its messages do not hold: the messages count"
OPPOSITE = "with the opposite of another row of the same prompt"


class BadRows(ValueError):
    """Raised for a file with rows that cannot be used. The message lists them with line number and reason."""


class Unusable(ValueError):
    """Raised for a row of the right format that nothing can be learnt from.

    Readers of public datasets drop such a row and count it by `reason`.
    """

    def __init__(self, text: str, reason: str):
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Preferences:
    """Rows of a file, all paired or all unpaired. The list of the other form is empty."""

    pairs: list[Pair]
    unpaired: list[Unpaired]
    noted: Counter[str] = field(default_factory=Counter)  # counts of kept rows by what is ignored in them

    @property
    def rows(self) -> list[Pair] | list[Unpaired]:
        return self.pairs or self.unpaired

    @property
    def form(self) -> Form:
        return "paired" if self.pairs else "unpaired"


def refusal(place: str, error: ValueError) -> str:
    """Message about a bad row: its place, then the reason."""
    return str(error) if isinstance(error, BadFile) else f"{place}: {error}"


def column_names(raw: Any) -> str:
    """Names of a row's columns, for messages."""
    return printable(", ".join(map(str, raw)))[:200] or "none" if isinstance(raw, Mapping) else describe(raw)


def raise_bad_rows(problems: Sequence[str]) -> None:
    if problems:
        raise BadRows(listed_problems(problems))


def read_preferences(path: Path) -> Preferences:
    """Preference rows of a file (.jsonl, .json with one object a line, or .parquet), all checked.

    Raises BadRows with every bad row's line (JSONL) or row number (Parquet), and ValueError for a file of
    another kind.
    """
    pairs: list[Pair] = []
    unpaired: list[Unpaired] = []
    problems = []
    noted: Counter[str] = Counter()
    for number, read in raw_rows(path):
        try:
            raw = read()
            row = parse_row(raw, str(number))
            noted.update(check_columns(raw))
            if isinstance(row, Pair):
                noted.update(
                    f"with {name}, which is not read of a pair"
                    for name in ("completion", "label")
                    if _is_filled(raw.get(name))
                )
        except ValueError as error:
            problems.append(refusal(f"{path}:{number}", error))
        else:
            (pairs if isinstance(row, Pair) else unpaired).append(row)  # type: ignore[arg-type]
    if pairs and unpaired:
        problems.append(
            f"{path}: holds {len(pairs)} paired and {len(unpaired)} unpaired rows. A file must hold one kind: split it"
        )
    raise_bad_rows(problems)
    if not pairs and not unpaired:
        raise BadRows(f"{path}: no rows; {EXPECTED}")
    return Preferences(pairs, unpaired, noted)


def raw_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Pairs (number, function that reads the row or raises ValueError) of a file.

    `columns`: of a Parquet file only these columns and those in LEFT_ASIDE are read; all columns if empty.
    JSON is one object a line (.jsonl, .json), or a list of objects in a .json file; both also as .gz. Raises
    ValueError only for a file that cannot be read at all.
    """
    match path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower():
        case ".parquet":
            yield from _parquet_rows(path, {*columns, *LEFT_ASIDE} if columns else None)
        case ".json" if begins_as_list(path):
            for number, row in enumerate(read_list(path), 1):
                yield number, lambda row=row: row  # type: ignore[misc]
        case ".jsonl" | ".json":
            yield from json_lines(path)
        case _:
            raise ValueError(
                f"{path}: expected .jsonl, .json (one object a line, or a list of them), either with .gz, or .parquet"
            )


def _parquet_rows(path: Path, columns: set[str] | None) -> Iterator[tuple[int, Callable[[], Any]]]:
    import pyarrow.parquet

    number, limit = 0, row_limit()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise BadFile(f"{path}: holds the column {printable(repr(twice[0]))} twice")
            for batch in file.iter_batches(
                1024, columns=[name for name in names if columns is None or name in columns]
            ):
                for place in range(batch.num_rows):
                    number += 1
                    yield number, partial(_parquet_row, batch, place, f"{path}:{number}", limit)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadFile(f"{path}: cannot be read as Parquet: {printable(str(error))}") from error


@dataclass(frozen=True)
class Unreadable:
    """Placeholder of a value that Python cannot hold.

    A row is refused for it only where the value is needed.
    """

    reason: str

    def __repr__(self) -> str:
        return f"({self.reason})"


def _parquet_row(batch: Any, place: int, where: str, limit: int) -> dict[str, Any]:
    """Columns of one row, by the rules of text_files: a number that is not finite becomes None.

    Raises BadFile for a row of more than `limit` characters.
    """
    row, size = {}, 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name], n = _plain(column[place].as_py())
        # No UTF-8, or a date out of Python's range.
        except (ValueError, OverflowError, RecursionError) as error:
            row[name], n = Unreadable(str(error)), 0
        size += n
    if size > limit:
        raise BadFile(
            f"{where}: the row is larger than {limit >> 20} MiB; set {ROW_LIMIT_ENV} to allow larger rows"
        )
    return row


def _plain(value: Any) -> tuple[Any, int]:
    """The value as JSON would hold it, and its number of characters."""
    match value:
        case str() | bytes():
            return value, len(value)
        case float():
            return value if math.isfinite(value) else None, 0
        case dict():
            parts = {name: _plain(part) for name, part in value.items()}
            return {name: part for name, (part, _) in parts.items()}, sum(n for _, n in parts.values())
        case list():
            items = [_plain(part) for part in value]
            return [part for part, _ in items], sum(n for _, n in items)
    return value, 0


def check_columns(raw: Mapping[str, Any], known: Sequence[str] = ()) -> list[str]:
    """Notes on the columns of a row that are ignored, in words. `known`: columns that its reader reads.

    Raises ValueError for a row with values that training would have to use and does not (NOT_TRAINED_ON).
    """
    filled = [
        name for name, value in raw.items() if name in LEFT_ASIDE and name not in known and _is_filled(value)
    ]
    if refused := [name for name in filled if name in NOT_TRAINED_ON]:
        raise ValueError(_not_trained_on(refused))
    messages = [
        message
        for value in raw.values()
        if isinstance(value, list)
        for message in value
        if isinstance(message, Mapping)
    ]
    fields = {
        name
        for message in messages
        if "role" in message
        for name in NOT_READ_IN_MESSAGES
        if _is_filled(message.get(name))
    }
    notes = [
        f"with {name}, which is not read"
        for name in [*filled, *(f"{name} in a message" for name in sorted(fields))]
    ]
    return [*notes, OTHER_PROMPT] if _has_other_prompt(raw) else notes


def _has_other_prompt(raw: Mapping[str, Any]) -> bool:
    """Whether a row's text prompt differs from the messages before its completion.

    It does not differ where messages inside it make up at least half of it, nor where a message contains it
    and is at most twice as long.
    """
    prompt, conversation = raw.get("prompt"), raw.get("chosen")
    if (
        not isinstance(prompt, str)
        or not isinstance(conversation, list)
        or not (wanted := normalised(prompt).strip())
    ):
        return False
    contents = [message.get("content") for message in conversation[:-1] if isinstance(message, Mapping)]
    if prompt in contents:
        return False
    texts = [normalised(content).strip() for content in contents if isinstance(content, str)]
    inside = sum(len(text) for text in texts if text in wanted)
    return (
        bool(texts)
        and 2 * inside < len(wanted)
        and not any(wanted in text and 2 * len(wanted) >= len(text) for text in texts)
    )


def opposites(rows: Sequence[Pair] | Sequence[Unpaired]) -> int:
    """Number of rows that contradict another row of the same prompt.

    Two rows contradict each other with the same two completions swapped, or with one completion and the other
    label.
    """
    counts = Counter(_preference_of(row) for row in rows)
    return sum(n for preference, n in counts.items() if _opposite(preference) in counts)


def _preference_of(row: Pair | Unpaired) -> tuple[str, str, str | bool]:
    return (
        (prompt_key(row.prompt), row.chosen, row.rejected)
        if isinstance(row, Pair)
        else (prompt_key(row.prompt), row.completion, row.label)
    )


def _opposite(preference: tuple[str, str, str | bool]) -> tuple[str, str, str | bool]:
    prompt, first, second = preference
    return (prompt, second, first) if isinstance(second, str) else (prompt, first, not second)


def _is_filled(value: Any) -> bool:
    """Whether a value is not empty.

    Files of columns fill empty places with null, an empty list or an object of nulls.
    """
    if isinstance(value, Mapping):
        return any(map(_is_filled, value.values()))
    return value is not None and value != "" and value != []


def _not_trained_on(names: Sequence[str]) -> str:
    return f"has {' and '.join(names)}, and bench cannot train on this. Remove the row"


def parse_row(raw: Any, row_id: str) -> Pair | Unpaired:
    """Pair or unpaired row from a row in any of TRL's forms.

    Raises ValueError with the reason for a bad row.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object with named columns, got {describe(raw)}")
    check_columns(raw)
    if "chosen" in raw and "rejected" in raw:
        prompt, (chosen, rejected) = prompt_and_completions(raw, ("chosen", "rejected"))
        return make_pair(row_id, prompt, chosen, rejected)
    if "completion" in raw and "label" in raw:
        prompt, (completion,) = prompt_and_completions(raw, ("completion",))
        if not isinstance(raw["label"], bool):
            raise ValueError(f"label must be true (desirable) or false, got {describe(raw['label'])}")
        return Unpaired(row_id, prompt, completion, raw["label"], "")
    raise ValueError(f"{EXPECTED}; got {column_names(raw)}")


def make_pair(row_id: str, prompt: list[Message], chosen: str, rejected: str) -> Pair:
    """A pair. Raises Unusable for equal completions, an empty completion or an empty prompt."""
    _filled(prompt[-1]["content"], "prompt")
    if _filled(chosen, "chosen") == _filled(rejected, "rejected"):
        raise Unusable(
            "chosen and rejected are the same text: nothing to learn; remove the row", "same completions"
        )
    return Pair(row_id, prompt, chosen, rejected, "", "")


def prompt_and_completions(
    raw: Mapping[str, Any], columns: tuple[str, ...]
) -> tuple[list[Message], list[str]]:
    """Prompt of a row and the texts of its completions, in any of the accepted formats."""
    values, prompt = [raw[column] for column in columns], raw.get("prompt")
    for column, value in zip(columns, values, strict=True):
        if not isinstance(value, (str, list)):
            raise ValueError(f"{column} must be text or a list of messages, got {describe(value)}")
    if not isinstance(prompt, (str, list, type(None))):
        raise ValueError(f"prompt must be text or a list of messages, got {describe(prompt)}")
    if len({type(value) for value in values}) > 1:
        kinds = [
            f"{column} is {'text' if isinstance(value, str) else 'a list'}"
            for column, value in zip(columns, values, strict=True)
        ]
        raise ValueError(f"{' and '.join(kinds)}: both must be text, or both a list of messages")
    if all(isinstance(value, str) for value in values):
        if prompt is None:
            if len(columns) == 1:
                raise ValueError("a completion of plain text needs a prompt column")
            prompt, values = _implicit(*values)
        return prompt_messages(prompt), [
            _filled(value, column) for value, column in zip(values, columns, strict=True)
        ]
    conversations = [read_messages(value, column) for value, column in zip(values, columns, strict=True)]
    if isinstance(prompt, list):
        messages = prompt_messages(prompt)
    elif len(columns) == 1:
        raise ValueError("a completion of messages needs a prompt of messages")
    else:
        # The last message of each is its completion.
        shared = _shared(*(conversation[:-1] for conversation in conversations))
        if not shared:
            raise ValueError(
                "chosen and rejected share no first messages, and no prompt of messages is given"
            )
        messages = prompt_messages(conversations[0][:shared])
        conversations = [conversation[shared:] for conversation in conversations]
    return messages, [
        _one_assistant(rest, column) for rest, column in zip(conversations, columns, strict=True)
    ]


def _implicit(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """Prompt of two plain texts, their common beginning, and the rest of each.

    A space between belongs to the rest, as in TRL's extract_prompt. Raises ValueError without a common
    beginning.
    """
    prompt = chosen[: _shared(chosen, rejected)].removesuffix(" ")
    if not prompt.strip():
        raise ValueError(
            "chosen and rejected have no common beginning. Plain text needs its prompt there or in a prompt column"
        )
    return prompt, [chosen.removeprefix(prompt), rejected.removeprefix(prompt)]


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Number of characters or messages at the start that are the same."""
    return len(
        list(itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    )


def prompt_messages(value: Any) -> list[Message]:
    """A prompt of text or messages as messages. Raises ValueError for another value."""
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
    """Messages of a conversation. Raises ValueError for another value."""
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{column} must be text or a list of messages, got {'an empty list' if value == [] else describe(value)}"
        )
    return [_message(message, f"message {number} of {column}") for number, message in enumerate(value, 1)]


def _message(message: Any, what: str) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{what} must have role and content, got {describe(message)}")
    if message["role"] not in ROLES:
        raise ValueError(f"{what}: role must be one of {', '.join(ROLES)}, got {describe(message['role'])}")
    if refused := [
        name for name in message if name in NOT_TRAINED_ON | THOUGHTS and _is_filled(message[name])
    ]:
        raise ValueError(f"{what} {_not_trained_on(refused)}")
    for name in ("weight", "train"):
        if message.get(name) in (0, False) and message.get(name) is not None:
            raise ValueError(
                f"{what} has {name}={message[name]!r}, but bench would train on the message all the same. Remove the row"
            )
    content = message["content"]
    if isinstance(content, list) and len(content) == 1 and _is_text_part(content[0]):
        content = content[0]["text"]
    if isinstance(content, list):
        kinds = ", ".join(
            str(part.get("type")) if isinstance(part, Mapping) else describe(part) for part in content
        )
        raise ValueError(
            f"{what}: content must be text, or one part of text, got {len(content)} parts ({printable(kinds)[:80]})"
        )
    if not isinstance(content, str):
        raise ValueError(f"{what}: content must be text, got {describe(content)}")
    return {"role": message["role"], "content": content}


def _is_text_part(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        return False
    return not any(_is_filled(value) for name, value in part.items() if name not in ("type", "text"))


def _one_assistant(messages: Sequence[Message], column: str) -> str:
    if [m["role"] for m in messages] != ["assistant"]:
        raise ValueError(
            f"{column} must be exactly one assistant message after the prompt, got roles {_roles(messages)}"
        )
    return _filled(messages[0]["content"], column)


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(m["role"] for m in messages) or "none"
