"""MT-Bench's files and numbers: parity with what FastChat prints, round trips, parsers."""

from __future__ import annotations

import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from recorded import MT_BENCH, expected, needs_fixtures

from bench.config import CATEGORIES
from bench.judges.asked.replies import find_pairwise, find_rating
from bench.judges.formats.items import read_answers, read_mt_bench
from bench.judges.formats.mt_bench import (
    Compared,
    Rated,
    category_of,
    compared,
    fastchat_averages,
    fastchat_wins,
    last_comparisons,
    last_ratings,
    rating_verdict,
    read_judged,
    read_judgements,
    read_prompt,
    write_answers,
    write_compared,
    write_rated,
)
from bench.records import Call, Completion, Verdict
from bench.text_files import BadFile, read_rows

SINGLES = {
    "orpo_gpt-4_single": ["mistral-orpo-mix", "mistral-orpo", "mistral-orpo-capybara", "mistral-orpo-trl"],
    "phi3_gpt-4_single": ["phi-3-dpo"],
    "errors_gpt-4_single": ["Meta-Llama-3-8B-Instruct-Normal", "Meta-Llama-3-8B-Instruct-Griffin"],
    "granite_gpt-4_single": ["granite-7b-lab"],
}


OTHERWISE_READ = 5  # of 1,450: three whose judge goes on to rate an answer that it improved, two that are code (`array[0]`)
WINNERS = {"A": 1.0, "B": 0.0, "C": 0.5}  # for the completion shown first


@functools.cache
def judgements(name: str) -> list[Any]:
    return read_judgements(MT_BENCH / "model_judgment" / f"{name}.jsonl.gz")


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]


@needs_fixtures
@pytest.mark.parametrize(
    ("file", "model"), [(file, model) for file, models in SINGLES.items() for model in models]
)
def test_averages_are_fastchats(file: str, model: str) -> None:
    wanted, rows = (
        expected(MT_BENCH)[file]["models"][model],
        [row for row in judgements(file) if row.model == model],
    )
    assert fastchat_averages(rows) == pytest.approx(
        {name: wanted[name] for name in ("average", "turn1", "turn2")}, abs=1e-4
    )
    assert (len(rows), sum(row.score is None for row in rows)) == (wanted["rows"], wanted["failed"])
    last = last_ratings(rows)
    assert len(rows) - len(last) == wanted["duplicate_keys"]
    kept = [verdict.rating for verdict in last if verdict.rating is not None]
    if model != "granite-7b-lab":  # two of its scores are 0, which is no rating of 1 to 10
        assert sum(kept) / len(kept) == pytest.approx(wanted["average_keeping_last_row_per_key"], abs=1e-4)
    by_category = {
        c: [r.score for r in rows if r.verdict.category == c and r.score is not None] for c in CATEGORIES
    }
    assert {c: sum(v) / len(v) for c, v in by_category.items()} == pytest.approx(
        wanted["by_category"], abs=1e-4
    )


@needs_fixtures
def test_pairwise_wins_are_fastchats() -> None:
    wanted, rows = expected(MT_BENCH)["phi3_gpt-4_pair"]["pair"], judgements("phi3_gpt-4_pair")
    for model in ("phi-3", "phi-3-dpo"):
        assert fastchat_wins(rows, model) == pytest.approx(wanted[model], abs=1e-6)
    assert fastchat_wins(rows, "phi-3-dpo")["win_rate_adjusted"] == pytest.approx(0.513699, abs=1e-6)
    assert sum(row.preference is None for row in rows) == wanted["dropped_error_rows"]
    assert sum(row.flipped for row in rows) == wanted["order_flips"]
    assert len(last_comparisons(rows)) == len(rows) == wanted["rows"]


@needs_fixtures
@pytest.mark.parametrize("file", [*SINGLES, "phi3_gpt-4_pair"])
def test_judgements_are_written_as_they_were_read(file: str, tmp_path: Path) -> None:
    rows, path = judgements(file), tmp_path / "again.jsonl"
    if file.endswith("_pair"):
        write_compared(path, rows)
    else:
        write_rated(path, rows)
    assert [json.loads(line) for line in path.read_text().splitlines()] == _lines(
        MT_BENCH / "model_judgment" / f"{file}.jsonl.gz"
    )
    assert read_judgements(path) == rows


