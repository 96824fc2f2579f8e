"""What an audit finds in judges whose faults are known: scripted judges over the controlled world with injected biases, and by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.config import CATEGORIES, GoldWeights, World, Writer
from bench.judges import baseline
from bench.judges.gold import GoldPreference
from bench.records import Call, Completion, Item, Verdict
from bench.stats import judge_bias
from bench.stats.estimates import Estimate, Unmeasured
from bench.world.corpus import make_items
from bench.world.tasks import Turn
from bench.world.writers import write

WEIGHTS = GoldWeights(content=0.45, constraints=0.35, conciseness=0.2)
SLOPPY = Writer(error=0.15, missed_constraint=0.65, filler=0.6)
GOOD = Writer(error=0.1, missed_constraint=0.15, filler=0.2)
WORLD = World(
    categories=CATEGORIES, constraint_counts=(0.2, 0.4, 0.4), gold=WEIGHTS, reference=GOOD, eval_seed=0
)
N = 400


@cache
def _pairs_with_a_winner() -> list[tuple[Item, Completion]]:
    """N items of the world and a sloppy writer's answers that are not exactly as good as the baseline's."""
    found = []
    for item in make_items(WORLD, 2 * N, split="evaluation", seed=0):
        text = write(Turn.from_json((item.task or [])[0]), SLOPPY, random.Random(item.id))
        answer = Completion(item.id, item.turns, [text], [], [])
        if next(GoldPreference(WEIGHTS, 1.0).judge([item], [answer], baseline([item]))).preference != 0.5:
            found.append((item, answer))
    return found[:N]


def items() -> list[Item]:
    return [item for item, _ in _pairs_with_a_winner()]


def completions() -> list[Completion]:
    return [answer for _, answer in _pairs_with_a_winner()]


@cache
def gold() -> list[Verdict]:
    return list(GoldPreference(WEIGHTS, 1.0).judge(items(), completions(), baseline(items())))


@cache
def truth() -> dict[str, float]:
    return {v.item_id: v.preference for v in gold() if v.preference is not None}


@dataclass(frozen=True)
class Scripted:
    """A judge over the gold truth with injected faults; asked about every pair in both orders.

    `votes`: it says who wins, drawn by the truth's preference, or `certain`ly the likelier; else it gives the preference itself.
    """

    seed: int = 0
    votes: bool = False
    certain: bool = False
    position: float = 0.0  # share of votes for whoever stands first
    length: float = 0.0  # log-odds per 100 characters
    failures: float = 0.0
    noise: float = 0.0  # share of votes that are turned round
    ties: float = 0.0
    drift: float = 0.0  # added from the middle on
    upside_down: bool = False
    name: str = "scripted"

    def judge(
        self, asked: Sequence[Item], answers: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        by_id, rng = {item.id: item for item in asked}, random.Random(self.seed)
        for place, answer in enumerate(answers):
            opponent = (by_id[answer.id].baseline or [""])[0]
            longer = len(answer.completions[0]) - len(opponent)
            said = [
                self._say(answer.id, longer, first, place >= len(answers) / 2, rng) for first in (False, True)
            ]
            calls = [call(value, first) for value, first in zip(said, (False, True), strict=True)]
            about: dict[str, Any] = {
                "policy_length": len(answer.completions[0]),
                "baseline_length": len(opponent),
                "calls": calls,
            }
            read = [value for value in said if value is not None]
            if len(read) < 2:
                yield Verdict(answer.id, self.name, unscored="no verdict in 'hm'", **about)
            else:
                yield Verdict(answer.id, self.name, preference=sum(read) / 2, **about)

    def _say(self, item: str, longer: int, first: bool, late: bool, rng: random.Random) -> float | None:
        if rng.random() < self.failures:
            return None
        if rng.random() < self.ties:
            return 0.5
        p = logistic(logit(truth()[item]) + self.length * longer / 100)
        p = 0.2 + 0.6 * p + self.drift * late if self.drift else p
        if not self.votes:
            return p
        vote = p > 0.5 if self.certain else rng.random() < p
        vote = first if rng.random() < self.position else vote
        turned = (rng.random() < self.noise) != self.upside_down
        return float(vote != turned)


def call(preference: float | None, first: bool) -> Call:
    return Call("m", "m", "digest", "parser", {}, policy_first=first, preference=preference)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def judged(judge: Scripted) -> list[Verdict]:
    return list(judge.judge(items(), completions(), None))


def found(judge: Scripted) -> dict[str, Any]:
    first, second = judged(judge), again(judge)
    return judge_bias.preference_statistics(first, second, truth()) | judge_bias.preference_agreement(
        first, truth()
    )


VOTES = Scripted(votes=True)


def again(judge: Scripted) -> list[Verdict]:
    return judged(replace(judge, seed=judge.seed + 1000))


STATISTICS: dict[str, Callable[[Scripted], Any]] = {
    "position_bias": lambda judge: judge_bias.position_bias(judged(judge)),
    "length_bias": lambda judge: judge_bias.preference_slope(judged(judge), truth()),
    "failure_rate": lambda judge: judge_bias.failure_rate(judged(judge)),
    "noise_rate": lambda judge: judge_bias.noise_rate(
        judge_bias.retest_agreement(judged(judge), again(judge))
    ),
    "tie_rate": lambda judge: judge_bias.tie_rate(judged(judge)),
    "drift": lambda judge: judge_bias.preference_statistics(judged(judge), None, truth())["drift"],
}


@pytest.mark.parametrize(
    ("judge", "name", "injected", "size"),
    [
        (replace(VOTES, position=0.1), "position_bias", 0.1, 0.12),
        (replace(VOTES, certain=True, position=0.1), "position_bias", 0.1, 0.08),
        (Scripted(length=2.0), "length_bias", 2.0, 0.02),
        (replace(VOTES, length=2.0), "length_bias", 2.0, 2.2),
        (Scripted(failures=0.15), "failure_rate", 0.15, 0.06),
        (replace(VOTES, certain=True, noise=0.1), "noise_rate", 0.1, 0.05),
        (Scripted(ties=0.2), "tie_rate", 0.2, 0.08),
        (Scripted(drift=0.15), "drift", 0.15, 0.08),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_injected_fault_comes_back_within_its_interval(
    judge: Scripted, name: str, injected: float, size: float
) -> None:
    """Over 40 seeds a 95 % interval holds the injected value at least 33 times (chance of fewer: 0.1 %), and is no wider than `size`."""
    seeds = range(40)
    estimates = [STATISTICS[name](replace(judge, seed=seed)) for seed in seeds]
    inside = [_covers(estimate, injected) for estimate in estimates]
    assert sum(inside) >= 33, [(e.low, e.high) for e in estimates]
    assert max(e.high - e.low for e in estimates if e.low is not None) < size
    assert np.mean([e.value for e in estimates]) == pytest.approx(injected, abs=size / 6)


def _covers(estimate: Estimate, value: float) -> bool:
    if estimate.low is None or estimate.high is None:
        return estimate.value == pytest.approx(value, abs=1e-9)
    return estimate.low - 1e-9 <= value <= estimate.high + 1e-9


def test_a_fair_judge_has_no_faults() -> None:
    fair = found(Scripted())
    for name in (
        "position_bias",
        "flip_rate",
        "tie_rate",
        "failure_rate",
        "length_bias",
        "noise_rate",
        "drift",
    ):
        assert fair[name].value == pytest.approx(0, abs=1e-6), name
    for name in ("agreement", "kappa", "retest_agreement"):
        assert fair[name].value == 1, name
    contrary = found(replace(VOTES, certain=True, upside_down=True))
    assert contrary["agreement"].value == 0 and contrary["kappa"].high < 0


def test_a_plain_slope_confounds_quality_with_length_and_the_bias_does_not() -> None:
    """In this world the longer answer is the worse one, which is no fault of the judge."""
    fair = found(Scripted())
    assert fair["length_slope"].high < 0
    assert abs(fair["length_bias"].value) < 1e-6


def test_a_judge_that_is_a_function_has_no_order_and_no_noise() -> None:
    statistics = judge_bias.preference_statistics(gold(), None, truth())
    for name in ("position_bias", "flip_rate", "retest_agreement", "noise_rate"):
        assert isinstance(statistics[name], Unmeasured), name
    assert statistics["failure_rate"] == Estimate(0.0, 0.0, 0.0, pytest.approx(0.0095, abs=1e-4), N)
    assert isinstance(judge_bias.preference_statistics(gold(), None, None)["length_bias"], Unmeasured)


# The corrected win rate -------------------------------------------------------------------------------------------------


LONGER, NOISY = replace(VOTES, length=3.0), replace(VOTES, certain=True, noise=0.2, failures=0.1)


@pytest.mark.parametrize("labelled", [20, 100, 400])
@pytest.mark.parametrize("judge", [LONGER, NOISY], ids=["longer", "noisy"])
def test_the_corrected_win_rate_covers_the_truth_at_its_rate(judge: Scripted, labelled: int) -> None:
    """4000 draws of 400 items from a population of gold preferences and verdicts on them: the population's true win rate lies in 95 %
    of the intervals, within four standard errors of that share. With 20 labels lumpy differences may cost up to two points."""
    rng = np.random.default_rng(1)
    verdicts = [v for v in judged(judge) if v.preference is not None]
    said, true = np.array([v.preference for v in verdicts]), np.array([truth()[v.item_id] for v in verdicts])
    hits = []
    for _ in range(4000):
        drawn = rng.integers(0, len(verdicts), 400)
        known, rest = drawn[:labelled], drawn[labelled:]
        estimate = judge_bias.prediction_powered(said[known], true[known], said[rest])
        assert estimate.low is not None and estimate.high is not None
        hits.append(estimate.low <= true.mean() <= estimate.high)
    slack = 4 * math.sqrt(0.95 * 0.05 / 4000)
    assert 0.95 - slack - (0.02 if labelled == 20 else 0) <= np.mean(hits) <= 0.95 + slack


def test_a_biased_judges_own_win_rate_is_wrong_and_labels_narrow_nothing_for_free() -> None:
    """A judge that likes length is 5 points or more off and its own interval misses the truth; corrected by 100 labels it does not,
    and the interval of a good judge is narrower than the labels alone give."""
    true = np.mean([*truth().values()])
    labels = dict(list(truth().items())[:100])
    longest = replace(VOTES, length=6.0)
    plain, corrected = found(longest)["win_rate"], judge_bias.corrected_win_rate(judged(longest), labels)
    assert abs(plain.value - true) > 0.05 and not plain.low <= true <= plain.high
    assert isinstance(corrected, Estimate) and _covers(corrected, float(true))
    alone, good = judge_bias.PREFERENCE.corrected(judged(Scripted()), labels, labels).values()
    assert isinstance(good, Estimate) and isinstance(alone, Estimate)
    assert good.standard_error is not None and alone.standard_error is not None
    assert good.standard_error < 0.7 * alone.standard_error


def test_correcting_is_the_judges_mean_plus_the_labelled_differences() -> None:
    """Judge 1, 1, 0, 1 with truth 1, 0 of the first two: 3/4 + (0 - 1) / 2 = 1/4. All labelled: the truth's mean."""
    verdicts = [Verdict(f"{i}", "j", preference=p) for i, p in enumerate((1.0, 1.0, 0.0, 1.0))]
    corrected = judge_bias.corrected_win_rate(verdicts, {"0": 1.0, "1": 0.0})
    assert isinstance(corrected, Estimate) and corrected.value == pytest.approx(0.25) and corrected.n == 4
    whole = judge_bias.corrected_win_rate(verdicts, {"0": 1.0, "1": 0.0, "2": 0.0, "3": 1.0})
    assert isinstance(whole, Estimate) and whole.value == 0.5
    assert isinstance(judge_bias.corrected_win_rate(verdicts, {"0": 1.0}), Unmeasured)


