"""Reads items from benchmarks' own files.

AlpacaEval: instructions with a baseline. FastChat: questions, references and answers. Arena-Hard: questions
and answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.models.hub import NotThere, fetch_file
from bench.readers.completions_file import FAILED_REQUEST, first_choice, turn_text
from bench.records import Item
from bench.text_files import (
    BadFile,
    describe,
    id_text,
    optional_text,
    printable,
    read_objects,
    read_rows,
    text,
)

HUB_DATASET, HUB_FILE = "tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"
HUB_ITEMS = Path(HUB_DATASET)  # In place of a file that a plan has to do without.
N_HUB_ITEMS = 805  # Items of HUB_FILE (AlpacaEval, https://github.com/tatsu-lab/alpaca_eval).


def read_alpaca_eval(path: Path) -> list[Item]:
    """Items of alpaca_eval_gpt4_baseline.json or a file like it.

    The file is a list of objects with `instruction` and the baseline's `output`. An item is named by its
    position. Raises BadFile with the place of an unusable row.
    """
    items = []
    for number, (place, row) in enumerate(read_objects(path, "objects with instruction and output")):
        _has(row, place, "instruction", "output")
        instruction, output = (text(row[key], f"{place}: {key}") for key in ("instruction", "output"))
        items.append(
            Item(
                f"alpaca_eval-{number}",
                optional_text(row.get("dataset"), f"{place}: dataset"),
                [instruction],
                baseline=[output],
            )
        )
    _check_baseline(path, items)
    return items


def read_mt_bench(questions: Path, references: Path | None = None, answers: Path | None = None) -> list[Item]:
    """Items of FastChat's question.jsonl, with `references` and the opponent's `answers` if given.

    Raises BadFile with the line of an unusable row, or with the question that has no answer.
    """
    right, theirs = (read_answers(path) if path else {} for path in (references, answers))
    items = []
    for place, row in read_rows(questions):
        _has(row, place, "question_id", "turns")
        if not isinstance(row["turns"], list) or not row["turns"]:
            raise BadFile(f"{place}: turns must be a list of texts, got {describe(row['turns'])}")
        key, turns = (
            id_text(row["question_id"], f"{place}: question_id"),
            [turn_text(turn, f"{place}: turns[{n}]") for n, turn in enumerate(row["turns"])],
        )
        if answers and key not in theirs:
            raise BadFile(
                f"{answers} has no answer to question {printable(key)} of {questions}. Use the answers to these questions."
            )
        for path, answer in ((references, right.get(key)), (answers, theirs.get(key))):
            if answer is not None and len(answer) < len(turns):
                raise BadFile(
                    f"{path}: question {printable(key)} has {len(turns)} turns, but {len(answer)} answers in this file"
                )
        category = optional_text(row.get("category"), f"{place}: category")
        items.append(
            Item(f"mt_bench-{key}", category, turns, baseline=theirs.get(key), reference=right.get(key))
        )
    if references and items and not any(item.reference for item in items):
        none = f"{references} has no reference for any of the {len(items)} questions of {questions}"
        raise BadFile(f"{none}. Use the references of these questions.")
    _check_baseline(answers, items)
    return _each_once(questions, items)


def read_arena_hard(questions: Path, answers: Path) -> list[Item]:
    """Items of Arena-Hard-Auto's question.jsonl (uid, category, prompt), with the baseline model's answers.

    The answers come from its model_answer file (uid, messages). Raises BadFile with the line of an unusable
    row, or with the question that has no answer.
    """
    theirs: dict[str, str] = {}
    answered: dict[str, tuple[str, str]] = {}  # By question: (place, prompt) in the messages of its answer.
    models: dict[str | None, None] = {}
    for place, row in read_rows(answers):
        _has(row, place, "uid", "messages")
        match row["messages"]:
            case [*before, {"role": "assistant", "content": content}]:
                answer = content.get("answer") if isinstance(content, dict) else content
                key = id_text(row["uid"], f"{place}: uid")
                theirs[key] = _answer(text(answer, f"{place}: the last message's answer"), place)
                prompts = [
                    message.get("content")
                    for message in before
                    if isinstance(message, dict) and message.get("role") == "user"
                ]
                if prompts and isinstance(prompts[-1], str):
                    answered[key] = place, prompts[-1]
            case other:
                raise BadFile(
                    f"{place}: the last message must be the assistant's (role and content), got {describe(other)}"
                )
        models[_model(row, "model", place)] = None
    _of_one_model(answers, models)
    items = []
    for place, row in read_rows(questions):
        _has(row, place, "uid", "prompt")
        key, prompt = id_text(row["uid"], f"{place}: uid"), text(row["prompt"], f"{place}: prompt")
        if key not in theirs:
            raise BadFile(
                f"{answers} has no answer to question {printable(key)} of {questions}. Use the answers to these questions."
            )
        if key in answered and answered[key][1].strip() != prompt.strip():
            there, other = answered[key]
            raise BadFile(
                f"{there}: this answers {describe(other)}, but question {printable(key)} of {questions} is {describe(prompt)}. "
                "Use the answers to these questions."
            )
        category = optional_text(row.get("category"), f"{place}: category")
        items.append(Item(f"arena_hard-{key}", category, [prompt], baseline=[theirs[key]]))
    _check_baseline(answers, items)
    return _each_once(questions, items)


def _has(row: Mapping[str, Any], place: str, *names: str) -> None:
    if any(key not in row for key in names):
        raise BadFile(f"{place}: expected {' and '.join(names)}, got {describe(row)}")


def _answer(answer: str, place: str) -> str:
    """The answer of a row. Raises BadFile for FastChat's mark of a failed request."""
    if answer == FAILED_REQUEST:
        failed = f"{place}: the answer is {FAILED_REQUEST}, FastChat's mark of a failed request"
        raise BadFile(f"{failed}. Generate the answer again, or remove the question.")
    return answer