def fastchat_rating(text: str) -> float | None:
    """The first [[n]], else the first [n]."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    return float(found[1]) if found else None


def fastchat_winner(text: str) -> float | None:
    """Preference for the completion shown first."""
    return next(
        (value for mark, value in (("[[A]]", 1.0), ("[[B]]", 0.0), ("[[C]]", 0.5)) if mark in text), None
    )


@needs_fixtures
def test_recorded_scores_are_those_of_fastchats_rule_and_ours_agrees_where_there_is_one_verdict() -> None:
    """All 1,450 recorded single ratings, and both winners of every pair. What we ask ourselves is read by the last verdict."""
    rows = [row for file in SINGLES for row in judgements(file)]
    assert len(rows) == 1450
    texts = [row.verdict.raw or "" for row in rows]
    assert [fastchat_rating(text) for text in texts] == [row.score for row in rows]
    ours = [float(found.text) if (found := find_rating(text)) else None for text in texts]
    assert sum(a != b.score for a, b in zip(ours, rows, strict=True)) == OTHERWISE_READ
    for row in judgements("phi3_gpt-4_pair"):
        first, second = map(fastchat_winner, row.judgements)
        assert (first, None if second is None else 1 - second) == row.preferences
        for text, winner in zip(row.judgements, (first, second), strict=True):
            found = find_pairwise(text)
            assert (WINNERS[found.text] if found else None) == winner


@needs_fixtures
def test_questions_answers_and_references_are_read_and_answers_written(tmp_path: Path) -> None:
    references = MT_BENCH / "reference_answer" / "gpt-4.jsonl"
    items = read_mt_bench(MT_BENCH / "question.jsonl", references)
    names = [item.id.removeprefix("mt_bench-") for item in items]
    assert names == [str(number) for number in range(81, 161)] and all(len(item.turns) == 2 for item in items)
    assert [item.category for item in items] == [category_of(name) for name in names]
    found = read_answers(MT_BENCH / "model_answer" / "phi-3.jsonl.gz")
    assert len(found) == 80 and all(len(turns) == 2 for turns in found.values())
    write_answers(
        tmp_path / "phi-3.jsonl",
        "phi-3",
        [Completion(question, [], turns, [], []) for question, turns in found.items()],
    )
    assert read_answers(tmp_path / "phi-3.jsonl") == found
    assert list(read_answers(references)) == [str(number) for number in range(101, 131)]


# By hand ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("[[A]]", "A"),
        ("so [[B]].", "B"),
        ("[[C]]", "C"),
        ("[[B]] no, [[A]]", "A"),
        ("[[A]] no, [[Tie]]", None),
        ("A", None),
    ],
)
def test_the_last_winner_counts(text: str, winner: str | None) -> None:
    found = find_pairwise(text)
    assert (found.text if found else None) == winner


def test_a_reply_without_a_rating_says_why() -> None:
    assert rating_verdict("81", "j", 0, None, "$ERROR$").unscored == "the request failed"
    assert rating_verdict("81", "j", 0, None, "well").unscored == "the judge's reply has no rating"
    assert rating_verdict("81", "j", 0, 11, "[[11]]").unscored == "rating 11 is not in 1 to 10"
    assert rating_verdict("81", "j", 1, 10, "[[10]]").rating == 10


def _rated(question: str, turn: int, score: float | None) -> Rated:
    return Rated("m", rating_verdict(question, "j", turn, score, "text"), score)


def test_repeated_rows_count_each_time_for_fastchat_and_the_last_for_us() -> None:
    """Turn 1: 2, then 8 again; turn 2: 4 and a failure. FastChat: (2 + 8 + 4) / 3; turn means 5 and 4. Ours: 8 and 4."""
    rows = [_rated("81", 0, 2), _rated("81", 1, 4), _rated("82", 1, None), _rated("81", 0, 8)]
    assert fastchat_averages(rows) == pytest.approx({"average": 14 / 3, "turn1": 5, "turn2": 4})
    assert [verdict.rating for verdict in last_ratings(rows)] == [8, 4, None]


@pytest.mark.parametrize(
    ("orders", "preference", "flipped"),
    [
        ((1.0, 1.0), 1.0, False), ((0.0, 0.0), 0.0, False), ((1.0, 0.0), 0.5, True), ((1.0, 0.5), 0.5, False), ((0.5, 0.5), 0.5, False),
        ((1.0, None), None, False),
    ],
)  # fmt: skip
def test_a_win_takes_both_orders(
    orders: tuple[float | None, float | None], preference: float | None, flipped: bool
) -> None:
    row = Compared(("a", "b"), "81", 0, "j", orders, ("", ""))
    assert (row.preference, row.flipped) == (preference, flipped)


def test_a_verdict_over_both_orders_keeps_each_orders_own_winner() -> None:
    def call(first: bool, raw: str, preference: float) -> Call:
        return Call("j", None, "", "", {}, policy_first=first, raw=raw, preference=preference)

    verdict = Verdict(
        "mt_bench-81", "j", preference=0.5, calls=[call(True, "[[A]]", 1.0), call(False, "[[A]]", 0.0)]
    )
    row = compared("me", "base", verdict)
    assert row.preferences == (1.0, 0.0) and row.flipped and row.preference == 0.5
    assert compared("me", "base", Verdict("81", "j", preference=1.0)).preferences == (1.0, 1.0)


AGAINST_ITSELF = {
    "question_id": 1,
    "turn": 1,
    "judge": "j",
    "model_1": "m",
    "model_2": "m",
    "g1_winner": "tie",
    "g2_winner": "tie",
}


def test_files_that_are_no_judgements_say_where(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for text, says in (
        ("", "is empty"),
        ("{}\n", r"j\.jsonl:1: expected an object with question_id"),
        ('{"question_id": 1, "turn": 1, "judge": "j"}\n', "single .`score`. or pairwise"),
        (
            '{"question_id": 1, "turn": 1, "judge": "j", "score": "x", "model": "m"}\n',
            r"j\.jsonl:1: score must be a number from 0, or -1",
        ),
        ("not json\n", r"j\.jsonl:1: not JSON"),
        (
            json.dumps(AGAINST_ITSELF),
            r"j\.jsonl:1: model_1 and model_2 must be different models, got the text 'm' twice. Remove the row",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_judgements(path)


SINGLE: dict[str, Any] = {
    "question_id": 81, "model": "m", "judge": ["j", "single-v1"], "user_prompt": "p", "judgment": "t", "score": 8, "turn": 1,
}  # fmt: skip
PAIR: dict[str, Any] = {
    "question_id": 81, "model_1": "a", "model_2": "b", "g1_winner": "model_1", "g2_winner": "tie", "judge": "j", "turn": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        (SINGLE, {"score": True}, "score must be a number from 0, or -1 where the judge failed, got true"),
        (
            SINGLE,
            {"score": "8"},
            "score must be a number from 0, or -1 where the judge failed, got the text '8'",
        ),
        (
            SINGLE,
            {"score": -5},
            "score must be a number from 0, or -1 where the judge failed, got the number -5",
        ),
        (SINGLE, {"turn": "1"}, "turn must be a whole number from 1 to 1000, got the text '1'"),
        (SINGLE, {"turn": 0}, "turn must be a whole number from 1 to 1000, got the number 0"),
        (SINGLE, {"turn": True}, "turn must be a whole number from 1 to 1000, got true"),
        (SINGLE, {"turn": 1.0}, "turn must be a whole number from 1 to 1000, got the number 1.0"),
        (SINGLE, {"model": None}, "model must be a text or a whole number, got null"),
        (SINGLE, {"model": ["m"]}, "model must be a text or a whole number, got a list of 1"),
        (SINGLE, {"question_id": 81.0}, "question_id must be a text or a whole number, got the number 81.0"),
        (
            SINGLE,
            {"judge": ["j"]},
            "judge must be a model name, or a list of model name and prompt name, got a list of 1",
        ),
        (SINGLE, {"judge": [None, "p"]}, r"judge\[0\] must be a text or a whole number, got null"),
        (
            SINGLE,
            {"judge": {"j": 1}},
            "judge must be a model name, or a list of model name and prompt name, got an object with j",
        ),
        (SINGLE, {"judgment": {"text": "x"}}, "judgment must be text, got an object with text"),
        (SINGLE, {"user_prompt": 3}, "user_prompt must be text, got the number 3"),
        (SINGLE, {"tstamp": "now"}, "tstamp must be a number, got the text 'now'"),
        (PAIR, {"g1_winner": "A"}, "g1_winner must be model_1, tie, model_2 or error, got the text 'A'"),
        (PAIR, {"g2_winner": ["tie"]}, "g2_winner must be model_1, tie, model_2 or error, got a list of 1"),
        (PAIR, {"g2_winner": None}, "g2_winner must be model_1, tie, model_2 or error, got null"),
        (PAIR, {"model_2": 1.5}, "model_2 must be a text or a whole number, got the number 1.5"),
        (SINGLE, {"judgment": "cut \ud83d"}, "judgment: half a surrogate pair"),
    ],
)
def test_judgements_with_odd_fields_are_refused_by_their_line(
    tmp_path: Path, good: Any, bad: Any, says: str
) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(good | bad)}\n", encoding="utf-8-sig")
    with pytest.raises(BadFile, match=rf"j\.jsonl:3: {says}"):
        read_judgements(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_mark_line_ends_and_absent_texts_change_no_judgement(tmp_path: Path, end: str) -> None:
    """A score that is no number is missing with its reason, as FastChat's -1 is."""
    failed, odd = SINGLE | {"score": -1, "judgment": "$ERROR$"}, SINGLE | {"score": float("nan")}
    rows = [SINGLE, SINGLE | {"judgment": None, "judge": "j"}, failed, odd]
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + end for row in rows).encode())
    found = read_judgements(path)
    assert [row.score for row in found if isinstance(row, Rated)] == [8, 8, None, None]
    assert [row.verdict.unscored for row in found if isinstance(row, Rated)] == [
        None, None, "the request failed", "the judge's reply has no rating",
    ]  # fmt: skip
    assert fastchat_averages([row for row in found if isinstance(row, Rated)])["average"] == 8


