"""Numbers of a cell, computed from verdicts, completions and log-probs. A missing number has a reason.

win_rate                     mean preference, in [0, 1]; standard error and 95 % interval are over prompts
lc_win_rate                  its length-controlled form, only with a calibration (bench/stats/length_control.py)
equal_length_win_rate        the same regression without a calibration. It is another quantity: it misses
                             published LC win rates by up to 18.5 points, and orders models otherwise
arena_win_rate, style_win_rate   mean outcome of the battles of an Arena-Hard judge, and the same with style
                             controlled (bench/stats/style_control.py)
win_rate_LABEL               the same for the member LABEL of a jury; also n_unscored_LABEL,
                             arena_win_rate_LABEL and style_win_rate_LABEL
n_turns_unscored             turns without a verdict in items that are scored by another turn (pairs of two
                             turns)
rating, rating_turn1, _turn2 mean rating, 1 to 10; the standard error is clustered by question
expected_rating              mean of the judge's whole distribution over ratings, where the judge gives
                             log-probs
tasks/TASK/METRIC            result of a task of the forgetting check, in the task's own units; standard error
                             and interval are over documents
reward_accuracy              share of held-out pairs whose chosen completion has the larger log π/π_ref; a tie
                             is a half (paired data)
reward_auc                   chance that a desirable held-out completion has a larger log π/π_ref than an
                             undesirable one (unpaired data)
reward_chosen, _rejected, _margin   β log π/π_ref, mean over held-out rows
logps_chosen, _rejected      summed log-probs of held-out completions (nats), mean over rows
shift_chosen, shift_rejected log π/π_ref per token of held-out completions, in nats: how far they rose or fell
                             from the start model
reward_best                  best of n: mean reward of the chosen completions. reward_best and reward_* are
                             then rewards of the reward model, in its own units
kl                           KL(π || π_ref) a completion in nats, on the policy's own samples at temperature 1,
                             of up to data.kl_max_new_tokens tokens
label_accuracy               share of a loop's latest labels that agree with the truth, where the truth is
                             known and no tie
noise_precision, noise_recall   SPA's noise detector, over the pairs that it examined: the share of distrusted
                             labels that are wrong, and the share of wrong labels that are distrusted
noise_share                  share of labels that are wrong. It is the precision of distrusting labels at
                             random
mean_length, mean_tokens, unfinished   evaluation completions: characters, tokens, share cut at max_new_tokens
repetition                   share of a completion's word 3-grams that occurred earlier in it (rep-3 of Su
                             et al. 2022), mean over the completions that have 3-grams
judge_*                      the policy as a judge that writes, on held-out rankings
                             (bench/judges/self_judge.py)
unscored_REASON              replies of a language-model judge without a verdict, by reason (REASONS in
                             bench/judges/asked/replies.py)
votes_from_text, votes_weighed   votes without the log-probs that weigh them; all votes that are weighed
n_without_expected_rating    ratings without log-probs, where other ratings have them
distinct                     number of different word 3-grams of all completions over the number of all
                             3-grams (distinct-n of Li et al. 2016). It falls as the amount of text grows
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from bench.judges.asked.replies import count_reasons, votes_from_text
from bench.judges.formats import alpaca_eval
from bench.records import (
    Completion,
    Labelled,
    Logps,
    Pair,
    Result,
    TaskResult,
    Unpaired,
    Verdict,
    grouped,
    over_turns,
    preference_verdicts,
    read_completions,
    read_detections,
    read_items,
    read_jsonl,
    read_logps,
    read_rewards,
    read_rows,
    read_verdicts,
    task_number,
)
from bench.scoring import reasons
from bench.stats import estimates
from bench.stats.length_control import Calibration, LcWinRate, lc_name, lc_of_verdicts
from bench.stats.style_control import StyleWinRate, arena_win_rate, has_games, style_win_rate
from bench.stats.words import pieces
from bench.store.stage_settings import ScoreSettings, member_label

# Roles of the completions for lengths and repetition. The first role that the cell has is used.
COMPLETIONS = ("preference_completions", "rating_completions", "plain_completions")


@dataclass
class Numbers:
    """Metrics by name, and reasons of missing ones, as they are collected."""

    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        name: str,
        estimate: estimates.Estimate | estimates.Unmeasured | None,
        why: str = reasons.NOTHING_SCORED,
    ) -> None:
        """Add a value with its standard error and interval, or the reason why it is missing."""
        if estimate is None or isinstance(estimate, estimates.Unmeasured):
            self.missing[name] = estimate.reason if estimate else why
            return
        self.metrics |= {name: estimate.value, f"{name}_n": estimate.n}
        for suffix, value in (
            ("se", estimate.standard_error),
            ("low", estimate.low),
            ("high", estimate.high),
        ):
            if value is not None:
                self.metrics[f"{name}_{suffix}"] = value


def score(
    settings: ScoreSettings, inputs: Mapping[str, Path], calibration: Calibration | None = None
) -> Result:
    """A cell's numbers from the folders of its inputs, by role.

    A given `calibration` (by item id) is used for length control instead of the input `calibration`.
    """
    numbers = Numbers()
    preferred, rated = inputs.get("preference_verdicts"), inputs.get("rating_verdicts")
    calibration = calibration or calibration_of(inputs)
    _preference(settings, preferred, rated, calibration, numbers)
    for role in sorted(inputs):
        if (label := member_label(role)) is not None:
            _member(settings, label, preference_verdicts(inputs[role]), numbers)
    _rating(rated, preferred, numbers)
    completions = next(inputs[role] for role in COMPLETIONS if role in inputs)
    _completions(read_completions(completions), numbers)
    if "rewards" in inputs:
        chosen = read_rewards(completions)
        numbers.add(
            "reward_best",
            estimates.mean_estimate([reward for name, reward in chosen.items() if name.endswith("/0")]),
        )
    _heldout(settings, inputs, numbers)
    _kl(settings, inputs, numbers)
    _labels(inputs, numbers)
    if "tasks" in inputs:
        _tasks(inputs["tasks"], numbers)
    if "self_judge" in inputs:
        judge = Result.read(inputs["self_judge"] / "judge.json")
        numbers.metrics |= judge.metrics
        numbers.missing |= judge.missing
    return Result(
        numbers.metrics,
        dict(sorted(numbers.missing.items())),
        calibration.digest if calibration and preferred else None,
    )


def _tasks(folder: Path, numbers: Numbers) -> None:
    for task in read_jsonl(folder / "results.jsonl", TaskResult):
        if task.shown:
            estimate = (
                None if task.value is None else estimates.estimate_of(task.value, task.standard_error, task.n)
            )
            numbers.add(task_number(task.task, task.metric), estimate, reasons.TASK_NOT_FINITE)


def calibration_of(inputs: Mapping[str, Path]) -> Calibration | None:
    """Calibration of the judged items from the input `calibration`, a user's file.

    None without this input.
    """
    if "calibration" not in inputs:
        return None
    items = read_items(inputs["preference_items"])
    return alpaca_eval.for_items(alpaca_eval.read_calibration(inputs["calibration"], items), items)


def lc_numbers(
    settings: ScoreSettings,
    verdicts: Sequence[Verdict],
    calibration: Calibration | estimates.Unmeasured | None,
) -> Result:
    """Length-controlled metrics alone, or the reason why they are missing."""
    numbers, name = Numbers(), lc_name(calibration)
    if isinstance(calibration, estimates.Unmeasured):
        numbers.add(name, calibration)
        return Result(numbers.metrics, numbers.missing)
    controlled = lc_of_verdicts(verdicts, calibration, np.random.default_rng(settings.bootstrap_seed))
    numbers.add(name, controlled)
    if isinstance(controlled, LcWinRate) and controlled.n_failed_refits:
        numbers.metrics[f"{name}_failed_refits"] = controlled.n_failed_refits
    return Result(numbers.metrics, numbers.missing, calibration.digest if calibration else None)


def _preference(
    settings: ScoreSettings,
    folder: Path | None,
    rated: Path | None,
    calibration: Calibration | None,
    numbers: Numbers,
) -> None:
    if folder is None:
        why = reasons.NO_JUDGE if rated is None else reasons.ONLY_RATINGS
        numbers.missing |= dict.fromkeys(("win_rate", lc_name(calibration)), why)
        return
    turn_verdicts = read_verdicts(folder)
    verdicts = over_turns(turn_verdicts)
    _rates(settings, "", verdicts, numbers)
    controlled = lc_numbers(settings, verdicts, calibration)
    numbers.metrics |= controlled.metrics
    numbers.missing |= controlled.missing
    scored = {v.item_id for v in verdicts if v.preference is not None}
    numbers.metrics |= {"n_scored": len(scored), "n_unscored": len(verdicts) - len(scored)}
    turns = [v for v in turn_verdicts if v.item_id in scored]
    _count_replies(turn_verdicts, numbers)
    if len(turns) > len(scored):
        numbers.metrics["n_turns_unscored"] = sum(v.preference is None for v in turns)
    for part in ("gold", "content", "constraints", "conciseness", "fluency"):
        values = [v.details[part] for v in verdicts if v.details and part in v.details]
        if values:
            numbers.metrics[part if part == "gold" else f"gold_{part}"] = float(np.mean(values))


def _count_replies(verdicts: Sequence[Verdict], numbers: Numbers) -> None:
    """Count a language-model judge's replies without a verdict, by reason, and its votes without log-probs.

    Adds to counts that are there already (two kinds of verdicts, members of a jury).
    """
    for reason, n in count_reasons(verdicts).items():
        numbers.metrics[f"unscored_{reason}"] = numbers.metrics.get(f"unscored_{reason}", 0) + n
    if votes := votes_from_text(verdicts):
        for name, n in (("votes_from_text", votes.n_from_text), ("votes_weighed", votes.n)):
            numbers.metrics[name] = numbers.metrics.get(name, 0) + n


def _member(settings: ScoreSettings, label: str, verdicts: Sequence[Verdict], numbers: Numbers) -> None:
    """Add the numbers of one member of a jury."""
    _rates(settings, f"_{label}", verdicts, numbers)
    _count_replies(verdicts, numbers)
    numbers.metrics[f"n_unscored_{label}"] = sum(v.preference is None for v in verdicts)


def _rates(settings: ScoreSettings, suffix: str, verdicts: Sequence[Verdict], numbers: Numbers) -> None:
    """Add the win rates of one judge, their names ending in `suffix`."""
    rng = partial(np.random.default_rng, settings.bootstrap_seed)
    numbers.add(f"win_rate{suffix}", estimates.win_rate([v.preference for v in verdicts]))
    if not has_games(verdicts):
        return
    numbers.add(f"arena_win_rate{suffix}", arena_win_rate(verdicts, rng(), settings.bootstrap_resamples))
    controlled = style_win_rate(verdicts, rng())
    numbers.add(f"style_win_rate{suffix}", controlled)
    if isinstance(controlled, StyleWinRate):
        numbers.metrics |= {f"style_{name}{suffix}": value for name, value in controlled.coefficients.items()}
        if controlled.n_failed_refits:
            numbers.metrics[f"style_win_rate{suffix}_failed_refits"] = controlled.n_failed_refits


def _rating(folder: Path | None, preferred: Path | None, numbers: Numbers) -> None:
    if folder is None:
        numbers.missing["rating"] = reasons.NO_JUDGE if preferred is None else reasons.ONLY_PREFERENCES
        return
    verdicts = read_verdicts(folder)
    turns = sorted({v.turn for v in verdicts})
    numbers.add("rating", estimates.rating_mean(grouped((v.item_id, v.rating) for v in verdicts)))
    for turn in turns:
        numbers.add(
            f"rating_turn{turn + 1}",
            estimates.rating_mean(grouped((v.item_id, v.rating) for v in verdicts if v.turn == turn)),
        )
    for category in sorted({v.category for v in verdicts if v.category}):
        mean = estimates.rating_mean(
            grouped((v.item_id, v.rating) for v in verdicts if v.category == category)
        )
        if mean is not None:
            numbers.metrics[f"rating_{category}"] = mean.value
    expected = estimates.rating_mean(
        grouped((v.item_id, (v.details or {}).get("expected_rating")) for v in verdicts)
    )
    if expected is not None:
        numbers.add("expected_rating", expected)
        if lacking := sum(
            v.rating is not None and "expected_rating" not in (v.details or {}) for v in verdicts
        ):
            numbers.metrics["n_without_expected_rating"] = lacking
    _count_replies(verdicts, numbers)
    numbers.metrics |= {
        "n_ratings": sum(v.rating is not None for v in verdicts),
        "n_ratings_unscored": sum(v.rating is None for v in verdicts),
    }


def _completions(completions: Sequence[Completion], numbers: Numbers) -> None:
    numbers.add("mean_length", estimates.mean_estimate([len(c.completions[0]) for c in completions]))
    if completions and all(c.n_tokens and c.finished for c in completions):
        numbers.add("mean_tokens", estimates.mean_estimate([c.n_tokens[0] for c in completions]))
        numbers.metrics["unfinished"] = float(np.mean([not c.finished[0] for c in completions]))
    else:
        numbers.missing |= dict.fromkeys(("mean_tokens", "unfinished"), reasons.FROM_FILE)
    numbers.metrics["n_completions"] = len(completions)
    texts = [grams for c in completions if (grams := _grams(c.completions[0]))]
    numbers.add(
        "repetition",
        estimates.mean_estimate([1 - len(set(grams)) / len(grams) for grams in texts]),
        reasons.NO_GRAM,
    )
    if texts:
        numbers.metrics["distinct"] = len(set(itertools.chain(*texts))) / sum(map(len, texts))
    else:
        numbers.missing["distinct"] = reasons.NO_GRAM


def _grams(text: str) -> list[tuple[str, ...]]:
    """All runs of reasons.GRAM words of the text (bench/stats/words.py), in lower case."""
    words = pieces(text.lower())
    return [tuple(words[i : i + reasons.GRAM]) for i in range(len(words) - reasons.GRAM + 1)]


def _heldout(settings: ScoreSettings, inputs: Mapping[str, Path], numbers: Numbers) -> None:
    if "preferences" not in inputs:
        why = numbers.missing.get("mean_tokens", reasons.OWN_REFERENCE)
        numbers.missing |= dict.fromkeys(
            ("reward_accuracy", "reward_auc", "logps_chosen", "logps_rejected", "kl"), why
        )
        return
    rows = read_rows(inputs["preferences"] / "heldout.jsonl")
    reference = read_logps(inputs["reference_logps"])
    policy = read_logps(inputs["policy_logps"]) if "policy_logps" in inputs else reference
    sides = {"chosen": list(_side(rows, True)), "rejected": list(_side(rows, False))}
    for side, names in sides.items():
        numbers.add(
            f"logps_{side}",
            estimates.mean_estimate([policy[name].logps for name in names]),
            reasons.NO_HELDOUT_ROW,
        )
    if "rewards" in inputs:
        rewards = read_rewards(inputs["rewards"])
        scale, ratios = (
            1.0,
            {side: np.array([rewards[name] for name in names]) for side, names in sides.items()},
        )
    elif settings.beta is None:
        sides_of = ("reward_chosen", "reward_rejected", "shift_chosen", "shift_rejected")
        numbers.missing |= dict.fromkeys(
            ("reward_accuracy", "reward_auc", "reward_margin", *sides_of), reasons.OWN_REFERENCE
        )
        return
    else:
        ratios = {side: np.array(_ratios(policy, reference, names)) for side, names in sides.items()}
        scale = settings.beta
    for side, values in ratios.items():
        numbers.add(
            f"reward_{side}", estimates.mean_estimate((scale * values).tolist()), reasons.NO_HELDOUT_ROW
        )
        if "rewards" in inputs:
            numbers.missing[f"shift_{side}"] = reasons.BEST_OF_N_MOVES_NOTHING
            continue
        per_token = [
            ratio / max(policy[name].n_tokens, 1)
            for ratio, name in zip(values.tolist(), sides[side], strict=True)
        ]
        numbers.add(f"shift_{side}", estimates.mean_estimate(per_token), reasons.NO_HELDOUT_ROW)
    if isinstance(rows[0], Pair):
        numbers.add(
            "reward_margin",
            estimates.mean_estimate((scale * (ratios["chosen"] - ratios["rejected"])).tolist()),
        )
        right = (np.sign(ratios["chosen"] - ratios["rejected"]) + 1) / 2
        numbers.add("reward_accuracy", estimates.accuracy(right.tolist()))
        numbers.missing["reward_auc"] = reasons.DATA_ARE_PAIRS
        return
    numbers.missing |= dict.fromkeys(("reward_margin", "reward_accuracy"), reasons.DATA_ARE_UNPAIRED)
    if all(map(len, ratios.values())):
        numbers.add(
            "reward_auc",
            estimates.auc(
                ratios["chosen"], ratios["rejected"], np.random.default_rng(settings.bootstrap_seed)
            ),
        )
    else:
        numbers.missing["reward_auc"] = reasons.ONE_LABEL


def _side(rows: Sequence[Pair] | Sequence[Unpaired], desirable: bool) -> Iterator[str]:
    """Names of the held-out completions that are chosen or desirable (`desirable`), or of the other ones."""
    for row in rows:
        if isinstance(row, Pair):
            yield f"heldout/{row.id}/{'chosen' if desirable else 'rejected'}"
        elif row.label == desirable:
            yield f"heldout/{row.id}/completion"


def _labels(inputs: Mapping[str, Path], numbers: Numbers) -> None:
    folders = [inputs[role] for role in sorted(inputs) if role.startswith("labels_")]
    if not folders:
        return
    latest = read_jsonl(folders[-1] / "labels.jsonl", Labelled)
    numbers.add("label_accuracy", estimates.accuracy([label.correct for label in latest]), reasons.NO_TRUTH)
    if (detections := read_detections(inputs["training"], folders)) is None:
        return
    distrusted_ones = [wrong for distrusted, wrong in detections if distrusted]
    numbers.add("noise_precision", estimates.accuracy(distrusted_ones), reasons.NOTHING_DISTRUSTED)
    numbers.add(
        "noise_recall",
        estimates.accuracy([distrusted for distrusted, wrong in detections if wrong]),
        reasons.NOTHING_WRONG,
    )
    numbers.add("noise_share", estimates.accuracy([wrong for _, wrong in detections]), reasons.NO_TRUTH)


def _kl(settings: ScoreSettings, inputs: Mapping[str, Path], numbers: Numbers) -> None:
    if (n := settings.best_of) > 1:
        bound = f"log n - (n-1)/n = {math.log(n) - (n - 1) / n:.2f} nats"
        numbers.missing["kl"] = (
            f"choosing has no log-probabilities to measure; best of {n} is at most {bound} from its samples"
        )
        return
    if "kl_policy_logps" not in inputs:
        numbers.missing.setdefault("kl", reasons.OWN_REFERENCE)
        return
    policy, reference = read_logps(inputs["kl_policy_logps"]), read_logps(inputs["kl_reference_logps"])
    numbers.add("kl", estimates.mean_estimate(_ratios(policy, reference, policy)))


def _ratios(policy: Mapping[str, Logps], reference: Mapping[str, Logps], names: Iterable[str]) -> list[float]:
    return [policy[name].logps - reference[name].logps for name in names]
