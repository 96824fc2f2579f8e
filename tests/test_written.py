"""Files of completions: what a row may look like, which item it answers, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.records import Item
from bench.written import matched, read_written

ITEMS = [Item("a", None, ["Say hello."]), Item("b", None, ["Count.", "Again."]), Item("c", None, ["Name a fruit."])]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


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
    (fig,) = matched(read_written(write(tmp_path / "g.jsonl", {"prompt": [user("Name a fruit.")], "completion": "Fig."})), ITEMS)
    assert (fig.id, fig.completions) == ("c", ["Fig."])


def test_a_prompt_with_messages_before_it_is_another_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [{"prompt": [system, user("Say hello.")], "completion": "Hi."}, {"prompt": "Say hello.", "completion": "Hello."}]
    items = [*ITEMS[:1], Item("d", None, ["Say hello."], context=[system]), Item("e", None, ["Say hello."], context=[user("Hey.")])]
    found = matched(read_written(write(tmp_path / "f.jsonl", *rows)), items)
    assert [(c.id, c.completions) for c in found] == [("a", ["Hello."]), ("d", ["Hi."])]


def test_rows_of_the_store_are_told_apart_by_id_where_their_turns_are_the_same(tmp_path: Path) -> None:
    items = [Item(name, None, ["Shorter."], context=[user(f"Write {name}.")]) for name in "xy"]
    rows = [{"id": name, "turns": ["Shorter."], "completions": [f"{name}!"]} for name in "xy"]
    assert [c.completions for c in matched(read_written(write(tmp_path / "f.jsonl", *rows)), items)] == [["x!"], ["y!"]]


def test_texts_may_hold_any_line_break_of_unicode(tmp_path: Path) -> None:
    row = {"prompt": "Say hello.", "completion": "Hel\u2028lo."}
    path = write(tmp_path / "f.jsonl", json.dumps(row, ensure_ascii=False))
    assert read_written(path)[0].texts == ("Hel\u2028lo.",)
    path.write_bytes(b"\x80")
    with pytest.raises(ValueError, match="must be JSONL in UTF-8, got other bytes"):
        read_written(path)


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
