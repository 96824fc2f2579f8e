"""The gold judge and the annotator, by hand."""

from __future__ import annotations

import math

import pytest

from bench.config import GoldWeights, WorldAnnotator
from bench.judges import baseline
from bench.judges.gold import NO_TASK, GoldAnnotator, GoldPreference, GoldRating
from bench.records import Completion, Item
from bench.world.tasks import Constraint, Turn

WEIGHTS = GoldWeights(content=0.45, constraints=0.35, conciseness=0.2)
# "What is the capital of Norway?" asks for one word; a perfect answer has four.
TURN = Turn(
    "What is the capital of Norway? Be polite.", "humanities", (("Oslo",),), (Constraint("polite"),), 6
)

PERFECT = "The answer is Oslo. Thank you."  # 6 words: c = s = conc = flu = 1
IMPOLITE = "The answer is Oslo."  # s = 0: 10 (0.45 + 1.0 (0.35 x 0 + 0.2)) = 6.5
WRONG = "The answer is Rome. Thank you."  # c = 0: 10 (0.3 (0.35 + 0.2)) = 1.65


def item(baseline: str | None = IMPOLITE, *, task: bool = True, turns: int = 1) -> Item:
    return Item(
        "q1",
        "humanities",
        ["?"] * turns,
        [TURN.to_json()] * turns if task else None,
        None if baseline is None else [baseline],
    )


def said(*texts: str) -> Completion:
    return Completion("q1", ["?"] * len(texts), list(texts), [1] * len(texts), [True] * len(texts))


@pytest.mark.parametrize(
    ("mine", "theirs", "temperature", "difference"),
    [
        (PERFECT, IMPOLITE, 1.0, 3.5),
        (IMPOLITE, PERFECT, 1.0, -3.5),
        (WRONG, IMPOLITE, 2.0, -4.85),
        (PERFECT, PERFECT, 1.0, 0.0),
    ],
)
def test_a_preference_is_a_logistic_of_the_gold_difference(
    mine: str, theirs: str, temperature: float, difference: float
) -> None:
    (verdict,) = GoldPreference(WEIGHTS, temperature).judge(
        [item(theirs)], [said(mine)], baseline([item(theirs)])
    )
    assert verdict.preference == pytest.approx(1 / (1 + math.exp(-difference / temperature)))
    assert (verdict.item_id, verdict.judge, verdict.turn, verdict.category) == (
        "q1",
        "gold_preference",
        0,
        "humanities",
    )
    assert (verdict.policy_length, verdict.baseline_length) == (len(mine), len(theirs))


def test_details_name_the_parts_of_the_judgement() -> None:
    (verdict,) = GoldPreference(WEIGHTS, 1.0).judge([item()], [said(WRONG)], baseline([item()]))
    assert verdict.details == pytest.approx(
        {
            "gold": 1.65,
            "content": 0.0,
            "constraints": 1.0,
            "conciseness": 1.0,
            "fluency": 1.0,
            "gold_baseline": 6.5,
        }
    )


@pytest.mark.parametrize(("mine", "expected"), [(PERFECT, 1.0), (WRONG, 0.0)])
def test_a_tiny_temperature_is_certain_and_does_not_overflow(mine: str, expected: float) -> None:
    (verdict,) = GoldPreference(WEIGHTS, 1e-6).judge([item()], [said(mine)], baseline([item()]))
    assert verdict.preference == pytest.approx(expected)


def test_a_rating_is_given_for_each_turn() -> None:
    """1 + 0.9 gold: 10, 6.85 and, for nothing said, 1."""
    verdicts = list(GoldRating(WEIGHTS).judge([item(turns=3)], [said(PERFECT, IMPOLITE, "")], None))
    assert [v.rating for v in verdicts] == pytest.approx([10.0, 6.85, 1.0])
    assert [(v.turn, v.policy_length) for v in verdicts] == [(0, len(PERFECT)), (1, len(IMPOLITE)), (2, 0)]
    assert all(v.baseline_length is None for v in verdicts)
    assert all(v.preference is None and v.unscored is None for v in verdicts)


def test_an_item_without_a_task_is_unscored_with_its_reason() -> None:
    judged = [
        *GoldPreference(WEIGHTS, 1.0).judge(
            [item(task=False)], [said(PERFECT)], baseline([item(task=False)])
        ),
        *GoldRating(WEIGHTS).judge([item(task=False, turns=2)], [said(PERFECT, WRONG)], None),
        *GoldAnnotator(WEIGHTS, WorldAnnotator(temperature=1.0, length_bias=0.0, flip_rate=0.0)).judge(
            [item(task=False)], [said(PERFECT)], [said(WRONG)]
        ),
    ]
    assert [v.unscored for v in judged] == [NO_TASK] * 4
    assert all(v.preference is None and v.rating is None and v.category == "humanities" for v in judged)


def test_an_item_without_a_baseline_is_an_error() -> None:
    with pytest.raises(ValueError, match="item q1 has no baseline completion to compare with"):
        baseline([item(None)])


@pytest.mark.parametrize(("bias", "margin"), [(0.0, 3.5), (0.5, 3.5 + 0.5 * 2), (-2.0, 3.5 - 2.0 * 2)])
def test_the_annotator_adds_its_length_bias_to_the_gold_difference(bias: float, margin: float) -> None:
    """PERFECT is two words longer than IMPOLITE."""
    annotator = WorldAnnotator(temperature=0.5, length_bias=bias, flip_rate=0.3)
    (verdict,) = GoldAnnotator(WEIGHTS, annotator).judge([item()], [said(PERFECT)], [said(IMPOLITE)])
    assert verdict.preference == pytest.approx(
        1 / (1 + math.exp(-margin / 0.5))
    )  # flips come with the label, not here
    assert verdict.details == pytest.approx({"gold_first": 10.0, "gold_second": 6.5})
