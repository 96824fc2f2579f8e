"""Files of completions of another model.

Such a file is a cell of its own: it is judged like the others and not trained.

A file is JSONL, one object a line, or a JSON list of objects. A row names its prompt by `id` (of an item), by
`prompt` (text, or all messages) or by `turns` (the user's texts of a conversation). The completion is
`completion` (text) or `completions` (one text a turn). A `completions.jsonl` of the store is such a file. Two
foreign formats are read too: AlpacaEval's model outputs (`instruction`, `output`) and FastChat's model
answers (`question_id`, `choices`; the first choice counts, as in FastChat).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import Completion, Item
from bench.text_files import (
    BadFile,
    NotJson,
    begins_as_list,
    describe,
    id_text,
    json_lines,
    listed_problems,
    printable,
    read_objects,
    text,
    texts,
)

EXPECTED = "expected id, prompt or turns, and completion (text) or completions (a text a turn)"
FORMS = f"{EXPECTED}; or AlpacaEval's instruction and output; or FastChat's question_id and choices"
FAILED_REQUEST = "$ERROR$"
OF_FASTCHAT = re.compile(r"^(mt_bench|arena_hard)-")  # prefix of an item's id, before the question's number


Messages = tuple[tuple[str, str], ...]  # (role, content)


@dataclass(frozen=True)
class WrittenRow:
    """One row of a file: the texts, one a turn, and the prompt that they answer.

    The row names its prompt in one or more of `id`, `messages`, `turns` and `question`. The others are None.
    """

    place: str  # file and line
    id: str | None
    messages: Messages | None
    turns: tuple[str, ...] | None
    texts: tuple[str, ...]
    question: str | None = None  # FastChat's number or name of the question
    model: str | None = None  # the model that wrote the texts; None where the row does not name it

    @property
    def prompt(self) -> tuple[str | None, Messages | None, tuple[str, ...] | None, str | None]:
        return self.id, self.messages, self.turns, self.question

    @property
    def prompt_text(self) -> str:
        """Text of the prompt for messages; the question or id where the row has no text."""
        named = f"question {self.question}" if self.question else f"id {self.id}"
        return " / ".join(self.turns or [content for _, content in self.messages or ()]) or named


def read_written(path: Path) -> list[WrittenRow]:
    """All rows of the file, checked. Raises BadFile with the line and reason of every bad row."""
    rows: list[WrittenRow] = []
    problems = []
    first: dict[Any, str] = {}
    for row in _parsed(path):
        if isinstance(row, BadFile):
            problems.append(str(row))
        elif (earlier := first.setdefault(row.prompt, row.place)) != row.place:
            problems.append(
                f"{row.place}: answers the same prompt as {earlier}. A prompt has one completion: remove one of the rows"
            )
        else:
            rows.append(row)
    models = dict.fromkeys(row.model for row in rows if row.model is not None)
    if len(models) > 1:
        problems.append(
            f"{path}: expected the completions of one model, got {printable(', '.join(list(models)[:5]))}"
        )
    if problems:
        raise BadFile(listed_problems(problems))
    if not rows:
        raise BadFile(f"{path}: no rows; {FORMS}")
    return rows


def _parsed(path: Path) -> Iterator[WrittenRow | BadFile]:
    """Rows of the file; a bad row is a BadFile with the reason.

    Raises BadFile for a file that cannot be read or does not begin with a JSON line.
    """
    if begins_as_list(path):
        yield from (_written_or_bad(row, place) for place, row in read_objects(path))
        return
    begun = False
    for line, parse in json_lines(path):
        try:
            raw = parse()
        except BadFile as error:
            if not begun and isinstance(error, NotJson):
                raise BadFile(f"{error}; expected one object a line, or a JSON list of objects") from error
            yield error
        else:
            yield _written_or_bad(raw, f"{path}:{line}")
        begun = True


def _written_or_bad(raw: Any, place: str) -> WrittenRow | BadFile:
    try:
        row = _row(raw, place)
        if FAILED_REQUEST in row.texts:
            raise BadFile(
                f"{place}: the completion is {FAILED_REQUEST}, FastChat's mark of a failed request. Remove the row"
            )
        return row
    except BadFile as error:
        return error


def _row(raw: Any, place: str) -> WrittenRow:
    if not isinstance(raw, Mapping):
        raise BadFile(f"{place}: expected an object, got {describe(raw)}")
    if "choices" in raw:
        question = id_text(raw.get("question_id"), f"{place}: question_id")
        model = None if raw.get("model_id") is None else id_text(raw["model_id"], f"{place}: model_id")
        return WrittenRow(place, None, None, None, tuple(first_choice(raw, place)), question, model)
    if "instruction" in raw and "output" in raw:
        instruction, output = (text(raw[key], f"{place}: {key}") for key in ("instruction", "output"))
        model = None if raw.get("generator") is None else id_text(raw["generator"], f"{place}: generator")
        return WrittenRow(place, None, None, (instruction,), (output,), model=model)
    names = [key for key in ("id", "prompt", "turns") if raw.get(key) is not None]
    columns = [key for key in ("completion", "completions") if key in raw]
    if not names or len(columns) != 1:
        raise BadFile(f"{place}: {FORMS}; got {describe(raw)}")
    item_id = id_text(raw["id"], f"{place}: id") if "id" in names else None
    messages, turns = _prompt(raw.get("prompt"), place)
    if turns is None and raw.get("turns") is not None:
        turns = tuple(texts(raw["turns"], f"{place}: turns"))
    if "completion" in raw:
        return WrittenRow(place, item_id, messages, turns, (text(raw["completion"], f"{place}: completion"),))
    return WrittenRow(
        place, item_id, messages, turns, tuple(texts(raw["completions"], f"{place}: completions"))
    )


def _prompt(prompt: Any, place: str) -> tuple[Messages | None, tuple[str, ...] | None]:
    """Messages of a prompt, or its turns: a text is one turn. Raises BadFile for another value."""
    match prompt:
        case None:
            return None, None
        case str():
            return None, (prompt,)
        case [_, *_] if all(
            isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt
        ):
            pairs = [
                [text(message[key], f"{place}: prompt[{n}].{key}") for key in ("role", "content")]
                for n, message in enumerate(prompt)
            ]
            return tuple((role, content) for role, content in pairs), None
    raise BadFile(f"{place}: prompt must be text or messages (role, content), got {describe(prompt)}")


def first_choice(row: Mapping[str, Any], place: str) -> list[str]:
    """Turns of the first choice in a row of FastChat's answers. Raises BadFile for a row without them."""
    match row.get("choices"):
        case [{"turns": [_, *_] as turns}, *_]:
            return [turn_text(turn, f"{place}: turns[{n}]") for n, turn in enumerate(turns)]
    raise BadFile(
        f"{place}: expected choices, the first of them with turns; got {describe(row.get('choices'))}"
    )