# By hand ------------------------------------------------------------------------------------------------------------------


def pair(item: str, first: float | None, second: float | None) -> Verdict:
    return next(iter(_pairs([(item, first, second)])))


def _pairs(rows: Sequence[tuple[str, float | None, float | None]]) -> Iterator[Verdict]:
    for item, first, second in rows:
        calls = [call(first, True), call(second, False)]
        if first is None or second is None:
            yield Verdict(item, "j", unscored="?", calls=calls)
        else:
            yield Verdict(item, "j", preference=(first + second) / 2, calls=calls)


def test_orders_by_hand() -> None:
    """Differences 1, 0, 0.5 over three pairs read in both orders; one flips, for a tie names no winner; 2 of 8 calls are ties or fail."""
    verdicts = [pair("a", 1.0, 0.0), pair("b", 1.0, 1.0), pair("c", 1.0, 0.5), pair("d", 0.0, None)]
    bias, flips = judge_bias.position_bias(verdicts), judge_bias.flip_rate(verdicts)
    assert isinstance(bias, Estimate) and (bias.value, bias.n) == (0.5, 3)
    assert isinstance(flips, Estimate) and (flips.value, flips.n) == (pytest.approx(1 / 3), 3)
    ties, failures = judge_bias.tie_rate(verdicts), judge_bias.failure_rate(verdicts)
    assert isinstance(ties, Estimate) and (ties.value, ties.n, ties.n_unscored) == (
        pytest.approx(1 / 7),
        7,
        1,
    )
    assert isinstance(failures, Estimate) and (failures.value, failures.n) == (1 / 8, 8)


