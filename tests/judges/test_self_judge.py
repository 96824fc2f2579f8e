"""The judge that writes: what it is asked, how its replies are read and added up, and how right it is, by hand."""

from __future__ import annotations

import pytest

from bench.config import JudgePrompt
from bench.judges.self_judge import Ranking, SelfJudgements, add_up, judge_quality, questions, read_reply
from bench.records import Completion, Item
from bench.world.tasks import Constraint, Turn

TURN = Turn(
    "What is 1 plus 2? Be polite. Use at most 4 words.",
    "math",
    (("3",),),
    (Constraint("polite"), Constraint("at_most", 4)),
    5,
)
IN_WORLD = Item("math-1", "math", [TURN.text], [TURN.to_json()])
BEFORE = [{"role": "user", "content": "Rain in June?"}, {"role": "assistant", "content": "No."}]
OUTSIDE = Item("prompt-7", None, ["And in May?"], context=BEFORE)


def drawn(item: Item, *texts: str) -> list[Completion]:
    return [Completion(item.id, item.turns, [text], [], [], draw) for draw, text in enumerate(texts)]


# Questions ------------------------------------------------------------------------------------------------------------


def test_in_the_world_each_criterion_of_the_prompt_is_a_question() -> None:
    asked = questions("criteria", IN_WORLD, drawn(IN_WORLD, "It is 3.", "Four."))
    assert [question.name for question in asked] == [
        "math-1#0",
        "math-1#1",
        "math-1#2",
        "math-1/1#0",
        "math-1/1#1",
        "math-1/1#2",
    ]
    assert [m["content"] for m in asked[1].messages] == ["It is 3.", "Use at most 4 words?"]
    assert [m["content"] for m in asked[5].messages][:2] == [TURN.text, "Four."]


def test_pairs_are_asked_in_both_orders_and_equal_texts_not_at_all() -> None:
    asked = questions("pairwise", IN_WORLD, drawn(IN_WORLD, "a", "b", "a"))
    assert [question.name for question in asked] == [
        "math-1>math-1/1#0",
        "math-1/1>math-1#0",
        "math-1/1>math-1/2#0",
        "math-1/2>math-1/1#0",
    ]
    assert [m["content"] for m in asked[1].messages][1:3] == ["b", "a"]


@pytest.mark.parametrize(("prompt", "n"), [("additive", 1), ("multiple_choice", 1), ("criteria", 5)])
def test_outside_the_world_the_whole_conversation_and_the_answer_are_shown(
    prompt: JudgePrompt, n: int
) -> None:
    asked = questions(prompt, OUTSIDE, drawn(OUTSIDE, "Yes, a lot."))
    assert len(asked) == n
    for question in asked:
        (message,) = question.messages
        assert all(
            text in message["content"]
            for text in ("User: Rain in June?", "Assistant: No.", "User: And in May?", "Yes, a lot.")
        )


# Replies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "reply", "read"),
    [
        ("additive", "It is on the topic.\n\nScore: 3", 3.0),
        ("additive", "1, 0, 1. Score: 2", 2.0),
        ("additive", "**Score:** 4/5", 4.0),
        ("additive", "Score: 2 at first sight; all in all, score: 4.5", 4.5),
        ("additive", "score = 5 out of 5.", 5.0),
        ("additive", "Score: 7", None),
        ("additive", "Score: 10/10", None),
        ("additive", "Score: 20", None),
        ("additive", "I would give it three points.", None),
        ("additive", "3", None),
        ("additive", "", None),
        ("criteria", "1", 1.0),
        ("criteria", " 0.", 0.0),
        ("criteria", "The answer is polite: 1", 1.0),
        ("criteria", "10", None),
        ("criteria", "2", None),
        ("criteria", "1 because it is polite", None),
        ("multiple_choice", "A", 5.0),
        ("multiple_choice", "(e)", 1.0),
        ("multiple_choice", "It is helpful. Choice: B", 4.0),
        ("multiple_choice", "Choice: (C)", 3.0),
        ("multiple_choice", "Choice: F", None),
        ("multiple_choice", "A good answer", None),
        ("pairwise", "first", 1.0),
        ("pairwise", "Second.", 0.0),
        ("pairwise", "Both are fine. Better: first", 1.0),
        ("pairwise", "The first is longer, the second better.", None),
        ("pairwise", "neither", None),
        ("additive", "<think>At first Score: 3, but the rest", None),  # cut
        ("additive", "[THINK]Score: 3[/THINK]Score: 4", 4.0),
        ("additive", "<thought>Score: 3</thought>It is good.", None),
        ("criteria", "<think>so far it is 1", None),
        ("criteria", "analysisso far it is 1assistantfinal0", 0.0),
        ("multiple_choice", "<think>Choice: A, or</think>C", 3.0),
        ("pairwise", "◁think▷Better: first◁/think▷second", 0.0),
    ],
)
def test_a_reply_is_read_or_it_is_none(prompt: JudgePrompt, reply: str, read: float | None) -> None:
    assert read_reply(prompt, reply) == read