def test_categories_are_those_of_the_eighty_questions() -> None:
    assert [category_of(str(n)) for n in (80, 81, 90, 91, 160, 161)] == [
        None,
        "writing",
        "writing",
        "roleplay",
        "humanities",
        None,
    ]
    assert category_of("mine") is None


def test_several_samples_of_a_question_are_choices(tmp_path: Path) -> None:
    draws = [Completion("81", [], ["a", "b"], [], []), Completion("81", [], ["c", "d"], [], [], draw=1)]
    write_answers(tmp_path / "m.jsonl", "m", draws)
    (row,) = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert row["choices"] == [{"index": 0, "turns": ["a", "b"]}, {"index": 1, "turns": ["c", "d"]}]
    assert read_answers(tmp_path / "m.jsonl") == {"81": ["a", "b"]}


# What recorded judgements were about ------------------------------------------------------------------------------------


def recorded(name: str) -> Path:
    return MT_BENCH / "model_judgment" / f"{name}.jsonl.gz"


@needs_fixtures
@pytest.mark.parametrize(
    ("file", "n", "verdicts"),
    [("phi3_gpt-4_single", 80, 160), ("orpo_gpt-4_single", 320, 640), ("phi3_gpt-4_pair", 73, 73)],
)
def test_recorded_prompts_give_back_questions_references_and_answers(
    file: str, n: int, verdicts: int
) -> None:
    """Byte for byte what stands in FastChat's own files, the last generation of answers where a model was judged twice."""
    judged = read_judged(recorded(file))
    assert (len(judged), sum(len(found) for *_, found in judged)) == (n, verdicts)
    references = read_answers(MT_BENCH / "reference_answer" / "gpt-4.jsonl")
    questions = {
        item.id.removeprefix("mt_bench-"): item.turns for item in read_mt_bench(MT_BENCH / "question.jsonl")
    }
    rows = [row for path in (MT_BENCH / "model_answer").glob("*.gz") for _, row in read_rows(path)]
    answers = {(row["model_id"], str(row["question_id"])): row["choices"][0]["turns"] for row in rows}
    for item, completion, found in judged:
        name, question = item.id.rsplit("/", 1)
        turns = len(item.turns)
        assert item.turns == questions[question][:turns] and {verdict.item_id for verdict in found} == {
            item.id
        }
        assert item.reference == (references[question][:turns] if question in references else None)
        for model, texts in zip(name.split(" vs "), [completion.completions, item.baseline], strict=False):
            assert texts == answers[model, question][:turns]


