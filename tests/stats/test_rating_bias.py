"""What an audit finds in judges that rate and whose faults are known: scripted judges over the controlled world, and by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.config import CATEGORIES, GoldWeights, World, Writer
from bench.judges.gold import GoldRating
from bench.records import Completion, Item, Verdict
from bench.stats import judge_bias as audit
from bench.stats.estimates import Estimate, Unmeasured
from bench.world.corpus import make_items
from bench.world.tasks import Turn
from bench.world.writers import write

WEIGHTS = GoldWeights(content=0.45, constraints=0.35, conciseness=0.2)
SLOPPY = Writer(error=0.15, missed_constraint=0.65, filler=0.6)
WORLD = World(
    categories=CATEGORIES, constraint_counts=(0.2, 0.4, 0.4), gold=WEIGHTS, reference=SLOPPY, eval_seed=0
)
N = 200  # items of two turns


@cache
def answers() -> tuple[list[Item], list[Completion]]:
    items = make_items(WORLD, N, split="evaluation", seed=0, n_turns=2)
    rng = random.Random(0)
    texts = [[write(Turn.from_json(turn), SLOPPY, rng) for turn in item.task or []] for item in items]
    return items, [
        Completion(item.id, item.turns, written, [], []) for item, written in zip(items, texts, strict=True)
    ]


@cache
def gold() -> list[Verdict]:
    return list(GoldRating(WEIGHTS).judge(*answers(), None))


@cache
def truth() -> dict[tuple[str, int], float]:
    return {(v.item_id, v.turn): v.rating for v in gold() if v.rating is not None}


@dataclass(frozen=True)
class Scripted:
    """A judge over the gold rating, on a scale of 3 to 8 so that no injected fault is cut off at 1 or 10."""

    seed: int = 0
    length: float = 0.0  # points per 100 characters
    failures: float = 0.0
    noise: float = 0.0  # points, sd, of each rating
    drift: float = 0.0  # points, added from the middle of the items on
    item_noise: float = 0.0  # points, sd, shared by an item's turns
    whole: bool = False
    lazy: float = 0.0  # share of ratings that are 7, whatever the answer

    def judge(self) -> list[Verdict]:
        rng, by_item = random.Random(self.seed), random.Random(f"item/{self.seed}")
        middle = {item.id: place >= N / 2 for place, item in enumerate(answers()[0])}
        shared = {item.id: by_item.gauss(0, self.item_noise) for item in answers()[0]}
        found = []
        for v in gold():
            about: dict[str, Any] = {"turn": v.turn, "policy_length": v.policy_length}
            if rng.random() < self.failures:
                found.append(Verdict(v.item_id, "scripted", unscored="no rating like [[5]]", **about))
                continue
            rating = 3 + 5 * (truth()[v.item_id, v.turn] - 1) / 9 + self.length * (v.policy_length or 0) / 100
            rating += self.drift * middle[v.item_id] + rng.gauss(0, self.noise) + shared[v.item_id]
            rating = 7.0 if rng.random() < self.lazy else float(round(rating)) if self.whole else rating
            found.append(Verdict(v.item_id, "scripted", rating=min(10.0, max(1.0, rating)), **about))
        return found

    def again(self) -> list[Verdict]:
        return replace(self, seed=self.seed + 1000).judge()


STATISTICS: dict[str, Callable[[Scripted], Any]] = {
    "length_bias": lambda judge: audit.rating_slope(judge.judge(), truth()),
    "failure_rate": lambda judge: audit.rating_statistics(judge.judge(), None, None)["failure_rate"],
    "noise_sd": lambda judge: audit.noise_sd(judge.judge(), judge.again()),
    "drift": lambda judge: audit.rating_statistics(judge.judge(), None, scaled())["drift"],
}


def scaled() -> dict[tuple[str, int], float]:
    """The truth on the judge's own scale."""
    return {key: 3 + 5 * (value - 1) / 9 for key, value in truth().items()}


