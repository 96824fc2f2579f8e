"""Files of completions: what a row may look like, which item it answers, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.records import Item
from bench.written import matched, read_written

ITEMS = [Item("a", None, ["Say hello."]), Item("b", None, ["Count.", "Again."]), Item("c", None, ["Name a fruit."])]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_answer_by_prompt_messages_turns_or_id(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say hello.", "completion": "Hello."},
        {"turns": ["Count.", "Again."], "completions": ["One.", "Two."], "id": "anything"},
        {"id": "c", "completion": "Pear."},
    ]
    found = matched(read_written(write(tmp_path / "f.jsonl", *rows)), ITEMS)
    assert [(c.id, c.completions) for c in found] == [("a", ["Hello."]), ("b", ["One.", "Two."]), ("c", ["Pear."])]
    assert all(c.n_tokens == [] and c.finished == [] for c in found)  # nobody counted
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."}]
    (pear,) = matched(read_written(write(tmp_path / "g.jsonl", {"prompt": asked, "completion": "Fig."})), ITEMS)
    assert (pear.id, pear.completions) == ("c", ["Fig."])


def test_a_row_with_too_few_turns_or_of_another_prompt_answers_nothing(tmp_path: Path) -> None:
    rows = [{"id": "b", "completion": "One."}, {"prompt": "Say goodbye.", "id": "a", "completion": "Bye."}]
    assert matched(read_written(write(tmp_path / "f.jsonl", *rows)), ITEMS) == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "Expecting property name"),
        ([1], "expected an object, got list"),
        ({"completion": "x"}, "expected id, prompt or turns, and completion (text) or completions (a text a turn); got completion"),
        ({"prompt": 3, "completion": "x"}, "prompt must be text or messages, got 3"),
        ({"id": "a", "completions": []}, "completions must be texts, got []"),
        ({"id": "a", "completion": None}, "completions must be texts, got [None]"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    path = write(tmp_path / "f.jsonl", {"id": "a", "completion": "x"}, row)
    with pytest.raises(ValueError, match=r"f\.jsonl:2: ") as caught:
        read_written(path)
    assert why in str(caught.value)


def test_two_answers_to_one_prompt_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "Say hello.", "completion": "Hello."}
    with pytest.raises(ValueError, match=r"f\.jsonl:2: answers what line 1 answers"):
        read_written(write(tmp_path / "f.jsonl", row, row))
    with pytest.raises(ValueError, match="no rows"):
        read_written(write(tmp_path / "g.jsonl"))
