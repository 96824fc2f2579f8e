"""The verdict rule: every word and every edge."""

from __future__ import annotations

import pytest

from bench.papers import Ours, Theirs, VerdictWord, Word, best_of_grid, verdict
from bench.papers.verdict import COUNTED, obstacle_of
from bench.stats.estimates import Difference

CLEAR = Theirs(0.10, 0.02)  # five standard errors


def ours(
    value: float,
    error: float = 0.01,
    p: float | None = None,
    n_seeds: int = 3,
    world: bool = False,
    **more: bool,
) -> Ours:
    """A difference with 20 degrees of freedom (t 2.086); p as a test of it alone unless given."""
    low, high = value - 2.086 * error, value + 2.086 * error
    own = 0.001 if low > 0 or high < 0 else 0.5
    return Ours(
        Difference(value, error, low, high, value / error, 20.0, own, 805),
        own if p is None else p,
        n_seeds,
        world,
        **more,
    )


@pytest.mark.parametrize(
    ("theirs", "found", "word"),
    [
        (CLEAR, ours(0.05), Word.SAME),
        (CLEAR, ours(-0.05), Word.OPPOSITE),
        (CLEAR, ours(0.03, p=0.06), Word.UNDECIDED_SAME),  # Told apart alone, not over the contrasts.
        (CLEAR, ours(0.002, 0.005), Word.EQUAL),
        (CLEAR, ours(0.01, 0.004), Word.SAME),  # Within the margin and separable: the first word that fits.
        (CLEAR, ours(0.005), Word.UNDECIDED_SAME),  # 90 % interval up to 2.2 points.
        (CLEAR, ours(-0.03, 0.04), Word.UNDECIDED_OPPOSITE),
        (Theirs(0.039, 0.02), ours(0.05), Word.NOTHING),
        (Theirs(0.04, 0.02), ours(0.05), Word.NOTHING),  # Exactly two standard errors are within.
        (Theirs(0.041, 0.02), ours(0.05), Word.SAME),
        (Theirs(0.0, None), ours(0.05), Word.NOTHING),  # Printed as equal: nothing to reproduce, whatever its noise.
        (Theirs(-0.10, 0.02), ours(-0.05), Word.SAME),  # The paper's numbers contradict its order.
        (Theirs(-0.10, 0.02), ours(0.05), Word.OPPOSITE),
        (Theirs(None, None), ours(0.05), Word.NOT_COMPARABLE),
        (Theirs(0.10, 0.02, slip="a copy"), ours(0.05), Word.NOT_COMPARABLE),
    ],
)  # fmt: skip
def test_the_word_that_fits_first(theirs: Theirs, found: Ours, word: Word) -> None:
    assert verdict(theirs, found).word is word


def test_an_undecided_word_says_the_largest_advantage_in_the_published_direction() -> None:
    same, opposite, turned = (
        verdict(CLEAR, ours(0.01, 0.02)),
        verdict(CLEAR, ours(-0.03, 0.04)),
        verdict(Theirs(-0.10, 0.02), ours(0.01, 0.02)),
    )
    assert same.advantage == pytest.approx(0.01 + 2.086 * 0.02)
    assert same.text == "undecided, same sign, at most +5.2"
    assert opposite.text == "undecided, opposite sign, at most +5.3"
    assert turned.advantage == pytest.approx(-0.01 + 2.086 * 0.02) and turned.word is Word.UNDECIDED_OPPOSITE


def test_an_interval_wholly_against_the_paper_leaves_a_negative_advantage() -> None:
    """SPIN over further SFT at constant beta: the raw interval is wholly negative, the corrected p decides nothing."""
    assert verdict(CLEAR, ours(-0.052, 0.0167, p=0.4)).text == "undecided, opposite sign, at most -1.7"


