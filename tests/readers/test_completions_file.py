"""Files of completions: what a row may look like, which item it answers, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.judges.formats import alpaca_eval, mt_bench
from bench.readers.completions_file import FORMS, matched, read_written
from bench.records import Completion, Item
from bench.text_files import BadFile

ITEMS = [
    Item("a", None, ["Say hello."]),
    Item("b", None, ["Count.", "Again."]),
    Item("c", None, ["Name a fruit."]),
]


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
    assert [(c.id, c.completions) for c in found] == [
        ("a", ["Hello."]),
        ("b", ["One.", "Two."]),
        ("c", ["Pear."]),
    ]
    assert all(c.n_tokens == [] and c.finished == [] for c in found)  # nobody counted
    (fig,) = matched(
        read_written(write(tmp_path / "g.jsonl", {"prompt": [user("Name a fruit.")], "completion": "Fig."})),
        ITEMS,
    )
    assert (fig.id, fig.completions) == ("c", ["Fig."])


def test_a_prompt_with_messages_before_it_is_another_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": [system, user("Say hello.")], "completion": "Hi."},
        {"prompt": "Say hello.", "completion": "Hello."},
    ]
    items = [
        *ITEMS[:1],
        Item("d", None, ["Say hello."], context=[system]),
        Item("e", None, ["Say hello."], context=[user("Hey.")]),
    ]
    found = matched(read_written(write(tmp_path / "f.jsonl", *rows)), items)
    assert [(c.id, c.completions) for c in found] == [("a", ["Hello."]), ("d", ["Hi."])]


def test_rows_of_the_store_are_told_apart_by_id_where_their_turns_are_the_same(tmp_path: Path) -> None:
    items = [Item(name, None, ["Shorter."], context=[user(f"Write {name}.")]) for name in "xy"]
    rows = [{"id": name, "turns": ["Shorter."], "completions": [f"{name}!"]} for name in "xy"]
    assert [c.completions for c in matched(read_written(write(tmp_path / "f.jsonl", *rows)), items)] == [
        ["x!"],
        ["y!"],
    ]


def test_texts_may_hold_any_line_break_of_unicode(tmp_path: Path) -> None:
    row = {"prompt": "Say hello.", "completion": "Hel\u2028lo."}
    path = write(tmp_path / "f.jsonl", json.dumps(row, ensure_ascii=False))
    assert read_written(path)[0].texts == ("Hel\u2028lo.",)
    path.write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"f\.jsonl:1: expected UTF-8, got other bytes"):
        read_written(path)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "prompt": "Say goodbye.", "completion": "Bye."},
        {"id": "a", "prompt": "Name a fruit.", "completion": "Pear."},
        {"id": "b", "turns": ["Count.", "Name a fruit."], "completions": ["One.", "Pear."]},
        {
            "id": "c",
            "prompt": [{"role": "system", "content": "Be brief."}, user("Name a fruit.")],
            "completion": "Pear.",
        },
    ],
)
def test_an_id_that_contradicts_its_prompt_is_refused(tmp_path: Path, row: Any) -> None:
    path = write(tmp_path / "f.jsonl", row)
    with pytest.raises(
        BadFile, match=rf"f\.jsonl:1: id and prompt belong to two items: item {row['id']} asks .*If the"
    ):
        matched(read_written(path), ITEMS)


def test_the_first_turn_is_prompt_enough_beside_an_id(tmp_path: Path) -> None:
    row = {"id": "b", "prompt": "Count.", "completions": ["One.", "Two."]}
    (found,) = matched(read_written(write(tmp_path / "f.jsonl", row)), ITEMS)
    assert (found.id, found.completions) == ("b", ["One.", "Two."])


@pytest.mark.parametrize(
    "row",
    [{"id": "b", "completion": "One."}, {"turns": ["Count.", "Again."], "completions": ["1", "2", "3"]}],
)
def test_a_row_with_another_number_of_texts_than_turns_is_named(tmp_path: Path, row: Any) -> None:
    with pytest.raises(
        BadFile, match=r"f\.jsonl:2: expected one text a turn, 2 for item b, got (1 text|3 texts)"
    ):
        matched(read_written(write(tmp_path / "f.jsonl", {"id": "a", "completion": "x"}, row)), ITEMS)


OUTPUTS = [
    {"dataset": "own", "instruction": "Say hello.", "output": "Hello.", "generator": "m"},
    {"dataset": "own", "instruction": "Name a fruit.", "output": "Pear.", "generator": "m"},
]


@pytest.mark.parametrize(
    "source", [json.dumps(OUTPUTS), json.dumps(OUTPUTS, indent=2), "\n".join(map(json.dumps, OUTPUTS))]
)
def test_alpaca_evals_outputs_are_read_as_a_list_and_as_lines(tmp_path: Path, source: str) -> None:
    found = matched(read_written(write(tmp_path / "f.json", source)), ITEMS)
    assert [(c.id, c.completions) for c in found] == [("a", ["Hello."]), ("c", ["Pear."])]


def test_what_the_product_exports_can_be_handed_in_again(tmp_path: Path) -> None:
    completions = {"a": "Hello.", "c": "Pear."}
    alpaca_eval.write_outputs(tmp_path / "model_outputs.json", "m", ITEMS, completions)
    found = matched(read_written(tmp_path / "model_outputs.json"), ITEMS)
    assert {c.id: c.completions[0] for c in found} == completions
    items = [
        Item("mt_bench-81", None, ["Count.", "Again."]),
        Item("mt_bench-82", None, ["Name a fruit.", "Another."]),
    ]
    answers = [Completion(item.id, item.turns, ["x", item.id], [], []) for item in items]
    mt_bench.write_answers(tmp_path / "m.jsonl", "m", answers)
    assert matched(read_written(tmp_path / "m.jsonl"), items) == answers


def answer(question: Any, *turns: Any, **more: Any) -> dict[str, Any]:
    return {
        "question_id": question,
        "model_id": "m",
        "choices": [{"index": 0, "turns": list(turns)}, {"turns": ["other"]}],
    } | more


def test_fastchats_answers_are_matched_by_question_and_may_bring_later_turns(tmp_path: Path) -> None:
    rows = [answer(81, "One.", "Two."), answer("q82", {"content": "Pear.", "token_len": 1})]
    read = read_written(write(tmp_path / "f.jsonl", *rows))
    items = [
        Item("mt_bench-81", None, ["Count."]),
        Item("arena_hard-q82", None, ["Name a fruit."]),
        Item("alpaca_eval-81", None, ["Count."]),
    ]
    assert [(c.id, c.completions) for c in matched(read, items)] == [
        ("mt_bench-81", ["One."]),
        ("arena_hard-q82", ["Pear."]),
    ]
    with pytest.raises(
        BadFile, match=r"f\.jsonl:2: expected one text a turn, 2 for item mt_bench-q82, got 1 text"
    ):
        matched(read, [Item("mt_bench-q82", None, ["Count.", "Again."])])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            json.dumps({"rows": 3}, indent=2),
            r":1: not JSON \(.*\); expected one object a line, or a JSON list of objects",
        ),
        (json.dumps(OUTPUTS)[:-5], r": not JSON \("),
        (
            json.dumps([OUTPUTS[0], OUTPUTS[1] | {"generator": "n"}]),
            ": expected the completions of one model, got m, n",
        ),
        (json.dumps([OUTPUTS[0], OUTPUTS[0]]), ": row 1: answers the same prompt as .*: row 0"),
        (json.dumps([OUTPUTS[0], OUTPUTS[1] | {"output": None}]), r": row 1: output must be text, got null"),
        (json.dumps([OUTPUTS[0], 3]), ": row 1: expected an object, got the number 3"),
        (json.dumps(answer(81, None)), r":1: turns\[0\] must be text, got null"),
        (json.dumps(answer(81, {"content": None})), r":1: turns\[0\].content must be text, got null"),
        (
            json.dumps(answer(81.5, "x")),
            ":1: question_id must be a text or a whole number, got the number 81.5",
        ),
        (json.dumps(answer(None, "x")), ":1: question_id must be a text or a whole number, got null"),
        (json.dumps(answer(81)), ":1: expected choices, the first of them with turns; got a list of 2"),
        (
            json.dumps(answer(81, "x", choices=None)),
            ":1: expected choices, the first of them with turns; got null",
        ),
        (
            json.dumps({"prompt": [user("a") | {"content": None}], "completion": "x"}),
            r":1: prompt\[0\].content must be text, got null",
        ),
        (
            json.dumps({"prompt": [user("a") | {"content": [{"text": "x"}]}], "completion": "x"}),
            r":1: prompt\[0\].content must be text, got a list",
        ),
        (json.dumps({"id": True, "completion": "x"}), ":1: id must be a text or a whole number, got true"),
        ('{"id": "a", "id": "b", "completion": "x"}', ":1: an object holds 'id' twice"),
        ('{"id": "a", "completion": "x \\ud83d"}', ":1: completion: half a surrogate pair"),
        ("[" * 100_000, ": nested deeper than 100"),
        ('{"id": "a", "completion": "x", "more": ' + "[" * 100_000, ":1: nested deeper than 100"),
    ],
    ids=range(19),
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, source: str, why: str) -> None:
    path = write(tmp_path / "f.json", source)
    with pytest.raises(BadFile, match=rf"f\.json{why}") as caught:
        read_written(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "Expecting property name"),
        ([1], "expected an object, got a list of 1"),
        ({"completion": "x"}, f"{FORMS}; got an object with completion"),
        (
            {"prompt": 3, "completion": "x"},
            "prompt must be text or messages (role, content), got the number 3",
        ),
        ({"id": "a", "completions": []}, "completions must be a list of texts, got a list of 0"),
        ({"id": "a", "completion": None}, "completion must be text, got null"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    path = write(tmp_path / "f.jsonl", {"id": "a", "completion": "x"}, row)
    with pytest.raises(ValueError, match=r"f\.jsonl:2: ") as caught:
        read_written(path)
    assert why in str(caught.value)


def test_two_answers_to_one_prompt_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "Say hello.", "completion": "Hello."}
    with pytest.raises(ValueError, match=r"f\.jsonl:2: answers the same prompt as .*f\.jsonl:1\."):
        read_written(write(tmp_path / "f.jsonl", row, row))
    with pytest.raises(ValueError, match="no rows"):
        read_written(write(tmp_path / "g.jsonl"))


def test_fastchats_mark_of_a_failed_request_is_no_completion(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"id": "a", "completion": "$ERROR$ is a shell variable"}\n{"id": "b", "completion": "$ERROR$"}\n'
    )
    with pytest.raises(
        BadFile, match=r"answers.jsonl:2: the completion is \$ERROR\$, FastChat's mark of a failed request"
    ):
        read_written(path)
