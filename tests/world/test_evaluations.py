"""Evaluations by who knows the truth, by hand."""

from __future__ import annotations

import random

from bench.config import GoldWeights, Writer
from bench.judges.self_judge import read_reply
from bench.world import judging
from bench.world.tasks import Constraint, Turn
from bench.world.tokenizer import new_tokenizer
from bench.world.writers import write

WEIGHTS = GoldWeights(content=0.45, constraints=0.45, conciseness=0.1)
TURN = Turn(
    "What is 1 plus 2? Be polite. Avoid the word is.",
    "math",
    (("3",),),
    (Constraint("polite"), Constraint("avoid", "is")),
    7,
)


def test_marks_follow_the_prompt_and_end_with_the_answer() -> None:
    asked = [[message["content"] for message in messages] for messages in judging.criteria(TURN, "It is 3.")]
    assert asked == [
        ["It is 3.", "Be polite?"],
        ["It is 3.", "Avoid is?"],
        [TURN.text, "It is 3.", judging.ANSWER],
    ]
    assert judging.marks(TURN, "That makes 3. Thank you.", WEIGHTS) == [1, 1, 1]
    assert judging.marks(TURN, "The answer is 4. Thank you.", WEIGHTS) == [1, 0, 0]
    assert judging.total_reply(TURN, "The answer is 3.", WEIGHTS) == "0, 0, 1. Score: 1"


def test_what_the_truth_replies_can_be_read() -> None:
    good, bad = "That makes 3. Thank you.", "The answer is 4."
    assert read_reply("additive", judging.total_reply(TURN, good, WEIGHTS)) == 3
    assert read_reply("multiple_choice", judging.grade_reply(TURN, good, WEIGHTS)) == 5
    assert read_reply("multiple_choice", judging.grade_reply(TURN, bad, WEIGHTS)) == 1
    assert judging.better_reply(TURN, good, bad, WEIGHTS) == "first"
    assert judging.better_reply(TURN, bad, good, WEIGHTS) == "second"
    assert judging.better_reply(TURN, good, good, WEIGHTS) is None


def test_a_perfect_answer_has_every_mark() -> None:
    perfect = Writer(error=0, missed_constraint=0, filler=0)
    assert judging.marks(TURN, write(TURN, perfect, random.Random(0)), WEIGHTS) == [1, 1, 1]


def test_questions_are_short_in_the_worlds_tokens() -> None:
    """A tiny model reads prompt, two completions and question within its 192 tokens."""
    tokenizer = new_tokenizer(192)
    asked = [messages[-1]["content"] for messages in judging.criteria(TURN, "")]
    assert (
        max(
            len(tokenizer(text)["input_ids"])
            for text in (*asked, judging.TOTAL, judging.GRADE, judging.BETTER)
        )
        < 24
    )