def test_judgements_are_averaged_over_those_that_can_be_read() -> None:
    """(3 + 4) / 2, one unreadable; y has none that can be read, and no score."""
    replies = [
        ("x#0", 0, "Score: 3"),
        ("x#0", 1, "hm"),
        ("x#0", 2, "Score: 4"),
        ("y#0", 0, "?"),
        ("z#0", 0, "Score: 5"),
    ]
    assert add_up("additive", replies) == SelfJudgements(
        {"x": 3.5, "z": 5.0}, frozenset({"z"}), 5, 2, {"3": 1, "4": 1, "5": 1}
    )


def test_criteria_are_summed_and_one_that_nobody_could_read_leaves_no_score() -> None:
    """x: 1 + (1 + 0) / 2, of draws 2 and 1; y lacks its second criterion."""
    replies = [
        ("x#0", 0, "1"),
        ("x#0", 1, "1"),
        ("x#1", 0, "1"),
        ("x#1", 1, "0"),
        ("y#0", 0, "1"),
        ("y#1", 0, "no"),
    ]
    assert add_up("criteria", replies) == SelfJudgements({"x": 1.5}, frozenset(), 6, 1, {"1": 1, "2": 1})
    assert add_up("criteria", replies[:1]).perfect == {"x"}


def test_pairs_give_the_share_of_comparisons_won() -> None:
    """a wins both against b; against c one of two, which one reply cannot say of b."""
    replies = [
        ("a>b#0", 0, "first"),
        ("b>a#0", 0, "second"),
        ("a>c#0", 0, "first"),
        ("c>a#0", 0, "first"),
        ("b>c#0", 0, "?"),
    ]
    found = add_up("pairwise", replies)
    assert found.scores == {"a": 3 / 4, "b": 0.0, "c": 1 / 2}
    assert (found.replies, found.unparsed, found.histogram) == (5, 1, {"first": 3, "second": 1})


# How right a judge is -------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_judge_by_hand() -> None:
    """One ranking of three: truths 9, 5, 1, scores 5, 5, 2: pairs a tie and two right, (1/2 + 1 + 1) / 3; two perfect, one of them the
    best; order not exact; tau-b 2 / sqrt(3 * 2), rho of ranks 2.5, 2.5, 1 and 3, 2, 1: sqrt(3) / 2."""
    found = dict(judge_quality([Ranking([5.0, 5.0, 2.0], [9.0, 5.0, 1.0], [True, True, False])]))
    values = {name: estimate.value for name, estimate in found.items() if estimate}
    assert values == pytest.approx(
        {
            "pair_accuracy": 5 / 6,
            "best_accuracy": 1 / 2,
            "exact_match": 0,
            "spearman": 3**0.5 / 2,
            "kendall": 2 / 6**0.5,
            "tie_rate": 1 / 3,
        }
    )


def test_what_was_not_scored_is_left_out_and_a_judge_of_one_opinion_knows_nothing() -> None:
    """First: one unscored of three, the other two right. Second: all the same, half right, no correlation. Third: no truth to tell."""
    rankings = [
        Ranking([2.0, None, 1.0], [3.0, 2.0, 1.0], [False] * 3),
        Ranking([1.0, 1.0], [3.0, 1.0], [False] * 2),
        Ranking([2.0, 1.0], [1.0, 1.0], [False] * 2),
    ]
    found = dict(judge_quality(rankings))
    assert found["best_accuracy"] is None
    pairs, exact, tau = found["pair_accuracy"], found["exact_match"], found["kendall"]
    assert pairs is not None and (pairs.value, pairs.n) == (0.75, 2)
    assert exact is not None and (exact.value, exact.n) == (0.0, 1)
    assert tau is not None and (tau.value, tau.n) == (0.5, 2)
    assert dict(judge_quality([]))["pair_accuracy"] is None


def test_an_exact_order_ties_where_the_truth_ties() -> None:
    same = Ranking([2.0, 1.0, 1.0], [7.0, 3.0, 3.0], [False] * 3)
    apart = Ranking([2.0, 1.0, 0.0], [7.0, 3.0, 3.0], [False] * 3)
    for ranking, exact in ((same, 1.0), (apart, 0.0)):
        found = dict(judge_quality([ranking]))["exact_match"]
        assert found is not None and found.value == exact
