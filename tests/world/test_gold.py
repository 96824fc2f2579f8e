from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import GoldWeights, World, WorldAnnotator, Writer
from bench.world import vocabulary
from bench.world.gold import annotator_prefers, count_words, draw_label, gold, keeps, margin
from bench.world.tasks import Constraint, Task, Turn, make_tasks
from bench.world.writers import write

WEIGHTS = GoldWeights(content=0.45, constraints=0.35, conciseness=0.2)
PERFECT = Writer(error=0.0, missed_constraint=0.0, filler=0.0)
LIST = Turn(
    text="Reverse the list dog, red, plum. Be polite. Begin with the word Well.",
    category="coding",
    slots=(("plum", "red", "dog"),),
    constraints=(Constraint("polite"), Constraint("begin", "Well")),
    target_words=9,
)
NOTE = Turn(
    "Write a sad note of two sentences about the beach.",
    "writing",
    (("beach", "@sad"), ("beach", "@sad")),
    (),
    8,
)


def test_a_perfect_answer_has_ten_points() -> None:
    answer = gold(LIST, "Well, the result is plum, red, dog. Thank you.", WEIGHTS)
    assert answer == (1, 1, 1, 1, pytest.approx(10))


def test_parts_of_a_middling_answer_by_hand() -> None:
    """`red` stands in place, `plum` and `dog` do not: c 1/3. One of two constraints: s 1/2. 14 words, 5 too many: exp(-5/8).

    10 (.45/3 + (.3 + .7/3) (.35/2 + .2 exp(-5/8))) = 3.0043
    """
    answer = gold(LIST, "The result is dog, red, plum. Thank you. I am glad to help you.", WEIGHTS)
    assert answer[:4] == pytest.approx((1 / 3, 1 / 2, math.exp(-5 / 8), 1))
    assert answer.total == pytest.approx(3.0043, abs=1e-4)


@pytest.mark.parametrize(
    ("completion", "content"),
    [
        ("The result is plum, red, dog.", 1),
        ("The result is plum, red.", 2 / 3),
        ("The result is plum, red, dog, blue.", 1 / 3),  # one too many costs two
        ("Plum, red, dog, red, blue.", 0),
        ("Thank you.", 0),
    ],
)
def test_content_counts_places_and_charges_for_extras(completion: str, content: float) -> None:
    assert gold(LIST, completion, WEIGHTS).content == pytest.approx(content)


@pytest.mark.parametrize(
    ("completion", "content", "fluency"),
    [
        ("The beach is bleak. My beach looks empty.", 1, 1),
        ("The beach is bleak. The beach is bleak.", 1, 0.5),  # said twice
        ("The beach is bleak.", 2 / 5, 1),  # of beach, @sad, break, beach, @sad
        ("The beach is merry. The beach is bleak.", 4 / 5, 1),
        ("The beach is bleak. The beach is empty", 1, 0.7),  # no mark at the end
        ("The beach is xyzzy. The beach is bleak.", 1 / 5, 7 / 8),  # places shift; one word in eight unknown
    ],
)
def test_a_note_names_topic_and_tone_in_each_sentence(
    completion: str, content: float, fluency: float
) -> None:
    answer = gold(NOTE, completion, WEIGHTS)
    assert (answer.content, answer.fluency) == pytest.approx((content, fluency))


@pytest.mark.parametrize(
    ("constraint", "kept", "missed"),
    [
        (Constraint("polite"), "It is red. Thank you.", "It is red."),
        (Constraint("excited"), "It is red!", "Well! It is red."),
        (Constraint("begin", "Well"), "Well, it is red.", "It is well."),
        (Constraint("end", "today"), "It is red today!", "Today it is red."),
        (Constraint("avoid", "is"), "This gives red.", "It Is red."),
        (Constraint("at_most", 3), "It is red.", "It is red today."),
    ],
)
def test_each_constraint_knows_when_it_is_kept(constraint: Constraint, kept: str, missed: str) -> None:
    assert keeps(constraint, kept)
    assert not keeps(constraint, missed)
    assert not keeps(constraint, "")


def mean_gold(tasks: list[Task], answer) -> float:
    return sum(gold(task.turns[0], answer(task.turns[0]), WEIGHTS).total for task in tasks) / len(tasks)


