"""Files of the user: items, questions, references, prices; and AlpacaEval's official set where it lies here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import FIXTURES, needs_fixtures

from bench.judges.asked.prices import OWN_PRICES, price_of, read_prices
from bench.judges.formats.items import cut, read_alpaca_eval, read_arena_hard, read_mt_bench
from bench.records import HumanLabel, Item, read_labels
from bench.text_files import BadFile


@needs_fixtures
def test_the_official_files_are_read_whole() -> None:
    items = read_alpaca_eval(FIXTURES / "alpaca_eval" / "reference_outputs.json.gz")
    assert len(items) == 805 and len({item.id for item in items}) == 805
    assert {item.category for item in items} == {"selfinstruct", "oasst", "koala", "helpful_base", "vicuna"}
    folder = FIXTURES / "mt_bench"
    questions = read_mt_bench(folder / "question.jsonl", folder / "reference_answer" / "gpt-4.jsonl")
    assert len(questions) == 80 and sum(item.reference is not None for item in questions) == 30
    assert {item.category for item in questions if item.reference} == {"reasoning", "math", "coding"}


def arena_answer(uid: str, answer: str, *before: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": uid,
        "model": "o3",
        "messages": [*before, {"role": "assistant", "content": {"answer": answer}}],
    }


def lines_of(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUESTIONS = [
    {"uid": "a", "prompt": "Count.", "category": "hard"},
    {"uid": "b", "prompt": "Name a fruit.", "category": "hard"},
]


def asked(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], r"a\.jsonl has no answer to question a of .*q\.jsonl"),
        (
            [arena_answer("a", "x", asked("Count.")), arena_answer("b", "y", asked("Name a river."))],
            r"a\.jsonl:2: this answers the text 'Name a river\.', but question b of .*q\.jsonl is the text 'Name a fruit\.'. Use the",
        ),
        ([arena_answer("a", ""), arena_answer("b", " \n")], r"a\.jsonl: each of its 2 answers is empty"),
        ([arena_answer("a", "x"), arena_answer("b", "$ERROR$")], r"a\.jsonl:2: the answer is \$ERROR\$"),
    ],
)
def test_a_baseline_of_no_answers_or_of_other_questions_is_refused(
    tmp_path: Path, answers: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(BadFile, match=said):
        read_arena_hard(lines_of(tmp_path / "q.jsonl", *QUESTIONS), lines_of(tmp_path / "a.jsonl", *answers))


def test_a_baseline_may_have_one_empty_answer_and_messages_before_the_question(tmp_path: Path) -> None:
    answers = [
        arena_answer("a", "", {"role": "system", "content": "Be brief."}, asked("Count.\n")),
        arena_answer("b", "y"),
    ]
    items = read_arena_hard(
        lines_of(tmp_path / "q.jsonl", *QUESTIONS), lines_of(tmp_path / "a.jsonl", *answers)
    )
    assert [item.baseline for item in items] == [[""], ["y"]]


def test_other_opponents_who_never_said_anything_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(json.dumps([{"instruction": text, "output": ""} for text in "ab"]))
    with pytest.raises(BadFile, match=r"items\.json: each of its 2 answers is empty"):
        read_alpaca_eval(tmp_path / "items.json")
    questions = lines_of(tmp_path / "q.jsonl", {"question_id": 1, "turns": ["a"]})
    for turn, said in (
        (" ", r"a\.jsonl: each of its 1 answers is empty"),
        ("$ERROR$", r"a\.jsonl:1: the answer is \$ERROR\$"),
    ):
        with pytest.raises(BadFile, match=said):
            read_mt_bench(
                questions,
                None,
                lines_of(tmp_path / "a.jsonl", {"question_id": 1, "choices": [{"turns": [turn]}]}),
            )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a JSON list of objects with instruction and output, got a list of 0"),
        ('{"instruction": "a"}', "expected a JSON list"),
        ("not json", "expected a JSON list"),
        (
            '[{"instruction": "a", "output": "b"}, {"instruction": "c"}]',
            "row 1: expected instruction and output, got an object with i",
        ),
        (r'[{"instruction": "a \ud83d", "output": "b"}]', "row 0, instruction: half a surrogate pair"),
        ('[{"instruction": "a", "output": null}]', "row 0: output must be text, got null"),
        (
            '[{"instruction": "a", "output": {"content": "b"}}]',
            "row 0: output must be text, got an object with content",
        ),
        ('[{"instruction": ["a"], "output": "b"}]', "row 0: instruction must be text, got a list of 1"),
        (
            '[{"instruction": "a", "output": "b", "dataset": 3}]',
            "row 0: dataset must be text, got the number 3",
        ),
        (
            '{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}',
            r"not JSON \(Extra data: line 2 .*\); expected a JSON list",
        ),
    ],
)
def test_a_list_that_cannot_be_used_says_where(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_alpaca_eval(tmp_path / "items.json")


def test_questions_that_cannot_be_used_say_where(tmp_path: Path) -> None:
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["a", "b"]}\n\n{"question_id": 2}\n')
    with pytest.raises(
        ValueError, match=r"q\.jsonl:3: expected question_id and turns, got an object with question_id"
    ):
        read_mt_bench(questions)
    questions.write_text('{"question_id": 1, "turns": ["a", "b"]}\n')
    answers.write_text('{"question_id": 2, "choices": [{"turns": ["x", "y"]}]}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl has no answer to question 1"):
        read_mt_bench(questions, None, answers)
    answers.write_text('{"question_id": 1, "choices": [{"turns": ["x"]}]}\n')
    with pytest.raises(ValueError, match="question 1 has 2 turns, but 1 answers in this file"):
        read_mt_bench(questions, answers)
    answers.write_text('{"question_id": 1}\n')
    with pytest.raises(
        ValueError, match=r"a\.jsonl:1: expected question_id and choices, got an object with question_id"
    ):
        read_mt_bench(questions, answers)


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in rows))
    return path


def answered(question: Any, *turns: Any, **more: Any) -> dict[str, Any]:
    return {
        "question_id": question,
        "model_id": "base",
        "choices": [{"index": 0, "turns": list(turns)}],
    } | more


def test_arena_hards_first_form_of_turns_is_read_as_text(tmp_path: Path) -> None:
    questions = lines(
        tmp_path / "q.jsonl", {"question_id": "q1", "category": "own", "turns": [{"content": "Why?"}]}
    )
    theirs = lines(tmp_path / "a.jsonl", answered("q1", {"content": "So.", "token_len": 2}))
    assert read_mt_bench(questions, theirs, theirs) == [
        Item("mt_bench-q1", "own", ["Why?"], baseline=["So."], reference=["So."])
    ]


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ({"question_id": 1, "turns": [None]}, None, r"q\.jsonl:1: turns\[0\] must be text, got null"),
        (
            {"question_id": 1, "turns": [{"text": "a"}]},
            None,
            r"q\.jsonl:1: turns\[0\] must be text, got an object with text",
        ),
        (
            {"question_id": 1, "turns": ["a", {"content": 3}]},
            None,
            r"q\.jsonl:1: turns\[1\].content must be text, got the number 3",
        ),
        (
            {"question_id": 1, "turns": []},
            None,
            r"q\.jsonl:1: turns must be a list of texts, got a list of 0",
        ),
        (
            {"question_id": 1, "turns": "a"},
            None,
            r"q\.jsonl:1: turns must be a list of texts, got the text 'a'",
        ),
        (
            {"question_id": None, "turns": ["a"]},
            None,
            r"q\.jsonl:1: question_id must be a text or a whole number, got null",
        ),
        (
            {"question_id": 1.0, "turns": ["a"]},
            None,
            r"q\.jsonl:1: question_id must be a text or a whole number, got the number 1.0",
        ),
        (
            {"question_id": 1, "turns": ["a"], "category": ["x"]},
            None,
            r"q\.jsonl:1: category must be text, got a list of 1",
        ),
        (None, answered(1, None), r"a\.jsonl:1: turns\[0\] must be text, got null"),
        (
            None,
            answered(1, {"token_len": 6}),
            r"a\.jsonl:1: turns\[0\] must be text, got an object with token_len",
        ),
        (None, answered(1, {"content": None}), r"a\.jsonl:1: turns\[0\].content must be text, got null"),
        (
            None,
            answered(1, "x", choices=[]),
            r"a\.jsonl:1: expected choices, the first of them with turns; got a list of 0",
        ),
        (None, answered(True, "x"), r"a\.jsonl:1: question_id must be a text or a whole number, got true"),
    ],
)
def test_turns_that_are_no_texts_are_refused_by_their_line(
    tmp_path: Path, question: Any, answer: Any, said: str
) -> None:
    questions = lines(tmp_path / "q.jsonl", question or {"question_id": 1, "turns": ["a"]})
    answers = lines(tmp_path / "a.jsonl", answer or answered(1, "x"))
    for references, baseline in ((answers, None), (None, answers)):
        with pytest.raises(BadFile, match=said):
            read_mt_bench(questions, references, baseline)


def test_a_file_of_references_is_one_of_these_questions(tmp_path: Path) -> None:
    questions = lines(
        tmp_path / "q.jsonl", {"question_id": 1, "turns": ["a"]}, {"question_id": 2, "turns": ["b"]}
    )
    assert [
        item.reference for item in read_mt_bench(questions, lines(tmp_path / "r.jsonl", answered(2, "x")))
    ] == [None, ["x"]]
    with pytest.raises(
        BadFile,
        match=r"r\.jsonl has no reference for any of the 2 questions of .*q\.jsonl\. Use the references",
    ):
        read_mt_bench(questions, lines(tmp_path / "r.jsonl", answered(3, "x")))


def test_answers_of_two_models_are_no_opponent(tmp_path: Path) -> None:
    questions = lines(tmp_path / "q.jsonl", *({"question_id": n, "turns": ["a"]} for n in (1, 2)))
    answers = lines(tmp_path / "a.jsonl", answered(1, "x"), answered(2, "y", model_id="other"))
    with pytest.raises(BadFile, match=r"a\.jsonl: expected the answers of one model, got base, other"):
        read_mt_bench(questions, None, answers)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [{"role": "assistant", "content": {"answer": None}}],
            "the last message's answer must be text, got null",
        ),
        ([{"role": "assistant", "content": None}], "the last message's answer must be text, got null"),
        (
            [{"role": "assistant", "content": {"text": "x"}}],
            "the last message's answer must be text, got null",
        ),
        (
            [{"role": "user", "content": "x"}],
            r"the last message must be the assistant's \(role and content\), got a list of 1",
        ),
        ([], r"the last message must be the assistant's \(role and content\), got a list of 0"),
        ("x", r"the last message must be the assistant's \(role and content\), got the text 'x'"),
    ],
)
def test_arena_hard_answers_that_are_no_texts_are_refused_by_their_line(
    tmp_path: Path, messages: Any, said: str
) -> None:
    questions = lines(tmp_path / "q.jsonl", {"uid": "1", "prompt": "a"}, {"uid": "2", "prompt": "b"})
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": {"answer": "y"}}]
    answers = lines(tmp_path / "a.jsonl", {"uid": "1", "messages": good}, {"uid": "2", "messages": messages})
    with pytest.raises(BadFile, match=rf"a\.jsonl:2: {said}"):
        read_arena_hard(questions, answers)


def test_line_separators_in_texts_end_no_line_and_a_question_comes_once(tmp_path: Path) -> None:
    """Arena-Hard-Auto writes its files without escapes."""
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    asked = {"uid": "1", "category": "own", "prompt": "one\u2028two\x85three"}
    said = {"uid": "1", "messages": [{"role": "assistant", "content": {"answer": "four\u2029five"}}]}
    questions.write_text(json.dumps(asked, ensure_ascii=False) + "\n")
    answers.write_text(json.dumps(said, ensure_ascii=False) + "\n")
    (item,) = read_arena_hard(questions, answers)
    assert (item.turns, item.baseline) == (["one\u2028two\x85three"], ["four\u2029five"])
    questions.write_text((json.dumps(asked) + "\n") * 2)
    with pytest.raises(ValueError, match=r"q\.jsonl: question 1 appears twice"):
        read_arena_hard(questions, answers)
    questions.write_text('{"question_id": 81, "turns": ["a", "b"]}\n' * 2)
    with pytest.raises(ValueError, match=r"q\.jsonl: question 81 appears twice"):
        read_mt_bench(questions)
    questions.write_text(r'{"question_id": 81, "turns": ["a \ud83d", "b"]}')
    with pytest.raises(ValueError, match=r"q\.jsonl:1: turns, 0: half a surrogate pair"):
        read_mt_bench(questions)


def test_the_first_items_and_turns_are_taken(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "".join(
            json.dumps({"question_id": n, "turns": ["a", "b"], "category": "math"}) + "\n" for n in range(3)
        )
    )
    references = tmp_path / "r.jsonl"
    references.write_text(json.dumps({"question_id": 0, "choices": [{"turns": ["x", "y"]}]}) + "\n")
    found = cut(read_mt_bench(questions, references), 2, 1)
    assert [(item.id, item.turns, item.reference) for item in found] == [
        ("mt_bench-0", ["a"], ["x"]),
        ("mt_bench-1", ["a"], None),
    ]


def price(prompt: str) -> str:
    return f"- {{models: [m], prompt: {prompt}, completion: 1, date: 2026-11-25, source: s}}"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (price("true"), r"p\.yaml: 0.prompt: Input should be a valid number, got true"),
        (price("'2'"), "0.prompt: Input should be a valid number, got the text '2'"),
        (price("-1"), "0.prompt: Input should be greater than or equal to 0"),
        (price(".nan"), r"p\.yaml:1: not YAML \(.nan is not a finite number"),
        (
            "- {models: [m], prompt: 1, completion: 1, date: 2026-13-25, source: s}",
            r"p\.yaml: not YAML \(month must be",
        ),
        (
            "- {models: [1], prompt: 1, completion: 1, date: 2026-11-25, source: s}",
            "Input should be a valid string, got the number 1",
        ),
        ("models: m", "Input should be a valid list, got an object with models"),
        (
            "- {models: [m, n, m], prompt: 1, completion: 1, date: 2026-11-25, source: s}",
            r"p\.yaml: m has more than one price",
        ),
        ("a: &a [b]\nc: [" + ", ".join(["*a"] * 60_000) + "]", "expand to more than 100000 values"),
        ("[" * 5000, "nested deeper than 100"),
    ],
    ids=range(10),
)
def test_prices_that_are_none_are_one_line(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "p.yaml").write_text(source)
    with pytest.raises(BadFile, match=says) as caught:
        price_of("m", str(tmp_path / "p.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"item_id": "a", "preference": True}],
            ":1: not a valid label: label of a: preference must be in .0, 1., got True",
        ),
        (
            [{"item_id": "a", "preference": float("nan")}],
            ":1: not a valid label: label of a: exactly one of preference and rating",
        ),
        (
            [{"item_id": "a", "rating": -1}],
            ":1: not a valid label: label of a: rating must be in .1, 10., got -1",
        ),
        (
            [{"item_id": "a", "rating": "7"}],
            ":1: not a valid label: label of a: rating must be in .1, 10., got '7'",
        ),
        (
            [{"item_id": None, "rating": 7}],
            ":1: not a valid label: item_id must be a text or a whole number, got null",
        ),
        (
            [{"item_id": "a", "rating": 7, "turn": True}],
            ":1: not a valid label: turn must be a whole number from 0 to 1000000, got true",
        ),
        (
            [{"item_id": "a", "rating": 7, "turn": 2}],
            ":1: not a valid label: label of a: turn must be 0 or 1, got 2",
        ),
        (
            [{"item_id": "a", "preference": 1, "turn": 1}],
            ":1: not a valid label: label of a: turn must be 0, because a preference",
        ),
        (
            [{"item_id": "a", "rating": 7, "who": "me"}],
            ":1: not a valid label: unknown field who; known: item_id, preference",
        ),
        (
            [{"item_id": "a", "rating": 7}, {"item_id": "a", "rating": 8}],
            r":2: item a is labelled again, after .*l\.jsonl:1",
        ),
        ([3], ":1: expected an object, got the number 3"),
    ],
)
def test_labels_of_people_that_are_none_are_refused_by_their_line(
    tmp_path: Path, rows: list[Any], says: str
) -> None:
    path = lines(tmp_path / "l.jsonl", {"item_id": 7, "rating": 7, "turn": 1})
    assert read_labels(path) == [HumanLabel("7", rating=7, turn=1)]
    with pytest.raises(BadFile, match=rf"l\.jsonl{says}"):
        read_labels(lines(path, *rows))


@pytest.mark.parametrize(
    ("model", "base_url", "known"),
    [
        ("gpt-5", None, True),
        ("gpt-5", "https://api.openai.com/v1", True),
        ("claude-sonnet-4-5-20250929", "https://api.anthropic.com/v1", True),
        ("gpt-5", "http://127.0.0.1:8000/v1", False),
        ("claude-sonnet-4-5-20250929", None, False),
        ("gpt-5-of-mine", None, False),
        ("whisper-1", None, False),  # Nothing is listed for its tokens: no price is not a price of 0.
    ],
)
def test_models_of_today_have_a_price_at_their_provider_alone(
    model: str, base_url: str | None, known: bool
) -> None:
    price = price_of(model, None, base_url)
    assert (price is not None) == known
    if price is not None:
        assert 0 < price.prompt < price.completion and price.batch == 1.0
        assert price.as_of.startswith("genai-prices ")


def test_a_price_of_ours_comes_before_the_package(tmp_path: Path) -> None:
    ours = price_of("gpt-4o", None)
    assert ours is not None and ours.as_of == "2026-03-01"
    mine = tmp_path / "p.yaml"
    mine.write_text("- {models: [mine], prompt: 2, completion: 8, date: 2026-11-25, source: my contract}")
    assert price_of("gpt-5", str(mine)) is None


def test_prices_are_dated_sourced_and_of_exact_names(tmp_path: Path) -> None:
    rows = read_prices(OWN_PRICES)
    names = [name for row in rows for name in row.models]
    assert len(set(names)) == len(names) and all(row.source and row.date.year >= 2024 for row in rows)
    assert price_of("gpt-4", None) is not None and price_of("gpt-4x", None) is None
    mine = tmp_path / "p.yaml"
    mine.write_text(
        "- {models: [mine], prompt: 2, completion: 8, batch: 0.5, date: 2026-11-25, source: my contract}"
    )
    price = price_of("mine", str(mine))
    assert (
        price
        and price.dollars(1_000_000, 500_000) == 6.0
        and price.dollars(1_000_000, 500_000, batch=True) == 3.0
    )
    mine.write_text("- {models: [mine], prompt: 2}")
    with pytest.raises(
        ValueError, match=r"judge\.prices must be a file that lists prices: models, prompt and completion"
    ):
        price_of("mine", f"{mine}")