def turn_text(value: Any, what: str) -> str:
    """Text of a turn in FastChat's files. Raises BadFile for another value.

    Arena-Hard v0.1 writes a turn as an object with its text in `content`.
    """
    if isinstance(value, Mapping) and "content" in value:
        return text(value["content"], f"{what}.content")
    return text(value, what)


def matched(rows: Iterable[WrittenRow], items: Sequence[Item]) -> list[Completion]:
    """Completions from the rows, in the order of the items. Items without a row are left out.

    A row belongs to an item by its id; else by FastChat's question; else by all its messages; else by its
    turns, if the item has no messages before them. Raises BadFile for a row with the id of one item and the
    prompt of another, and for a row with more or fewer texts than its item has turns. FastChat's rows may
    have more texts: the first turns of a question are asked without the later ones.
    """
    rows = list(rows)
    by_id, by_messages, by_turns, by_question = (
        {key: row for row in rows if (key := getattr(row, kind)) is not None}
        for kind in ("id", "messages", "turns", "question")
    )
    completions = []
    for item in items:
        turns, question = tuple(item.turns), ("text" if item.plain else "user", item.turns[0])
        # The messages up to the first turn.
        messages: Messages = (*((message["role"], message["content"]) for message in item.context), question)
        row = by_id.get(item.id)
        if row is not None and (row.messages not in (None, messages) or not _agree(row.turns or (), turns)):
            prompts = f"item {printable(item.id)} asks {describe(' / '.join(item.turns))}, but the row answers {describe(row.prompt_text)}"
            raise BadFile(
                f"{row.place}: id and prompt belong to two items: {prompts}. If the prompts are right, remove the ids"
            )
        row = row or by_question.get(item.id) or by_question.get(OF_FASTCHAT.sub("", item.id))
        row = row or by_messages.get(messages) or (None if item.context else by_turns.get(turns))
        if row is None:
            continue
        n = len(item.turns)
        if len(row.texts) < n or (len(row.texts) > n and row.question is None):
            texts = f"{len(row.texts)} text{'s' * (len(row.texts) != 1)}"
            raise BadFile(f"{row.place}: expected one text a turn, {n} for item {item.id}, got {texts}")
        completions.append(Completion(item.id, item.turns, list(row.texts[:n]), [], []))
    return completions


def _agree(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the turns are equal, up to the shorter list."""
    return all(one == other for one, other in zip(some, others, strict=False))