def test_shortcuts_earn_little(world: World) -> None:
    """A fixed phrase, filler, an echo, all candidates, or only what the prompt names: below 1.3 of 10 on average."""
    tasks = make_tasks(world, 400, split="development", seed=5)

    def named_in_prompt(turn: Turn) -> str:
        return (
            " ".join(
                word
                for word in turn.text.replace(".", "").replace(",", "").split()
                if word.lower() in vocabulary.CANDIDATES[turn.category]
            )
            + "."
        )

    assert mean_gold(tasks, lambda turn: "") == 0
    assert mean_gold(tasks, lambda turn: "The answer is 12.") < 1.3
    assert mean_gold(tasks, lambda turn: vocabulary.FILLERS[0]) < 1.3
    assert mean_gold(tasks, lambda turn: turn.text) < 1.3
    assert (
        mean_gold(
            tasks, lambda turn: f"The answer is {', '.join(sorted(vocabulary.CANDIDATES[turn.category]))}."
        )
        < 1.3
    )
    assert mean_gold(tasks, named_in_prompt) < 1.3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), content=st.floats(0.1, 0.8), constraints=st.floats(0, 0.2))
def test_a_writer_without_faults_always_scores_at_least_nine_and_a_half(
    world: World, seed: int, content: float, constraints: float
) -> None:
    weights = GoldWeights(content=content, constraints=constraints, conciseness=1 - content - constraints)
    rng = random.Random(seed)
    for task in make_tasks(world, 24, split="train", seed=seed, n_turns=2):
        for turn in task.turns:
            assert gold(turn, write(turn, PERFECT, rng), weights).total >= 9.5


@pytest.mark.parametrize(
    ("writer", "part"),
    [
        (Writer(error=1.0, missed_constraint=0.0, filler=0.0), "content"),
        (Writer(error=0.0, missed_constraint=1.0, filler=0.0), "constraints"),
        (Writer(error=0.0, missed_constraint=0.0, filler=1.0), "conciseness"),
    ],
)
def test_a_writer_with_one_fault_loses_that_part(world: World, writer: Writer, part: str) -> None:
    rng = random.Random(0)
    for task in make_tasks(world, 200, split="train", seed=3):
        turn = task.turns[0]
        answer = gold(turn, write(turn, writer, rng), WEIGHTS)
        limited = any(constraint.kind == "at_most" for constraint in turn.constraints)
        if part == "constraints":  # what is missed is missed for each, whatever else goes wrong
            assert answer.constraints == (0 if turn.constraints else 1)
        elif part == "content" or not limited:
            assert getattr(answer, part) < 1
        assert answer.fluency == 1


def test_fillers_use_no_word_that_means_anything_else() -> None:
    filler = {word.strip(".").lower() for text in vocabulary.FILLERS for word in text.split()}
    said = set().union(
        *vocabulary.CANDIDATES.values(), *(form for forms in vocabulary.FORM_WORDS.values() for form in forms)
    )
    marks = {word.lower() for word in (*vocabulary.OPENERS, *vocabulary.CLOSERS)} | {
        "thank",
        "thanks",
        "please",
        "kindly",
    }
    assert not filler & (said | marks)


def annotator(temperature: float = 1.0, length_bias: float = 0.0) -> WorldAnnotator:
    return WorldAnnotator(temperature=temperature, length_bias=length_bias, flip_rate=0.0)


def test_the_annotator_by_hand() -> None:
    """Gold 8 against 6, 5 words against 9: margin 2 - .1 x 4 = 1.6; sigmoid(1.6 / .5) = 1 / (1 + e^-3.2) = .9608."""
    biased = annotator(0.5, 0.1)
    assert margin(8, 6, 5, 9, biased) == pytest.approx(1.6)
    assert annotator_prefers(8, 6, 5, 9, biased) == pytest.approx(0.96083, abs=1e-5)
    assert annotator_prefers(6, 8, 9, 5, biased) == pytest.approx(1 - 0.96083, abs=1e-5)
    assert annotator_prefers(7, 7, 4, 9, annotator()) == 0.5
    assert annotator_prefers(0, 10, 0, 0, annotator(1e-3)) == 0  # no overflow


def test_labels_follow_probability_and_flips() -> None:
    rng = random.Random(0)
    assert all(draw_label(1.0, 0.0, rng) for _ in range(100))
    assert not any(draw_label(1.0, 1.0, rng) for _ in range(100))
    flipped = sum(not draw_label(1.0, 0.3, rng) for _ in range(10_000)) / 10_000
    assert flipped == pytest.approx(0.3, abs=0.02)


def test_words_are_counted_without_marks() -> None:
    assert count_words("Well, the answer is 12!") == 5