def _check_baseline(path: Path | None, items: Sequence[Item]) -> None:
    """Raises BadFile if all baseline answers are empty, since such an opponent would lose every time."""
    answers = [text for item in items for text in item.baseline or ()]
    if answers and not any(answer.strip() for answer in answers):
        empty = f"{path}: each of its {len(answers)} answers is empty"
        raise BadFile(f"{empty}. An opponent with empty answers always loses. Use another file.")


def _each_once(path: Path, items: list[Item]) -> list[Item]:
    if not items:
        raise BadFile(f"{path}: expected a question on each line, got an empty file")
    if twice := [id for id, n in Counter(item.id for item in items).items() if n > 1]:
        shown = printable(twice[0].partition("-")[2])
        raise BadFile(
            f"{path}: question {shown} appears twice ({len(twice)} questions do). Give each question its own id."
        )
    return items


def read_answers(path: Path) -> dict[str, list[str]]:
    """The turns of each question's first choice. The last of repeated answers counts, as in FastChat."""
    answers = {}
    models: dict[str | None, None] = {}
    for place, row in read_rows(path):
        _has(row, place, "question_id", "choices")
        answers[id_text(row["question_id"], f"{place}: question_id")] = [
            _answer(turn, place) for turn in first_choice(row, place)
        ]
        models[_model(row, "model_id", place)] = None
    _of_one_model(path, models)
    return answers


def _model(row: Mapping[str, Any], key: str, place: str) -> str | None:
    return None if row.get(key) is None else id_text(row[key], f"{place}: {key}")


def _of_one_model(path: Path, models: Mapping[str | None, None]) -> None:
    if len(named := [model for model in models if model is not None]) > 1:
        raise BadFile(f"{path}: expected the answers of one model, got {printable(', '.join(named[:5]))}")


def read_benchmark_items(form: str, files: Mapping[str, Path]) -> list[Item]:
    """Items of a benchmark in one of the forms. `files` by role: items, references, baseline."""
    if form == "alpaca_eval":
        return read_alpaca_eval(files["items"])
    if form == "arena_hard":
        return read_arena_hard(files["items"], files["baseline"])
    return read_mt_bench(files["items"], files.get("references"), files.get("baseline"))


def cut(items: Sequence[Item], n: int, n_turns: int) -> list[Item]:
    """The first `n` items, each with its first `n_turns` turns."""
    return [
        replace(
            i,
            turns=i.turns[:n_turns],
            baseline=i.baseline and i.baseline[:n_turns],
            reference=i.reference and i.reference[:n_turns],
        )
        for i in items[:n]
    ]


def hub_file() -> Path:
    """Path of AlpacaEval's official items with the GPT-4 baseline, from the hub or its cache.

    Raises NotThere if neither has it.
    """
    try:
        return fetch_file("datasets", HUB_DATASET, HUB_FILE)
    except NotThere as error:
        raise type(error)(
            f"judge.items=hub: {error}; to use a copy of {HUB_FILE}, set judge.items to it"
        ) from error