@pytest.mark.parametrize(
    ("judge", "name", "injected", "size"),
    [
        (Scripted(length=1.5), "length_bias", 1.5, 0.02),
        (Scripted(length=1.5, noise=0.4, item_noise=0.3), "length_bias", 1.5, 0.6),
        (Scripted(failures=0.15), "failure_rate", 0.15, 0.09),
        (Scripted(noise=0.4), "noise_sd", 0.4, 0.08),
        (Scripted(noise=0.4, failures=0.15), "noise_sd", 0.4, 0.1),
        (Scripted(drift=0.4, noise=0.4, item_noise=0.3), "drift", 0.4, 0.3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_injected_fault_comes_back_within_its_interval(
    judge: Scripted, name: str, injected: float, size: float
) -> None:
    """Over 40 seeds a 95 % interval holds the injected value at least 33 times (chance of fewer: 0.1 %), and is no wider than `size`."""
    estimates = [STATISTICS[name](replace(judge, seed=seed)) for seed in range(40)]
    inside = [e.low is None or e.low - 1e-9 <= injected <= e.high + 1e-9 for e in estimates]
    assert sum(inside) >= 33, [(e.low, e.high) for e in estimates]
    assert max(e.high - e.low for e in estimates if e.low is not None) < size
    assert np.mean([e.value for e in estimates]) == pytest.approx(injected, abs=max(size / 6, 1e-6))


def test_a_fair_judge_has_no_faults_and_a_coarse_or_lazy_one_is_seen() -> None:
    fair = Scripted()
    found = audit.rating_statistics(fair.judge(), fair.again(), scaled()) | audit.rating_agreement(
        fair.judge(), truth()
    )
    for name in ("failure_rate", "noise_sd", "length_bias", "drift"):
        assert value_of(found[name]) == pytest.approx(0, abs=1e-6), name
    for name in ("retest_agreement", "rank_correlation", "pair_agreement"):
        assert value_of(found[name]) == pytest.approx(1), name
    coarse = replace(fair, whole=True).judge()
    assert value_of(audit.rating_statistics(coarse, None, None)["whole_rate"]) == 1
    assert 0.7 < value_of(audit.pair_agreement(coarse, truth())) < 1
    lazy = replace(fair, lazy=0.8).judge()
    assert 0.75 < value_of(audit.commonest_rate(lazy)) < 0.87
    assert value_of(audit.rank_correlation(lazy, truth())) < 0.4


def value_of(found: audit.Statistic) -> float:
    assert isinstance(found, Estimate), found
    return found.value


def test_a_plain_slope_confounds_quality_with_length_and_the_bias_does_not() -> None:
    """In this world the longer answer is the worse one, which is no fault of the judge."""
    plain, fixed = audit.rating_slope(gold(), None), audit.rating_slope(gold(), truth())
    assert isinstance(plain, Estimate) and plain.high is not None and plain.high < 0
    assert abs(value_of(fixed)) < 1e-6


# Coverage ---------------------------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, n: int, rho: float) -> tuple[list[Verdict], dict[tuple[str, int], float]]:
    """n items of two turns: rating and truth bivariate normal with correlation rho, and the turns of an item alike."""
    item, own = (
        rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n),
        rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (n, 2)),
    )
    values = 5.5 + 0.5 * (math.sqrt(0.5) * item[:, None, :] + math.sqrt(0.5) * own)
    verdicts = [
        Verdict(f"{i}", "j", turn, rating=min(10.0, max(1.0, float(values[i, turn, 0]))))
        for i in range(n)
        for turn in (0, 1)
    ]
    return verdicts, {(f"{i}", turn): float(values[i, turn, 1]) for i in range(n) for turn in (0, 1)}


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_agreement_covers_what_the_population_has(rho: float) -> None:
    """Spearman's is 6/π asin(ρ/2) and pair agreement 1/2 + asin(ρ)/π of a bivariate normal. Over 120 draws of 60 items a bootstrap
    interval holds them in 95 % of draws, within four standard errors of that share (and two points that a bootstrap may lack)."""
    rng, hits = np.random.default_rng(3), []
    for _ in range(120):
        verdicts, true = drawn(rng, 60, rho)
        for statistic, population in (
            (audit.rank_correlation, 6 / math.pi * math.asin(rho / 2)),
            (audit.pair_agreement, 0.5 + math.asin(rho) / math.pi),
        ):
            found = statistic(verdicts, true)
            assert isinstance(found, Estimate) and found.low is not None and found.high is not None
            hits.append((statistic.__name__, found.low <= population <= found.high))
    slack = 4 * math.sqrt(0.95 * 0.05 / 120)
    for name in ("rank_correlation", "pair_agreement"):
        share = np.mean([hit for which, hit in hits if which == name])
        assert 0.95 - slack - 0.02 <= share <= 0.95 + slack, (name, share)


@pytest.mark.parametrize("labelled", [20, 100])
@pytest.mark.parametrize(
    "judge",
    [Scripted(length=2.0, noise=0.3), Scripted(noise=1.0, item_noise=0.5, failures=0.1)],
    ids=["longer", "noisy"],
)
def test_the_corrected_rating_covers_the_truth_at_its_rate(judge: Scripted, labelled: int) -> None:
    """600 draws of 200 items from the population of items, with the truth of some of them: the population's true mean rating of rated
    turns lies in 95 % of the intervals, within four standard errors of that share; with 20 labels lumpy truths may cost two points."""
    by_item: dict[str, list[Verdict]] = {}
    for v in judge.judge():
        by_item.setdefault(v.item_id, []).append(v)
    rated = {
        item: found
        for item, turns in by_item.items()
        if (found := [v for v in turns if v.rating is not None])
    }
    population = np.mean([np.mean([truth()[v.item_id, v.turn] for v in turns]) for turns in rated.values()])
    rng, hits, names = np.random.default_rng(1), [], list(rated)
    for _ in range(600):
        verdicts, labels = [], {}
        for place, i in enumerate(rng.integers(0, len(names), 200)):
            for v in rated[names[i]]:
                verdicts.append(replace(v, item_id=f"{place}"))
                if place < labelled:
                    labels[f"{place}", v.turn] = truth()[v.item_id, v.turn]
        found = audit.corrected_rating(verdicts, labels)
        assert isinstance(found, Estimate) and found.low is not None and found.high is not None
        hits.append(found.low <= population <= found.high)
    slack = 4 * math.sqrt(0.95 * 0.05 / 600)
    assert 0.95 - slack - (0.02 if labelled == 20 else 0) <= np.mean(hits) <= 0.95 + slack


def test_a_biased_judges_own_mean_is_wrong_and_the_corrected_one_is_not() -> None:
    judge = Scripted(length=3.0, noise=0.2).judge()
    true = float(np.mean([*truth().values()]))
    own = audit.rating_statistics(judge, None, None)["mean_rating"]
    assert (
        isinstance(own, Estimate)
        and own.low is not None
        and own.high is not None
        and not own.low <= true <= own.high
    )
    some = set(random.Random(0).sample([item.id for item in answers()[0]], 60))
    corrected = audit.corrected_rating(
        judge, {key: value for key, value in truth().items() if key[0] in some}
    )
    assert isinstance(corrected, Estimate) and corrected.low is not None and corrected.high is not None
    assert corrected.low <= true <= corrected.high


# By hand ------------------------------------------------------------------------------------------------------------------


def rated(*ratings: float | None) -> list[Verdict]:
    """One item each."""
    return [
        Verdict(f"{i}", "j", unscored="?") if rating is None else Verdict(f"{i}", "j", rating=rating)
        for i, rating in enumerate(ratings)
    ]


def test_ratings_by_hand() -> None:
    """7, 7, 8.5, none: three quarters readable, two thirds whole and alike. Again 7, 9, 8.5: one of three differs, by 2: √(4/2/3)."""
    first, second = rated(7, 7, 8.5, None), rated(7, 9, 8.5, 5)
    found = audit.rating_statistics(first, second, None)
    assert value_of(found["mean_rating"]) == pytest.approx(22.5 / 3)
    assert value_of(found["whole_rate"]) == value_of(found["commonest_rate"]) == pytest.approx(2 / 3)
    assert value_of(found["failure_rate"]) == pytest.approx(1 / 8)
    assert value_of(found["retest_agreement"]) == pytest.approx(2 / 3)
    assert value_of(found["noise_sd"]) == pytest.approx(math.sqrt(4 / 2 / 3))
    assert isinstance(found["length_slope"], Unmeasured) and isinstance(found["length_bias"], Unmeasured)


def test_agreement_by_hand() -> None:
    """Ratings 1, 2, 2, 4 with truths 1, 3, 2, 4: of six pairs five are ranked alike and one is the judge's tie: 5.5 / 6."""
    labels = {(f"{i}", 0): t for i, t in enumerate((1.0, 3.0, 2.0, 4.0))}
    found = audit.rating_agreement(rated(1, 2, 2, 4), labels)
    assert value_of(found["pair_agreement"]) == pytest.approx(5.5 / 6)
    assert value_of(found["rank_correlation"]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert value_of(found["mean_difference"]) == pytest.approx(-0.25)
    assert isinstance(audit.pair_agreement(rated(1, 2), {("0", 0): 5.0, ("1", 0): 5.0}), Unmeasured)
    assert isinstance(audit.rank_correlation(rated(3, 3, 3), labels), Unmeasured)


def test_a_corrected_rating_by_hand() -> None:
    """Ratings 8, 8, 6, 6 of which the first two are truly 7 and 6: 7 + (-1 - 2) / 2 = 5.5. All labelled: the truth's mean."""
    assert value_of(
        audit.corrected_rating(rated(8, 8, 6, 6), {("0", 0): 7.0, ("1", 0): 6.0})
    ) == pytest.approx(5.5)
    every = {(f"{i}", 0): t for i, t in enumerate((7.0, 6.0, 5.0, 4.0))}
    assert value_of(audit.corrected_rating(rated(8, 8, 6, 6), every)) == pytest.approx(5.5)
    assert isinstance(audit.corrected_rating(rated(8, 8), {("0", 0): 7.0}), Unmeasured)


def test_a_canary_is_held_against_the_honest_answer_to_the_same_item() -> None:
    """2 - 8 and 9 - 5; the third canary has no rating, which is no number: mean -1 of two."""
    found = audit.canary_difference({"a": 2.0, "b": 9.0, "c": None}, {"a": 8.0, "b": 5.0, "c": 7.0})
    assert isinstance(found, Estimate) and (found.value, found.n, found.n_unscored) == (-1.0, 2, 1)
    assert isinstance(audit.canary_difference({"a": 2.0}, {}), Unmeasured)


@pytest.mark.parametrize(
    "name",
    ["mean_rating", "whole_rate", "commonest_rate", "length_slope", "drift", "retest_agreement", "noise_sd"],
)
def test_nothing_measured_is_no_number(name: str) -> None:
    assert isinstance(audit.rating_statistics([], [], None)[name], Unmeasured)
    assert isinstance(audit.rating_statistics(rated(None, None), rated(None, None), None)[name], Unmeasured)