@needs_fixtures
def test_a_record_of_failures_is_refused_as_a_truth() -> None:
    with pytest.raises(ValueError, match=r"122 of 160 judgements \(76%\) have no score, more than 10%"):
        read_judged(recorded("granite_gpt-4_single"))


def test_a_third_turn_is_no_part_of_what_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text("".join(json.dumps(SINGLE | {"turn": turn}) + "\n" for turn in (1, 2, 3)))
    with pytest.raises(BadFile, match=r"j\.jsonl: m/81: only turns 1 and 2 are supported, got turn 3"):
        read_judged(path)


def test_prompts_that_are_not_fastchats_have_no_texts(tmp_path: Path) -> None:
    """A row that our own judge wrote has no prompt."""
    assert read_prompt("What is this?") is None
    one = "[Question]\nSay a.\n\n[The Start of Assistant's Answer]\nIt is a.\n[The End of Assistant's Answer]"
    found = read_prompt(one)
    assert found is not None and (found.turns, found.answers, found.others, found.references) == (
        ["Say a."],
        ["It is a."],
        None,
        None,
    )
    path = tmp_path / "single.jsonl"
    write_rated(path, [Rated("mine", Verdict("81", "j", rating=7.0), 7.0)])
    with pytest.raises(ValueError, match=r"mine/81: user_prompt is not one of FastChat's prompts"):
        read_judged(path)