@pytest.mark.parametrize(
    ("theirs", "found", "suffixes"),
    [
        (CLEAR, ours(0.05), []),
        (Theirs(0.10, None), ours(0.05), ["direction only"]),
        (CLEAR, ours(0.05, world=True), ["in the world"]),
        (CLEAR, ours(0.05, other_judge=True), ["other judge"]),
        (CLEAR, ours(0.05, world=True, other_judge=True), ["in the world"]),  # There every judge is another one.
        (Theirs(0.10, None), ours(0.05, world=True, n_seeds=1), ["direction only", "in the world", "one training"]),
        (Theirs(0.01, 0.02), ours(0.05, world=True), ["in the world"]),
    ],
)  # fmt: skip
def test_suffixes(theirs: Theirs, found: Ours, suffixes: list[str]) -> None:
    assert list(verdict(theirs, found).suffixes) == suffixes


def test_one_training_and_what_is_within_the_papers_noise_never_count() -> None:
    assert verdict(CLEAR, ours(0.05)).counts
    assert not verdict(CLEAR, ours(0.05, n_seeds=1)).counts
    assert not verdict(Theirs(0.01, 0.02), ours(0.05)).counts
    assert not verdict(CLEAR, None, obstacle=obstacle_of((0, 1), absent=["no row"])).counts
    assert Word.NOTHING not in COUNTED


def test_difference_without_spread_or_error_is_undecided() -> None:
    bare = Ours(Difference(0.05, None, None, None, None, None, None, 1), None, 1, False)
    found = verdict(CLEAR, bare)
    assert found.word is Word.UNDECIDED_SAME and found.advantage is None
    assert found.text == "undecided, same sign, one training"


def obstacle(rows: tuple[int, int] = (1, 1), **more: object) -> VerdictWord | None:
    return obstacle_of(rows, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (obstacle((0, 1), absent=["no such method"]), "not run: no such method"),
        (obstacle((0, 0), absent=["no such method", "no such method"]), "not run: no such method"),
        (obstacle((0, 2), absent=["not finished"], kind="a rating"), "not run: not finished"),
        (obstacle((1, 2)), "ambiguous: 2 rows of ours fit one role"),
        (obstacle(kind="a rating"), "not comparable: theirs is a rating"),
        (obstacle(differs=["has read half of all labels"]), "not comparable: has read half of all labels"),
        (
            obstacle(unlike={"steps", "examples"}),
            "not comparable: our two rows also differ in examples, steps",
        ),
        (obstacle(unscored=0.051), "not comparable: 5 % of a row's verdicts are unscored"),
    ],
)
def test_what_stands_in_the_way(found: VerdictWord, text: str) -> None:
    assert found.text == text
    assert verdict(CLEAR, ours(0.05), obstacle=found) == found


def test_nothing_stands_in_the_way_of_two_fitting_rows() -> None:
    assert obstacle() is None
    assert obstacle(unscored=0.05) is None


def test_not_run_comes_before_a_slip_and_a_slip_before_another_kind() -> None:
    slip = Theirs(0.1, 0.02, slip="a copy")
    assert verdict(slip, None, obstacle=obstacle((0, 1), absent=["x"])).word is Word.NOT_RUN
    assert (
        verdict(slip, None, obstacle=obstacle(kind="a rating")).text
        == "not comparable: slip of the source, a copy"
    )


def test_what_lies_within_the_papers_noise_is_known_without_us() -> None:
    known = (
        CLEAR,
        Theirs(0.04, 0.02),
        Theirs(0.04, None),
        Theirs(0.0, None),
        Theirs(None, None),
        Theirs(0.01, 0.02, slip="a copy"),
    )
    assert [theirs.within_noise for theirs in known] == [False, True, None, True, None, None]


@pytest.mark.parametrize(
    ("best", "starred", "decided", "word"),
    [
        (0.01, [0.1], True, "not in grid"),
        (0.3, [0.1, 0.3], True, "compatible"),
        (0.3, [0.1, 0.3], False, "compatible, one training"),
        (1.0, [0.1, 0.3], True, "excluded"),
        (0.3, [0.1, 0.3, 1.0], True, "undecided"),
    ],
)
def test_a_best_setting(best: float, starred: list[float], decided: bool, word: str) -> None:
    assert best_of_grid(best, starred, [0.1, 0.3, 1.0], decided) == word
