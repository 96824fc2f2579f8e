"""Completions that somebody else wrote: a file of them is a cell, judged like the others and not trained.

JSONL, one object a line, or a JSON list of objects. The prompt is named by `id` (an item's), by `prompt` (text, or all its messages) or by
`turns` (the user's texts of a conversation); what was written stands in `completion` (text) or `completions` (a text a turn). A
`completions.jsonl` of the store is such a file. Two forms of others are read as well: AlpacaEval's model outputs (`instruction`, `output`)
and FastChat's model answers (`question_id`, `choices`, of which the first counts, as in FastChat).
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
OF_FASTCHAT = re.compile(r"^(mt_bench|arena_hard)-")  # what an item of such a question is called before its number


Messages = tuple[tuple[str, str], ...]  # (role, content)


@dataclass(frozen=True)
class WrittenRow:
    """One row: texts a turn, and which prompt they answer - by what the row names, the others are None."""

    place: str  # file and line
    id: str | None
    messages: Messages | None
    turns: tuple[str, ...] | None
    texts: tuple[str, ...]
    question: str | None = None  # FastChat's number or name of it
    model: str | None = None  # who wrote it, where the row says so

    @property
    def prompt(self) -> tuple[str | None, Messages | None, tuple[str, ...] | None, str | None]:
        return self.id, self.messages, self.turns, self.question

    @property
    def asked(self) -> str:
        named = f"question {self.question}" if self.question else f"id {self.id}"
        return " / ".join(self.turns or [content for _, content in self.messages or ()]) or named


def read_written(path: Path) -> list[WrittenRow]:
    """The whole file, checked. Raises BadFile with every bad row's line and reason."""
    rows: list[WrittenRow] = []
    problems = []
    first: dict[Any, str] = {}
    for found in _parsed(path):
        if isinstance(found, BadFile):
            problems.append(str(found))
        elif (earlier := first.setdefault(found.prompt, found.place)) != found.place:
            problems.append(f"{found.place}: answers what {earlier} answers: a prompt has one completion")
        else:
            rows.append(found)
    models = dict.fromkeys(row.model for row in rows if row.model is not None)
    if len(models) > 1:
        problems.append(f"{path}: expected the completions of one model, got {printable(', '.join(list(models)[:5]))}")
    if problems:
        raise BadFile(listed_problems(problems))
    if not rows:
        raise BadFile(f"{path}: no rows; {FORMS}")
    return rows


def _parsed(path: Path) -> Iterator[WrittenRow | BadFile]:
    """Each row, or what is wrong with it. Raises BadFile for the file itself, and for one that does not begin with a JSON line."""
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
        found = _row(raw, place)
        if FAILED_REQUEST in found.texts:
            raise BadFile(f"{place}: the completion is {FAILED_REQUEST}, FastChat's mark of a request that failed: leave it out")
        return found
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
        asked, output = (text(raw[key], f"{place}: {key}") for key in ("instruction", "output"))
        model = None if raw.get("generator") is None else id_text(raw["generator"], f"{place}: generator")
        return WrittenRow(place, None, None, (asked,), (output,), model=model)
    names = [key for key in ("id", "prompt", "turns") if raw.get(key) is not None]
    written = [key for key in ("completion", "completions") if key in raw]
    if not names or len(written) != 1:
        raise BadFile(f"{place}: {FORMS}; got {describe(raw)}")
    own = id_text(raw["id"], f"{place}: id") if "id" in names else None
    messages, turns = _prompt(raw.get("prompt"), place)
    if turns is None and raw.get("turns") is not None:
        turns = tuple(texts(raw["turns"], f"{place}: turns"))
    if "completion" in raw:
        return WrittenRow(place, own, messages, turns, (text(raw["completion"], f"{place}: completion"),))
    return WrittenRow(place, own, messages, turns, tuple(texts(raw["completions"], f"{place}: completions")))


def _prompt(prompt: Any, place: str) -> tuple[Messages | None, tuple[str, ...] | None]:
    """Its messages, or the one turn that a text is."""
    match prompt:
        case None:
            return None, None
        case str():
            return None, (prompt,)
        case [_, *_] if all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt):
            found = [[text(message[key], f"{place}: prompt[{n}].{key}") for key in ("role", "content")] for n, message in enumerate(prompt)]
            return tuple((role, content) for role, content in found), None
    raise BadFile(f"{place}: prompt must be text or messages (role, content), got {describe(prompt)}")


def first_choice(row: Mapping[str, Any], place: str) -> list[str]:
    """The turns of the first of a FastChat answer's choices. Raises BadFile for a row without them."""
    match row.get("choices"):
        case [{"turns": [_, *_] as turns}, *_]:
            return [turn_text(turn, f"{place}: turns[{n}]") for n, turn in enumerate(turns)]
    raise BadFile(f"{place}: expected choices, of which the first has turns; got {describe(row.get('choices'))}")


def turn_text(value: Any, what: str) -> str:
    """A turn of FastChat's files; Arena-Hard v0.1 writes it as an object whose `content` is the text. Raises BadFile for anything else."""
    if isinstance(value, Mapping) and "content" in value:
        return text(value["content"], f"{what}.content")
    return text(value, what)


def matched(rows: Iterable[WrittenRow], items: Sequence[Item]) -> list[Completion]:
    """The completions of the items that the rows answer, in the items' order; items without one are left out.

    A row is an item's by its id; else by FastChat's question; else by all its messages; else by its turns, where no messages stand before
    them. Raises BadFile for a row that by its id is one item's and by its prompt another's, and for one with another number of texts
    than its item has turns, but FastChat's answers may have more: the first turns of a question are asked without the later ones.
    """
    rows = list(rows)
    by_id, by_messages, by_turns, by_question = (
        {key: row for row in rows if (key := getattr(row, kind)) is not None} for kind in ("id", "messages", "turns", "question")
    )
    found = []
    for item in items:
        turns, asked = tuple(item.turns), ("text" if item.plain else "user", item.turns[0])
        messages: Messages = (*((message["role"], message["content"]) for message in item.context), asked)  # what is asked first
        row = by_id.get(item.id)
        if row is not None and (row.messages not in (None, messages) or not _agree(row.turns or (), turns)):
            told = f"item {printable(item.id)} asks {describe(' / '.join(item.turns))}, and the row answers {describe(row.asked)}"
            raise BadFile(f"{row.place}: id and prompt are of two items: {told}; leave the ids out where the prompts are right")
        row = row or by_question.get(item.id) or by_question.get(OF_FASTCHAT.sub("", item.id))
        row = row or by_messages.get(messages) or (None if item.context else by_turns.get(turns))
        if row is None:
            continue
        n = len(item.turns)
        if len(row.texts) < n or (len(row.texts) > n and row.question is None):
            texts = f"{len(row.texts)} text{'s' * (len(row.texts) != 1)}"
            raise BadFile(f"{row.place}: {texts} written, and item {item.id} asks {n} turn{'s' * (n != 1)}: one text a turn is expected")
        found.append(Completion(item.id, item.turns, list(row.texts[:n]), [], []))
    return found


def _agree(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether turns are the same, as far as both go."""
    return all(one == other for one, other in zip(some, others, strict=False))
