"""Items of a benchmark's own files: AlpacaEval's instructions with a baseline, FastChat's questions, references and answers, and
Arena-Hard's questions and answers."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records import NO_UNICODE, Item, is_unicode

HUB_DATASET, HUB_FILE = "tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"


def _text(path: Path) -> str:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    return path.read_text(encoding="utf-8")


def read_alpaca_eval(path: Path) -> list[Item]:
    """Items of alpaca_eval_gpt4_baseline.json or a file like it: a list of objects with `instruction` and the baseline's `output`.

    An item is named by its place in the file. Raises ValueError with the place of a row that cannot be used.
    """
    try:
        rows = json.loads(_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON list of objects with instruction and output: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a JSON list of objects with instruction and output, got {type(rows).__name__} of no rows")
    items = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in ("instruction", "output")):
            raise ValueError(f"{path}: row {number} has no texts called instruction and output")
        if not is_unicode(row["instruction"] + row["output"]):
            raise ValueError(f"{path}: row {number}: {NO_UNICODE}")
        items.append(Item(f"alpaca_eval-{number}", row.get("dataset"), [row["instruction"]], baseline=[row["output"]]))
    return items


def read_mt_bench(questions: Path, references: Path | None = None, answers: Path | None = None) -> list[Item]:
    """Items of FastChat's question.jsonl, with a reference where the file of references has one and the opponent's answers where
    there is a file of them. Raises ValueError with the line of a row that cannot be used, or the question that has no answer."""
    right, theirs = (_answers(path) if path else {} for path in (references, answers))
    items = []
    for number, row in _rows(questions):
        if not isinstance(row.get("turns"), list) or not row["turns"] or "question_id" not in row:
            raise ValueError(f"{questions}:{number}: expected question_id, category and turns")
        key = str(row["question_id"])
        if answers and key not in theirs:
            raise ValueError(f"{answers} has no answer to question {key} of {questions}")
        for path, found in ((references, right.get(key)), (answers, theirs.get(key))):
            if found is not None and len(found) < len(row["turns"]):
                raise ValueError(f"{path}: question {key} has {len(row['turns'])} turns, and {len(found)} answers here")
        items.append(Item(f"mt_bench-{key}", row.get("category"), row["turns"], baseline=theirs.get(key), reference=right.get(key)))
    return _each_once(questions, items)


def read_arena_hard(questions: Path, answers: Path) -> list[Item]:
    """Items of Arena-Hard-Auto's question.jsonl (uid, category, prompt), each with the baseline model's answer of its model_answer
    file (uid, messages). Raises ValueError with the line of a row that cannot be used, or the question that has no answer."""
    theirs: dict[str, str] = {}
    for number, row in _rows(answers):
        try:
            content = row["messages"][-1]["content"]
            theirs[str(row["uid"])] = content if isinstance(content, str) else str(content["answer"])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{answers}:{number}: expected uid and messages that end in an answer ({error!r})") from error
    items = []
    for number, row in _rows(questions):
        if not isinstance(row.get("prompt"), str) or "uid" not in row:
            raise ValueError(f"{questions}:{number}: expected uid, category and prompt")
        if (key := str(row["uid"])) not in theirs:
            raise ValueError(f"{answers} has no answer to question {key} of {questions}")
        items.append(Item(f"arena_hard-{key}", row.get("category"), [row["prompt"]], baseline=[theirs[key]]))
    return _each_once(questions, items)


def _each_once(path: Path, items: list[Item]) -> list[Item]:
    if not items:
        raise ValueError(f"{path}: no questions")
    if twice := [id for id, n in Counter(item.id for item in items).items() if n > 1]:
        raise ValueError(f"{path}: question {twice[0].partition('-')[2]} comes twice ({len(twice)} do); each has an id of its own")
    return items


def _answers(path: Path) -> dict[str, list[str]]:
    """The turns of each question's first choice."""
    found = {}
    for number, row in _rows(path):
        try:
            found[str(row["question_id"])] = [str(turn) for turn in row["choices"][0]["turns"]]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}:{number}: expected question_id and choices with turns ({error})") from error
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):  # not splitlines(): texts may hold other line separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); a line holds one object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected an object, got {type(row).__name__}")
        if not is_unicode(json.dumps(row, ensure_ascii=False)):
            raise ValueError(f"{path}:{number}: {NO_UNICODE}")
        rows.append((number, row))
    return rows


def read_items(form: str, files: Mapping[str, Path]) -> list[Item]:
    """Items of one of the forms; `files` by role: items, references, baseline."""
    if form == "alpaca_eval":
        return read_alpaca_eval(files["items"])
    if form == "arena_hard":
        return read_arena_hard(files["items"], files["baseline"])
    return read_mt_bench(files["items"], files.get("references"), files.get("baseline"))


def cut(items: Sequence[Item], n: int, n_turns: int) -> list[Item]:
    """The first n items with their first turns."""

    def first(texts: list[str] | None) -> list[str] | None:
        return texts if texts is None else texts[:n_turns]

    return [
        Item(i.id, i.category, i.turns[:n_turns], i.task, first(i.baseline), i.context, i.plain, first(i.reference)) for i in items[:n]
    ]


def hub_file() -> Path:
    """AlpacaEval's official 805 items with the GPT-4 baseline, from the hub or its cache. Raises ValueError where neither has it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_DATASET, HUB_FILE, repo_type="dataset"))
    except Exception as error:  # of the hub's client: network, gated, not in the cache
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"judge.items=hub: {HUB_DATASET}/{HUB_FILE} could not be had ({why}); name a file") from error
