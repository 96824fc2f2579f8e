"""Arena-Hard's manner over real HTTP: games, five verdicts, what is stored; its files; and its checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import Answer, Endpoint, Said

from bench.config import Asking
from bench.judges.asked.prompts import OWN_GAME, arena_hard_template
from bench.judges.asked.replies import GAMES, find_game, read_game
from bench.judges.asked.request import Reply
from bench.judges.formats.items import read_benchmark_items
from bench.records import Completion, Item, Verdict, read_jsonl, write_jsonl
from bench.stages import judge
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import LanguageJudgeSettings

ASKING = Asking(
    server="endpoint",
    base_url=None,
    api_key_env="BENCH_TEST_KEY",
    concurrency=1,
    attempts=1,
    timeout_s=10.0,
    batch_wait_s=None,
    budget_dollars=None,
    prices=None,
    tokenizer=None,
)
SETTINGS = LanguageJudgeSettings(
    manner="arena_hard",
    mode="both",
    model="some-judge",
    provider="test",
    dtype="float32",
    server_args=(),
    temperature=0.0,
    top_p=None,
    max_tokens=None,
    top_logprobs=0,
    request="{}",
    parser="test",
)
OURS = ["# a good answer", "bad", "the same", "{ANSWER_B} **bold**", "mute"]
ITEMS = [Item(f"i{n}", "math", [f"say {n}"], baseline=["the same"]) for n in range(len(OURS))]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint(say)
    yield running
    running.close()


def say(body: Mapping[str, Any]) -> str | Said | Answer:
    """Likes what is called good, strongly where it stands second; a little bent to whoever stands first; once no verdict at all."""
    text = body["messages"][-1]["content"]
    first, second = text.split("=== Answer of assistant B ===")
    if "good" in text:
        return "I would say so. [[A>B]]" if "good" in first else "so: [[A>B]] or rather [[b>>a]]"
    if "bad" in text:
        return "[[A=B]]" if "bad" in first else "[[A>>B]]"
    return "I cannot say" if "mute" in second else "[[A>B]]"


def judged(root: Path, endpoint: Endpoint) -> list[Verdict]:
    for name in ("items", "completions", "out", "work"):
        (root / name).mkdir(exist_ok=True)
    write_jsonl(root / "items" / "items.jsonl", ITEMS)
    answers = [
        Completion(item.id, item.turns, [text], [], []) for item, text in zip(ITEMS, OURS, strict=True)
    ]
    write_jsonl(root / "completions" / "completions.jsonl", answers)
    inputs = {"items": root / "items", "completions": root / "completions", "prompts": OWN_GAME}
    settings = SETTINGS.model_copy(update={"asking": ASKING.model_copy(update={"base_url": endpoint.url})})
    judge.run(settings, StageRun(inputs, root / "out", Progress(root / "progress"), "k", root / "work"))
    return list(read_jsonl(root / "out" / "verdicts.jsonl", Verdict))


def test_each_pair_is_two_games_and_a_strong_win_counts_three_times(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """Good: a win first, a strong one second. Bad: a tie first, a strong loss second: 0.5 of 4. Nobody is asked about equal texts."""
    found = judged(tmp_path, endpoint)
    assert [verdict.preference for verdict in found[:4]] == [1.0, 0.125, 0.5, 0.5]
    assert found[0].details is not None and found[1].details is not None
    assert (found[0].details["policy_first"], found[0].details["baseline_first"]) == (1, 2)
    assert (found[1].details["policy_first"], found[1].details["baseline_first"]) == (0, -2)
    assert found[0].details["policy_headers"] == 1 and found[0].details["baseline_headers"] == 0
    assert [(call.policy_first, call.preference) for call in found[1].calls] == [(True, 0.5), (False, 0.0)]
    assert found[2].calls == [] and len(endpoint.asked) == 8
    assert (
        found[3].details is not None and found[3].details["policy_bold"] == 1
    )  # each order won by who stands first: half
    assert "logprobs" not in endpoint.asked[0] and endpoint.asked[0]["max_tokens"] == 16000


def test_an_item_without_one_of_its_games_is_unscored_with_its_text(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    mute = judged(tmp_path, endpoint)[4]
    assert (
        mute.unscored == "no verdict like [[A>B]] in 'I cannot say'"
        and mute.raw is not None
        and "I cannot say" in mute.raw
    )
    assert len(mute.calls) == 2 and mute.details is None


def test_an_answer_is_never_read_as_template(endpoint: Endpoint, tmp_path: Path) -> None:
    judged(tmp_path, endpoint)
    shown = [
        body["messages"][-1]["content"]
        for body in endpoint.asked
        if "say 3" in body["messages"][-1]["content"]
    ]
    assert len(shown) == 2 and all(
        text.count("the same") == 1 and text.count("{ANSWER_B} **bold**") == 1 for text in shown
    )


@pytest.mark.parametrize(
    ("text", "game"),
    [
        ("[[A>>B]]", 2),
        ("My final verdict is: [[A>B]]", 1),
        ("[[a=b]]", 0),
        ("[[A<<B]] no, [[B>A]]", -1),
        ("[[B>>A]]", -2),
        ("[[B<<A]]", 2),
        ("[A>B]", None),
        ("[[A]]", None),
        ("[[A>B]] [[A>>>B]]", None),
        ("", None),
    ],
)
def test_the_last_verdict_in_double_brackets_counts(text: str, game: int | None) -> None:
    found = find_game(text)
    assert (GAMES[found.text] if found else None) == game
    reading = read_game(Reply(text))
    assert (reading.margin, reading.why is None) == (None if game is None else -game, game is not None)


def test_a_reasoning_judges_verdict_comes_after_its_thinking() -> None:
    assert read_game(Reply("<think>[[A>>B]] at first</think> [[B>A]]")).value == 1.0
    assert (
        read_game(Reply("<think>[[A>>B]]", finish_reason="length")).why
        == "its thinking did not end: the reply was cut at max_tokens"
    )


def test_prompts_of_the_user_are_files_as_arena_hard_writes_them(tmp_path: Path) -> None:
    """Both generations' names of the places; what is no such file is said."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {"system_prompt": "Judge.", "prompt_template": ["{question_1} / {answer_1} / {answer_2}"]}
        )
    )
    filled = arena_hard_template(path).fill({"QUESTION": "q", "ANSWER_A": "{ANSWER_B}", "ANSWER_B": "b"})
    assert filled == [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "q / {ANSWER_B} / b"},
    ]
    path.write_text(yaml.safe_dump({"system_prompt": "Judge.", "prompt_template": "{QUESTION} {ANSWER_A}"}))
    with pytest.raises(ValueError, match=r"prompt_template has no placeholder \{ANSWER_B\}"):
        arena_hard_template(path)
    path.write_text("prompt_template: x")
    with pytest.raises(ValueError, match="expected a YAML file with system_prompt and prompt_template"):
        arena_hard_template(path)


