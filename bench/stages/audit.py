"""Measures a judge from its verdicts (bench/stats/judge_bias.py) and writes the numbers to a file.

Each statistic has its interval, or the reason for its absence. Curves for figures are written too.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.judges.canaries import HONEST, canary_of
from bench.judges.self_judge import Ranking, add_up, judge_quality
from bench.records import (
    HumanLabel,
    Result,
    Verdict,
    draw_name,
    grouped,
    read_labels,
    read_rewards,
    read_verdicts,
)
from bench.scoring.numbers import Numbers
from bench.stages import self_judging_data
from bench.stats import estimates, judge_bias
from bench.stats.judge_bias import Manner, Statistic, Truth
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import AuditSettings, SelfJudgeSettings
from bench.world.gold import count_words, gold
from bench.world.tasks import Turn


def run(settings: AuditSettings | SelfJudgeSettings, run: StageRun) -> Outcome:
    return (
        _of_itself(settings, run) if isinstance(settings, SelfJudgeSettings) else _of_verdicts(settings, run)
    )


def _of_verdicts(settings: AuditSettings, run: StageRun) -> Outcome:
    """Writes passport.json of a judge.

    Inputs: verdicts; and where they exist again, gold, human, recorded, recorded_verdicts, canary_verdicts.
    """
    _check_served(run.inputs)
    inputs, manner = run.inputs, MANNERS[settings.manner]
    verdicts, canaries = (
        manner.each(read_verdicts(inputs[role])) for role in ("verdicts", "canary_verdicts")
    )
    again = manner.each(read_verdicts(inputs["again"])) if "again" in inputs else None
    truths = _truths(settings, manner, inputs, verdicts)
    # The effect of length at equal quality is estimated with the truth that has the most values.
    fullest = max((truth for truth, _ in truths.values()), key=len, default=None)
    passport: dict[str, Any] = {
        "manner": settings.manner,
        "statistics": _plain(manner.statistics(verdicts, again, fullest)),
        "truths": {
            name: _plain(manner.agreement(verdicts, truth) | manner.corrected(verdicts, truth, labelled))
            for name, (truth, labelled) in truths.items()
        },
        "canaries": _plain((_canaries if manner is judge_bias.PREFERENCE else _rated_canaries)(canaries)),
        "curves": manner.curves(verdicts, fullest),
    }
    if "recorded" in inputs:
        own, recorded = map(manner.each, _recorded(inputs))
        passport["recorded"] = _plain(manner.agreement(own, _values(manner, recorded)))
    (run.out / "passport.json").write_text(json.dumps(passport, indent=1, allow_nan=False), encoding="utf-8")
    return Outcome({"verdicts": passport["statistics"][manner.mean].get("n", 0)})


MANNERS = {"preference": judge_bias.PREFERENCE, "rating": judge_bias.RATING}


def _values(manner: Manner, labels: Sequence[Verdict] | Sequence[HumanLabel]) -> dict[Any, float]:
    return {manner.place(label): value for label in labels if (value := manner.value(label)) is not None}


def _truths(
    settings: AuditSettings, manner: Manner, inputs: Mapping[str, Path], verdicts: Sequence[Verdict]
) -> dict[str, tuple[Truth, Truth]]:
    """Returns (all known values, the labels that a correction may use) by source: gold or human.

    Raises ValueError if the human labels cover none of the judged items.
    """
    truths: dict[str, tuple[Truth, Truth]] = {}
    if "gold" in inputs:
        judged = manner.each(read_verdicts(inputs["gold"]))
        items = sorted({v.item_id for v in judged if manner.value(v) is not None})
        # Labels are assumed to be expensive: the correction gets a seeded sample of items.
        labelled = set(random.Random("labelled").sample(items, min(settings.n_labelled, len(items))))
        truths["gold"] = (
            _values(manner, judged),
            _values(manner, [v for v in judged if v.item_id in labelled]),
        )
    if "human" in inputs:
        labels, places = _values(manner, read_labels(inputs["human"])), [manner.place(v) for v in verdicts]
        known = {place: labels[place] for place in places if place in labels}
        if not known:
            raise ValueError(
                f"None of the {len(labels)} labels in human= is for one of the {len(places)} judged items. The first label is for "
                f"{next(iter(labels), 'nothing')}, and the first item is {places[0]}. Bring labels for these items."
            )
        truths["human"] = known, known
    return truths


def _recorded(inputs: Mapping[str, Path]) -> tuple[list[Verdict], list[Verdict]]:
    """Returns (the judge's, the recorded) verdicts on the turns that both have scored."""
    sides = [read_verdicts(inputs[role]) for role in ("recorded_verdicts", "recorded")]
    scored = [{(v.item_id, v.turn) for v in verdicts if v.unscored is None} for verdicts in sides]
    both = scored[0] & scored[1]
    own, recorded = ([v for v in verdicts if (v.item_id, v.turn) in both] for verdicts in sides)
    return own, recorded


def _canaries(verdicts: Sequence[Verdict]) -> dict[str, Statistic]:
    by_name = grouped((canary_of(verdict.item_id), verdict.preference) for verdict in verdicts)
    rates = {name: estimates.win_rate(preferences) for name, preferences in by_name.items()}
    return {
        name: rate or estimates.Unmeasured("no verdict on it could be read") for name, rate in rates.items()
    }


def _rated_canaries(verdicts: Sequence[Verdict]) -> dict[str, Statistic]:
    """Each canary's rating minus the honest completion's rating, over items."""
    by_name: dict[str, dict[str, float | None]] = {}
    for verdict in verdicts:
        name, _, item = verdict.item_id.partition("/")
        by_name.setdefault(name, {})[item] = verdict.rating
    honest = by_name.pop(HONEST, {})
    return {name: judge_bias.canary_difference(ratings, honest) for name, ratings in by_name.items()}


def _check_served(inputs: Mapping[str, Path]) -> None:
    """Raises ValueError if one audit's verdicts came from two models.

    This happens when a model alias has moved on between them.
    """
    served: dict[str, list[str]] = {}
    for role in ("verdicts", "again", "canary_verdicts", "recorded_verdicts"):
        for verdict in read_verdicts(inputs[role]) if role in inputs else ():
            for call in verdict.calls:
                if call.served and str(inputs[role]) not in served.setdefault(call.served, []):
                    served[call.served].append(str(inputs[role]))
    if len(served) > 1:
        by_model = "; ".join(f"{model} in {', '.join(folders)}" for model, folders in sorted(served.items()))
        raise ValueError(
            f"The verdicts of this audit come from two models and cannot be pooled: {by_model}. Set judge.model to one of them, or delete "
            "the folders of the other."
        )


def _plain(statistics: Mapping[str, Statistic]) -> dict[str, Any]:
    return {
        name: {"unmeasured": value.reason}
        if isinstance(value, estimates.Unmeasured)
        else dataclasses.asdict(value)
        for name, value in statistics.items()
    }


# A policy that judges by writing ----------------------------------------------------------------------------


def _of_itself(settings: SelfJudgeSettings, run: StageRun) -> Outcome:
    """Writes judge.json: how well a policy judges by writing, next to a judge that prefers the shorter text.

    Inputs: items and completions (the rankings), replies.
    """
    judged = add_up(settings.prompt, self_judging_data.read_replies(run.inputs["replies"]))
    rankings = self_judging_data.with_draws(run.inputs)
    truths: dict[str, float]
    if settings.truth is None:
        truths = read_rewards(run.inputs["completions"])
    else:
        truths = {
            draw_name(draw): gold(
                Turn.from_json((item.task or [])[0]), draw.completions[0], settings.truth
            ).total
            for item, draws in rankings
            for draw in draws
        }
    numbers = Numbers({"judge_parse_rate": 1 - judged.unparsed / judged.replies} if judged.replies else {})
    ours, shorter = [], []
    for _, draws in rankings:
        names, values = [draw_name(draw) for draw in draws], [truths[draw_name(draw)] for draw in draws]
        ours.append(
            Ranking(
                [judged.scores.get(name) for name in names],
                values,
                [name in judged.perfect for name in names],
            )
        )
        shorter.append(
            Ranking(
                [-float(count_words(draw.completions[0])) for draw in draws], values, [False] * len(draws)
            )
        )
    for name, estimate in judge_quality(ours):
        numbers.add(
            f"judge_{name}",
            estimate,
            f"no ranking with a judgement that could be read ({judged.unparsed} unparsed)",
        )
    numbers.add(
        "judge_shorter_accuracy",
        dict(judge_quality(shorter))["pair_accuracy"],
        "no two completions differ in truth",
    )
    n_read = sum(judged.histogram.values())
    numbers.metrics |= {f"judge_share_{value}": n / n_read for value, n in judged.histogram.items()}
    (run.out / "judge.json").write_text(
        json.dumps(
            Result(numbers.metrics, numbers.missing).to_json(), indent=1, sort_keys=True, allow_nan=False
        ),
        encoding="utf-8",
    )
    counts = {"rankings": len(rankings), "judgements": judged.replies, "unparsed": judged.unparsed}
    return Outcome(counts | {f"judged_{value}": n for value, n in judged.histogram.items()})
