"""What a judge's verdicts say about the judge (bench/stats/judge_bias.py, rating_bias.py), in a file: values with their
intervals, or why there is none, and what figures show."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.judges.canaries import HONEST, canary_of
from bench.judges.self_judge import Ranking, add_up, judge_quality
from bench.records import Result, Verdict, draw_name, over_turns, read_jsonl, read_labels, read_rewards
from bench.stages import self_judging_data
from bench.stats import estimates, judge_bias, rating_bias
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import AuditSettings, SelfJudgeSettings
from bench.world.gold import count_words, gold
from bench.world.tasks import Turn

T = TypeVar("T")


def run(settings: AuditSettings | SelfJudgeSettings, run: StageRun) -> Outcome:
    return _of_itself(settings, run) if isinstance(settings, SelfJudgeSettings) else _of_verdicts(settings, run)


def _of_verdicts(settings: AuditSettings, run: StageRun) -> Outcome:
    """Inputs: verdicts; again, gold, human, recorded, recorded_verdicts, canary_verdicts where there are such."""
    _check_served(run.inputs)
    found = _of_ratings(settings, run.inputs) if settings.manner == "rating" else _of_preferences(settings, run.inputs)
    (run.out / "passport.json").write_text(json.dumps(found, indent=1, allow_nan=False), encoding="utf-8")
    return Outcome({"verdicts": found["statistics"][MEAN[settings.manner]].get("n", 0)})


MEAN = {"preference": "win_rate", "rating": "mean_rating"}


def _read(inputs: Mapping[str, Path], role: str) -> list[Verdict]:
    return list(read_jsonl(inputs[role] / "verdicts.jsonl", Verdict))


def _sample(truth: Mapping[T, float], items: Sequence[str], n: int, item: Callable[[T], str]) -> dict[T, float]:
    """The truth of a seeded sample of items, as if labels were dear."""
    some = set(random.Random("labelled").sample(sorted(items), min(n, len(items))))
    return {key: value for key, value in truth.items() if item(key) in some}


def _known(labels: Mapping[T, float], judged: Sequence[T]) -> dict[T, float]:
    """The labels of what was judged. Raises ValueError where there are none."""
    known = {key: labels[key] for key in judged if key in labels}
    if not known:
        raise ValueError(
            f"human: none of the {len(labels)} labels is about one of the {len(judged)} judged items; the first label is of "
            f"{next(iter(labels), 'nothing')}, the first item is {judged[0]}"
        )
    return known


def _recorded(inputs: Mapping[str, Path]) -> tuple[list[Verdict], list[Verdict]]:
    """(the judge's, the recorded) verdicts on the turns that both have judged."""
    own, theirs = (_read(inputs, role) for role in ("recorded_verdicts", "recorded"))
    scored = [{(v.item_id, v.turn) for v in verdicts if v.unscored is None} for verdicts in (own, theirs)]
    both = scored[0] & scored[1]
    mine, recorded = ([v for v in verdicts if (v.item_id, v.turn) in both] for verdicts in (own, theirs))
    return mine, recorded


# Preferences ----------------------------------------------------------------------------------------------------------


def _of_preferences(settings: AuditSettings, inputs: Mapping[str, Path]) -> dict[str, Any]:
    verdicts = over_turns(_read(inputs, "verdicts"))
    again = over_turns(_read(inputs, "again")) if "again" in inputs else None
    truths = _truths(settings, inputs, verdicts)
    # What length does at equal quality is asked of the truth that is fullest.
    fullest = max((truth for truth, _ in truths.values()), key=len, default=None)
    found = {
        "manner": "preference",
        "statistics": _plain(judge_bias.verdict_statistics(verdicts, again, fullest)),
        "truths": {name: _against(verdicts, *truth) for name, truth in truths.items()},
        "canaries": _canaries(over_turns(_read(inputs, "canary_verdicts"))),
        "curves": judge_bias.curves(verdicts, fullest),
    }
    if "recorded" in inputs:
        own, recorded = map(over_turns, _recorded(inputs))
        truth = {v.item_id: v.preference for v in recorded if v.preference is not None}
        found["recorded"] = _plain(judge_bias.truth_statistics(own, truth))
    return found


def _truths(
    settings: AuditSettings, inputs: Mapping[str, Path], verdicts: Sequence[Verdict]
) -> dict[str, tuple[judge_bias.Truth, judge_bias.Truth]]:
    """(all that is known, the labels that a correction may use), by who says so."""
    found: dict[str, tuple[judge_bias.Truth, judge_bias.Truth]] = {}
    if "gold" in inputs:
        gold = {v.item_id: v.preference for v in over_turns(_read(inputs, "gold")) if v.preference is not None}
        found["gold"] = gold, _sample(gold, list(gold), settings.n_labelled, lambda item: item)
    if "human" in inputs:
        labels = {label.item_id: label.preference for label in read_labels(inputs["human"]) if label.preference is not None}
        known = _known(labels, [v.item_id for v in verdicts])
        found["human"] = known, known
    return found


def _against(verdicts: Sequence[Verdict], truth: judge_bias.Truth, labelled: judge_bias.Truth) -> dict[str, Any]:
    return _plain(
        {
            **judge_bias.truth_statistics(verdicts, truth),
            "true_win_rate": judge_bias.truth_win_rate(truth),
            "corrected_win_rate": judge_bias.corrected_win_rate(verdicts, labelled),
        }
    )


def _canaries(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    by_name: dict[str, list[float | None]] = {}
    for verdict in verdicts:
        by_name.setdefault(canary_of(verdict.item_id), []).append(verdict.preference)
    rates = {name: estimates.win_rate(preferences, np.random.default_rng(0)) for name, preferences in by_name.items()}
    return _plain({name: rate or estimates.Unmeasured("no verdict on it could be read") for name, rate in rates.items()})


# Ratings --------------------------------------------------------------------------------------------------------------


def _of_ratings(settings: AuditSettings, inputs: Mapping[str, Path]) -> dict[str, Any]:
    verdicts = _read(inputs, "verdicts")
    truths = _rated_truths(settings, inputs, verdicts)
    fullest = max((truth for truth, _ in truths.values()), key=len, default=None)
    again = _read(inputs, "again") if "again" in inputs else None
    found = {
        "manner": "rating",
        "statistics": _plain(rating_bias.rating_statistics(verdicts, again, fullest)),
        "truths": {name: _rated_against(verdicts, *truth) for name, truth in truths.items()},
        "canaries": _rated_canaries(_read(inputs, "canary_verdicts")),
        "curves": rating_bias.curves(verdicts, fullest),
    }
    if "recorded" in inputs:
        own, recorded = _recorded(inputs)
        found["recorded"] = _plain(rating_bias.truth_statistics(own, _ratings(recorded)))
    return found


def _ratings(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], float]:
    return {(v.item_id, v.turn): v.rating for v in verdicts if v.rating is not None}


def _rated_truths(
    settings: AuditSettings, inputs: Mapping[str, Path], verdicts: Sequence[Verdict]
) -> dict[str, tuple[rating_bias.Truth, rating_bias.Truth]]:
    found: dict[str, tuple[rating_bias.Truth, rating_bias.Truth]] = {}
    if "gold" in inputs:
        gold = _ratings(_read(inputs, "gold"))
        found["gold"] = gold, _sample(gold, list({item for item, _ in gold}), settings.n_labelled, lambda key: key[0])
    if "human" in inputs:
        labels = {(row.item_id, row.turn): row.rating for row in read_labels(inputs["human"]) if row.rating is not None}
        known = _known(labels, [(v.item_id, v.turn) for v in verdicts])
        found["human"] = known, known
    return found


def _rated_against(verdicts: Sequence[Verdict], truth: rating_bias.Truth, labelled: rating_bias.Truth) -> dict[str, Any]:
    return _plain(
        {
            **rating_bias.truth_statistics(verdicts, truth),
            "true_rating": rating_bias.truth_mean(truth),
            "corrected_rating": rating_bias.corrected_rating(verdicts, labelled),
        }
    )


def _rated_canaries(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Each canary's rating less the honest answer's, over items."""
    by_name: dict[str, dict[str, float | None]] = {}
    for verdict in verdicts:
        name, _, item = verdict.item_id.partition("/")
        by_name.setdefault(name, {})[item] = verdict.rating
    honest = by_name.pop(HONEST, {})
    return _plain({name: rating_bias.canary_difference(ratings, honest) for name, ratings in by_name.items()})


# Both -----------------------------------------------------------------------------------------------------------------


def _check_served(inputs: Mapping[str, Path]) -> None:
    """Raises ValueError where one audit's verdicts came from two models: an alias has moved on between them."""
    served: dict[str, list[str]] = {}
    for role in ("verdicts", "again", "canary_verdicts", "recorded_verdicts"):
        for verdict in read_jsonl(inputs[role] / "verdicts.jsonl", Verdict) if role in inputs else ():
            for call in verdict.calls:
                if call.served and str(inputs[role]) not in served.setdefault(call.served, []):
                    served[call.served].append(str(inputs[role]))
    if len(served) > 1:
        where = "; ".join(f"{model} in {', '.join(folders)}" for model, folders in sorted(served.items()))
        raise ValueError(f"verdicts of two models are not pooled: name one of them as judge.model, or delete the folders of one ({where})")


def _plain(found: Mapping[str, judge_bias.Found]) -> dict[str, Any]:
    return {
        name: {"unmeasured": value.reason} if isinstance(value, estimates.Unmeasured) else dataclasses.asdict(value)
        for name, value in found.items()
    }


# A policy that judges by writing --------------------------------------------------------------------------------------


def _of_itself(settings: SelfJudgeSettings, run: StageRun) -> Outcome:
    """Inputs: items and completions, the rankings; replies. Beside the judge's numbers those of one that prefers the shorter."""
    judged = add_up(settings.prompt, self_judging_data.read_replies(run.inputs["replies"]))
    rankings = self_judging_data.with_draws(run.inputs)
    truths: dict[str, float]
    if settings.truth is None:
        truths = read_rewards(run.inputs["completions"])
    else:
        truths = {
            draw_name(draw): gold(Turn.from_json((item.task or [])[0]), draw.completions[0], settings.truth).total
            for item, draws in rankings
            for draw in draws
        }
    result = Result({"judge_parse_rate": 1 - judged.unparsed / judged.replies} if judged.replies else {}, {})
    ours, shorter = [], []
    for _, draws in rankings:
        names, values = [draw_name(draw) for draw in draws], [truths[draw_name(draw)] for draw in draws]
        ours.append(Ranking([judged.scores.get(name) for name in names], values, [name in judged.perfect for name in names]))
        shorter.append(Ranking([-float(count_words(draw.completions[0])) for draw in draws], values, [False] * len(draws)))
    for name, estimate in judge_quality(ours):
        _add(result, f"judge_{name}", estimate, f"no ranking with a judgement that could be read ({judged.unparsed} unparsed)")
    _add(result, "judge_shorter_accuracy", dict(judge_quality(shorter))["pair_accuracy"], "no two completions differ in truth")
    read = sum(judged.histogram.values())
    result.metrics.update({f"judge_share_{value}": n / read for value, n in judged.histogram.items()})
    (run.out / "judge.json").write_text(json.dumps(result.to_json(), indent=1, sort_keys=True, allow_nan=False), encoding="utf-8")
    counts = {"rankings": len(rankings), "judgements": judged.replies, "unparsed": judged.unparsed}
    return Outcome(counts | {f"judged_{value}": n for value, n in judged.histogram.items()})


def _add(result: Result, name: str, estimate: estimates.Estimate | None, why: str) -> None:
    if estimate is None:
        result.missing[name] = why
        return
    found = {"": estimate.value, "_se": estimate.standard_error, "_low": estimate.low, "_high": estimate.high, "_n": estimate.n}
    result.metrics.update({f"{name}{suffix}": value for suffix, value in found.items() if value is not None})
