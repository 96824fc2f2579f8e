"""What a tiny model is asked when it judges in the controlled world, and what a judge who knows the truth would reply.

The criteria of a completion can be read off its prompt: each constraint, and last whether the answer is right. All questions are short:
the conversation, and a user's turn after it. Words are the tokenizer's own wherever that was possible. A constraint is asked about the
completion alone: where the prompt stands before it too, the word to begin with is there whether it was kept or not, and a model of two
layers learns little more than how often constraints are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.config import GoldWeights
from bench.records import Message
from bench.world.gold import gold, keeps
from bench.world.tasks import Constraint, Turn

ANSWER = "Is it the answer?"
TOTAL = "Which marks?"
GRADE = "Which of A, B, C, D, E?"
BETTER = "The first or the second?"
GRADES = "EDCBA"  # from the worst: a fifth of the gold scale each


def criteria(turn: Turn, completion: str) -> list[list[Message]]:
    """What is asked of a completion: about each constraint, in the prompt's order, and about the answer's content."""
    said: Message = {"role": "assistant", "content": completion}
    about = [[said, {"role": "user", "content": _question(constraint)}] for constraint in turn.constraints]
    return [*about, asked(turn, [completion], ANSWER)]


def _question(constraint: Constraint) -> str:
    """Its text as a question; of a word to avoid without `the word`, which may be the one."""
    return f"Avoid {constraint.value}?" if constraint.kind == "avoid" else f"{constraint.text.removesuffix('.')}?"


def marks(turn: Turn, completion: str, weights: GoldWeights) -> list[int]:
    """The truth on each criterion: 1 where it is met."""
    met = [keeps(constraint, completion) for constraint in turn.constraints]
    return [int(each) for each in (*met, gold(turn, completion, weights).content == 1)]


def asked(turn: Turn, completions: Sequence[str], question: str) -> list[Message]:
    """The conversation up to the judge's reply; two completions stand one after the other."""
    said: list[Message] = [{"role": "assistant", "content": text} for text in completions]
    return [{"role": "user", "content": turn.text}, *said, {"role": "user", "content": question}]


def total_reply(turn: Turn, completion: str, weights: GoldWeights) -> str:
    """Mark by mark, then their sum."""
    found = marks(turn, completion, weights)
    return f"{', '.join(map(str, found))}. Score: {sum(found)}"


def grade_reply(turn: Turn, completion: str, weights: GoldWeights) -> str:
    total = gold(turn, completion, weights).total
    return GRADES[min(int(total / 2), len(GRADES) - 1)]


def better_reply(turn: Turn, first: str, second: str, weights: GoldWeights) -> str | None:
    """None where neither is better."""
    difference = gold(turn, first, weights).total - gold(turn, second, weights).total
    return None if difference == 0 else "first" if difference > 0 else "second"