def test_kappa_by_hand() -> None:
    """Two sides, [[20, 5], [10, 15]]: observed 0.7, by chance 0.5, kappa 0.4 (Cohen 1960's form). A one-sided tie counts half."""
    rows = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
    verdicts = [Verdict(f"{i}", "j", preference=p) for i, (p, _) in enumerate(rows)]
    labels = {f"{i}": t for i, (_, t) in enumerate(rows)}
    agreement, kappa = judge_bias.preference_agreement(verdicts, labels).values()
    assert (
        isinstance(kappa, Estimate)
        and kappa.value == pytest.approx(0.4)
        and kappa.low is not None
        and kappa.low < 0.4
    )
    assert isinstance(agreement, Estimate) and agreement.value == pytest.approx(0.7)
    tied = [Verdict("0", "j", preference=0.5), Verdict("1", "j", preference=1.0)]
    halves = judge_bias.preference_agreement(tied, {"0": 1.0, "1": 1.0})["agreement"]
    assert isinstance(halves, Estimate) and halves.value == 0.75
    assert isinstance(judge_bias.preference_agreement(verdicts[:20], labels)["kappa"], Unmeasured)


def test_length_slope_agrees_with_statsmodels() -> None:
    sm: Any = pytest.importorskip("statsmodels.api")
    verdicts = judged(replace(VOTES, length=2.0))
    x = np.array(
        [
            [((v.policy_length or 0) - (v.baseline_length or 0)) / 100, 1.0, logit(truth()[v.item_id])]
            for v in verdicts
        ]
    )
    y = np.array([v.preference for v in verdicts])
    fit = sm.GLM(y, x, family=sm.families.Binomial()).fit(cov_type="HC1")
    ours = judge_bias.preference_slope(verdicts, truth())
    assert isinstance(ours, Estimate)
    error = fit.bse[0] * math.sqrt(
        N / (N - 3)
    )  # statsmodels leaves the small-sample factor of HC1 out of GLMs
    assert (ours.value, ours.standard_error) == (
        pytest.approx(fit.params[0], rel=1e-6),
        pytest.approx(error, rel=1e-6),
    )


def plain_slope(verdicts: Sequence[Verdict]) -> judge_bias.Statistic:
    return judge_bias.preference_slope(verdicts, None)


def plain_drift(verdicts: Sequence[Verdict]) -> judge_bias.Statistic:
    return judge_bias.preference_statistics(verdicts, None, None)["drift"]


@pytest.mark.parametrize(
    "statistic",
    [
        judge_bias.position_bias,
        judge_bias.flip_rate,
        judge_bias.tie_rate,
        judge_bias.failure_rate,
        plain_slope,
        plain_drift,
    ],
)
def test_nothing_measured_is_no_number(
    statistic: Callable[[Sequence[Verdict]], judge_bias.Statistic],
) -> None:
    assert isinstance(statistic([]), Unmeasured)
    if statistic not in (judge_bias.failure_rate,):
        assert isinstance(statistic([pair("a", None, None)]), Unmeasured)