@pytest.mark.parametrize("place", ["{BASELINE}", "{answer_3}"])
def test_an_unknown_placeholder_is_refused_and_not_sent(tmp_path: Path, place: str) -> None:
    path = tmp_path / "prompt.yaml"
    prompt = f"{{QUESTION}} {{ANSWER_A}} {{ANSWER_B}} {place}"
    path.write_text(json.dumps({"system_prompt": "Judge.", "prompt_template": prompt}))
    with pytest.raises(ValueError, match=rf"unknown placeholder \{place}; known: \{{QUESTION\}}"):
        arena_hard_template(path)


def test_items_of_arena_hards_own_files(
    problems: Callable[..., list[str]], opened: Callable[..., Any], tmp_path: Path
) -> None:
    questions, answers = tmp_path / "question.jsonl", tmp_path / "o3-mini.jsonl"
    questions.write_text(json.dumps({"uid": "u1", "category": "hard_prompt", "prompt": "Prove it."}) + "\n")
    messages = [{"role": "user", "content": "Prove it."}, {"role": "assistant", "content": {"answer": "So."}}]
    answers.write_text(json.dumps({"uid": "u1", "model": "o3-mini", "messages": messages}) + "\n")
    (item,) = read_benchmark_items("arena_hard", {"items": questions, "baseline": answers})
    assert (item.id, item.category, item.turns, item.baseline) == (
        "arena_hard-u1",
        "hard_prompt",
        ["Prove it."],
        ["So."],
    )
    words = (
        "judge=arena_hard",
        "judge.model=m",
        "judge.decoding.max_new_tokens=48",
        f"judge.items={questions}",
    )
    assert opened(*words, f"judge.baseline={answers}").sources[0].judge.n_items == 1
    assert any(
        "expected a JSON list of objects with instruction and output" in problem
        for problem in problems(*words)
    )
    answers.write_text("")
    assert any(
        "has no answer to question u1" in problem for problem in problems(*words, f"judge.baseline={answers}")
    )
    assert any("needs judge.items" in p for p in problems(*words[:3], f"judge.baseline={answers}"))
