"""Style control: battles and rates by hand, and what is left when style explains the wins."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.special import expit

from bench.records import Verdict
from bench.stats.estimates import Unmeasured
from bench.stats.style_control import (
    STYLES,
    arena_win_rate,
    battles,
    game_facts,
    has_games,
    markup,
    style_win_rate,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def verdict(number: int, games: tuple[int, int] | None, policy: str, baseline: str) -> Verdict:
    if games is None:
        return Verdict(f"i{number}", "j", unscored="no verdict")
    facts, preference = game_facts(games, policy, baseline), battles(games)[0]
    lengths = {"policy_length": len(policy), "baseline_length": len(baseline)}
    return Verdict(f"i{number}", "j", preference=preference, details=facts, **lengths)  # type: ignore[arg-type]


def drawn(n: int, own: float, length: float, bold: float = 0.0, seed: int = 0) -> list[Verdict]:
    """Verdicts of a judge with a known preference for the policy at equal style, for length and for bold."""
    draw, found = random.Random(seed), []
    for i in range(n):
        policy = "word " * draw.randint(20, 60) + "**bold** " * draw.randint(0, 4)
        baseline = "word " * draw.randint(10, 40) + "**bold** " * draw.randint(0, 2)
        gap = (len(policy) - len(baseline)) / (len(policy) + len(baseline))
        marks = 100 * (policy.count("**bold**") / len(policy) - baseline.count("**bold**") / len(baseline))
        p = float(expit(own + length * gap + bold * marks))
        games = tuple((1 if draw.random() < p else -1) * (2 if draw.random() < 0.3 else 1) for _ in range(2))
        found.append(verdict(i, games, policy, baseline))  # type: ignore[arg-type]
    return found


def test_a_strong_win_is_three_battles_and_a_tie_is_half_of_one() -> None:
    """2 then -1: three battles won, one lost. 0 then -2: half of one won, three lost."""
    assert battles([2, -1]) == (0.75, 4)
    assert battles([0, -2]) == (0.125, 4)
    assert battles([1, 1]) == (1.0, 2) and battles([0, 0]) == (0.5, 2)


def test_markup_is_counted_outside_code() -> None:
    text = "# One\n### Two\n#no header\n- a\n* b\n 3. c\n**bold** and __bold too__\n```\n# code\n- code\n**code**\n```\n"
    assert markup(text) == {"headers": 2, "lists": 3, "bold": 2}
    assert markup("") == {"headers": 0, "lists": 0, "bold": 0}


def test_the_rate_over_battles_weighs_items_by_their_battles() -> None:
    """Six battles won of item 0; one won, one lost of item 1; one lost and half of one of item 2: (6 + 1 + 0.5) / 10."""
    found = arena_win_rate(
        [verdict(0, (2, 2), "a", "b"), verdict(1, (1, -1), "a", "b"), verdict(2, (0, -1), "a", "b")], rng()
    )
    assert not isinstance(found, Unmeasured)
    assert found.value == 0.75 and found.n == 3 and found.low is not None and found.low < 0.75
    one = arena_win_rate([verdict(0, (2, -1), "a", "b"), verdict(1, None, "a", "b")], rng())
    assert not isinstance(one, Unmeasured) and (one.value, one.low, one.n_unscored) == (0.75, None, 1)
    assert arena_win_rate([verdict(0, None, "a", "b")], rng()) == Unmeasured("no item was scored")


def test_without_a_difference_in_style_the_controlled_rate_is_the_plain_one() -> None:
    verdicts = [verdict(i, (1, -1) if i % 3 else (2, 1), "one two", "two one") for i in range(30)]
    plain, controlled = arena_win_rate(verdicts, rng()), style_win_rate(verdicts, rng())
    assert not isinstance(plain, Unmeasured) and not isinstance(controlled, Unmeasured)
    assert controlled.value == pytest.approx(plain.value, abs=1e-9) and controlled.coefficients == {}


def test_a_preference_for_length_is_taken_out_and_the_truth_is_covered() -> None:
    """Equal at equal style, and longer answers: the plain rate is far above a half, the controlled one is not."""
    verdicts = drawn(500, own=0.0, length=3.0)
    plain, controlled = arena_win_rate(verdicts, rng()), style_win_rate(verdicts, rng())
    assert not isinstance(plain, Unmeasured) and not isinstance(controlled, Unmeasured)
    assert plain.low is not None and plain.low > 0.6
    assert (
        controlled.low is not None and controlled.high is not None and controlled.low < 0.5 < controlled.high
    )
    assert controlled.coefficients["length"] > 0.3 > abs(controlled.coefficients["bold"])


def test_intervals_cover_the_rate_at_equal_style_as_often_as_they_say() -> None:
    """100 tables of 120 items, each item's games alike in chance: 95 % of the intervals, within what 100 can tell."""
    covered = 0
    for seed in range(100):
        found = style_win_rate(
            drawn(120, own=0.4, length=1.5, bold=0.3, seed=seed), np.random.default_rng(seed), n_resamples=200
        )
        assert not isinstance(found, Unmeasured) and found.low is not None and found.high is not None
        covered += found.low <= expit(0.4) <= found.high
    assert covered >= 88  # 3.2 standard errors below 95


