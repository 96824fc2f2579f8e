"""Prompts for tiny models that judge in the controlled world, and the replies of a judge that knows the
truth.

The criteria of a completion follow from its prompt: each constraint, and last whether the answer is right.
All questions are short: the conversation, followed by a user's turn. They use words of the world's tokenizer
where possible. A question about a constraint shows the completion without its prompt. The prompt names the
word to begin with, whether the completion uses it or not; with the prompt, a model of two layers learns
little more than how often constraints are kept.
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
GRADES = "EDCBA"  # From the worst; each covers a fifth of the gold scale.


def criteria(turn: Turn, completion: str) -> list[list[Message]]:
    """Prompts for the criteria of a completion: one per constraint, in the prompt's order, then one for the
    content.
    """
    shown: Message = {"role": "assistant", "content": completion}
    of_constraints = [
        [shown, {"role": "user", "content": _question(constraint)}] for constraint in turn.constraints
    ]
    return [*of_constraints, judging_prompt(turn, [completion], ANSWER)]


def _question(constraint: Constraint) -> str:
    """The constraint's text as a question.

    A word to avoid is asked without `the word`, because that may be the word to avoid.
    """
    return (
        f"Avoid {constraint.value}?"
        if constraint.kind == "avoid"
        else f"{constraint.text.removesuffix('.')}?"
    )


def marks(turn: Turn, completion: str, weights: GoldWeights) -> list[int]:
    """True marks of a completion: 1 for each criterion that is met, else 0."""
    met = [keeps(constraint, completion) for constraint in turn.constraints]
    return [int(each) for each in (*met, gold(turn, completion, weights).content == 1)]


def judging_prompt(turn: Turn, completions: Sequence[str], question: str) -> list[Message]:
    """The turn, its one or two completions, and the question to the judge."""
    shown: list[Message] = [{"role": "assistant", "content": text} for text in completions]
    return [{"role": "user", "content": turn.text}, *shown, {"role": "user", "content": question}]


def total_reply(turn: Turn, completion: str, weights: GoldWeights) -> str:
    """The true reply to TOTAL: all marks, then their sum."""
    given = marks(turn, completion, weights)
    return f"{', '.join(map(str, given))}. Score: {sum(given)}"


def grade_reply(turn: Turn, completion: str, weights: GoldWeights) -> str:
    """The true reply to GRADE: a letter from A (best) to E."""
    total = gold(turn, completion, weights).total
    return GRADES[min(int(total / 2), len(GRADES) - 1)]


def better_reply(turn: Turn, first: str, second: str, weights: GoldWeights) -> str | None:
    """The true reply to BETTER: `first` or `second`; None if both have the same gold reward."""
    difference = gold(turn, first, weights).total - gold(turn, second, weights).total
    return None if difference == 0 else "first" if difference > 0 else "second"
