"""Prompts that a model writes: requests, reading, and the filter, against ROUGE-L by hand."""

from __future__ import annotations

import random

import pytest

from bench.readers.new_prompts import Filtered, few_shot, new_ones, prompt_of, rouge_l


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (
            "police killed the gunman",
            "police kill the gunman",
            3 / 4,
        ),  # Lin 2004, section 3: LCS 3 of 4 and 4
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("a b c d e", "a c e", 2 * 3 / 8),
        ("a b", "c d", 0.0),
        ("", "a", 0.0),
    ],
)
def test_rouge_l_by_hand(a: str, b: str, value: float) -> None:
    assert rouge_l(a.split(), b.split()) == rouge_l(b.split(), a.split()) == pytest.approx(value)


def test_what_is_like_a_known_prompt_or_an_earlier_one_is_dropped() -> None:
    known = ["Write a poem about the sea."]
    written = [
        "1. Write a poem about the moon.",  # LCS 5 of 6 and 6: 0.83
        "Name three rivers in Peru.",
        "Name three big rivers in Peru.",  # 5 of 5 and 6: 0.91, to the one before
        "Sea the about poem a write.",  # the same words in another order: LCS 1
        "Draw a picture of a cat.",
        "Why?",
        "",
    ]
    kept = ["Name three rivers in Peru.", "Sea the about poem a write."]
    assert new_ones(written, known, 0.7, 10) == Filtered(kept, {"unusable": 3, "similar": 2, "surplus": 0})
    assert new_ones(written, known, 0.7, 1) == Filtered(
        kept[:1], {"unusable": 3, "similar": 1, "surplus": 3 - 1}
    )
    assert "Write a poem about the moon." in new_ones(written, known, 0.9, 10).kept


def test_prompts_without_blanks_between_words_are_counted_by_character() -> None:
    known = ["写一首关于大海的诗。"]
    written = [
        "1、写一首关于月亮的诗。",  # 7 of 9 and 9 characters
        "请列举秘鲁的三条河流,并说明它们流向哪里。",
        "为什么?",
        "画一张猫的图片给我看。",
        "なぜ空は青いのですか。",
        "ทำไมท้องฟ้าเป็นสีฟ้า",
    ]
    kept = [written[1], *written[4:]]
    assert new_ones(written, known, 0.7, 10) == Filtered(kept, {"unusable": 2, "similar": 1, "surplus": 0})


@pytest.mark.parametrize(
    ("reply", "prompt"),
    [
        ("9. Explain rain.", "Explain rain."),
        ("Task 9: Explain rain.\nIn two lines.", "Explain rain.\nIn two lines."),
        ("Explain rain.\n\nExplain snow.", "Explain rain."),
        ("Explain rain.\n10. Explain snow.", "Explain rain."),
        ("  \n", None),
        ("1、解释下雨。\n2、解释下雪。", "解释下雨。"),
        ("任务 3:写一首诗。", "写一首诗。"),
    ],
)
def test_the_first_task_of_a_reply_is_taken(reply: str, prompt: str | None) -> None:
    assert prompt_of(reply) == prompt


def test_a_request_shows_earlier_prompts_beside_known_ones() -> None:
    known, written = [f"known {i}" for i in range(20)], [f"own {i}" for i in range(5)]
    text = few_shot(known, written, 6, 2, random.Random(0))
    assert (text.count(". known"), text.count(". own")) == (6, 2)
    first = few_shot(known, [], 6, 2, random.Random(0))
    assert (first.count(". known"), first.count(". own")) == (8, 0)