def test_the_order_of_verdicts_does_not_matter_and_swapped_sides_mirror_the_rate() -> None:
    verdicts = drawn(60, own=0.5, length=1.0)
    found, again = style_win_rate(verdicts, rng()), style_win_rate(verdicts[::-1], rng())
    assert found == again and not isinstance(found, Unmeasured)

    def other(name: str) -> str:
        side, _, rest = name.partition("_")
        return f"{'baseline' if side == 'policy' else 'policy'}_{rest}"

    swapped = []
    for v in verdicts:
        assert v.details is not None and v.preference is not None
        games = {"policy_first": -v.details["baseline_first"], "baseline_first": -v.details["policy_first"]}
        details = {
            other(name): value for name, value in v.details.items() if not name.endswith("first")
        } | games
        lengths = {"policy_length": v.baseline_length, "baseline_length": v.policy_length}
        swapped.append(Verdict(v.item_id, "j", preference=1 - v.preference, details=details, **lengths))  # type: ignore[arg-type]
    mirrored = style_win_rate(swapped, rng())
    assert not isinstance(mirrored, Unmeasured)
    assert mirrored.value == pytest.approx(1 - found.value, abs=1e-9)


def test_one_item_with_the_only_list_has_a_finite_coefficient() -> None:
    verdicts = drawn(40, own=0.3, length=0.0)
    verdicts[0] = verdict(0, (2, 2), "- one\n- two\n" + "word " * 30, "word " * 30)
    found = style_win_rate(verdicts, rng())
    assert not isinstance(found, Unmeasured) and set(found.coefficients) == {"length", "lists", "bold"} < set(
        STYLES
    )
    assert all(math.isfinite(value) and abs(value) < 3 for value in found.coefficients.values())
    assert found.low is not None


def test_all_won_is_1_with_wilsons_interval_and_few_items_carry_no_fit() -> None:
    won = [verdict(i, (2, 1), "word " * (i + 1), "word") for i in range(8)]
    found = style_win_rate(won, rng())
    assert (
        not isinstance(found, Unmeasured)
        and found.value == 1
        and found.low == pytest.approx(0.6756, abs=1e-4)
    )
    assert style_win_rate(won[:2], rng()) == Unmeasured("2 scored items cannot carry 2 coefficients")
    assert style_win_rate([], rng()) == Unmeasured("no item was scored")


def test_verdicts_of_other_judges_have_no_games() -> None:
    plain = Verdict("i", "alpaca_eval", preference=0.3, policy_length=1, baseline_length=1)
    assert not has_games([plain]) and not has_games([]) and not has_games([verdict(0, None, "a", "b")])
    assert has_games([verdict(0, (1, 1), "a", "b"), verdict(1, None, "a", "b")])
    with pytest.raises(ValueError, match="the verdict on i has no games"):
        arena_win_rate([plain], rng())
