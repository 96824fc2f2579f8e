"""Turns the samples of each prompt into a labelled pair. Ties and unscored pairs are stored without a label.

Of more than two samples the best and the worst make the pair, in the order in which they were drawn. With a
judge, a sample's score is the mean of its ratings, or of the preferences for it over each other sample.
Unscored verdicts are left out of these means. A sample without any verdict is left out, and a prompt with
fewer than two scored samples is unscored.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.config import GoldWeights, Settings
from bench.judges.gold import GoldAnnotator
from bench.judges.self_judge import add_up
from bench.models.tokenize import conversation
from bench.records import (
    Completion,
    Item,
    Labelled,
    Logps,
    Verdict,
    draw_name,
    grouped,
    pair_name,
    read_completions,
    read_items,
    read_logps,
    read_rewards,
    read_verdicts,
    sigmoid,
    write_jsonl,
)
from bench.stages import self_judging_data
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import GoldLabels, RankLabels, SelfLabels
from bench.world.gold import count_words, draw_label, gold
from bench.world.tasks import Turn

Scores = Mapping[str, float]  # by draw_name


def run(settings: Settings, run: StageRun) -> Outcome:
    items = read_items(run.inputs["items"])
    draws = grouped((completion.id, completion) for completion in read_completions(run.inputs["completions"]))
    more: dict[str, int] = {}
    match settings:
        case GoldLabels():
            labels = _by_annotator(settings, items, draws)
        case RankLabels():
            labels = _by_score(settings, items, draws, run)
        case SelfLabels():
            labels, more = _by_itself(settings, items, draws, run)
        case _:
            raise TypeError(f"no label stage for {type(settings).__name__}")
    write_jsonl(run.out / "labels.jsonl", labels)
    judged = [label.correct for label in labels if label.correct is not None]
    unscored = sum(label.unscored is not None for label in labels)
    ties = sum(label.first_preferred is None for label in labels) - unscored
    counts = {
        "rows": len(labels),
        "ties": ties,
        "unscored": unscored,
        "correct": sum(judged),
        "with_truth": len(judged),
    }
    return Outcome(counts | _judge_calls(run) | more)


def _judge_calls(run: StageRun) -> dict[str, int]:
    """Counts of a judge's calls for the labels and of its unscored verdicts."""
    if "verdicts" not in run.inputs:
        return {}
    verdicts = read_verdicts(run.inputs["verdicts"])
    unscored = sum(verdict.unscored is not None for verdict in verdicts)
    return {"asked": sum(len(verdict.calls) for verdict in verdicts), "unscored_verdicts": unscored}


def extremes(draws: Sequence[Completion], scores: Scores) -> tuple[Completion, Completion]:
    """The samples with the highest and the lowest score, in drawing order.

    Of equal scores the first sample counts. If all scores are equal, the first two samples are returned.
    """
    best, worst = (
        max(draws, key=lambda c: scores[draw_name(c)]),
        min(draws, key=lambda c: scores[draw_name(c)]),
    )
    if scores[draw_name(best)] == scores[draw_name(worst)]:
        best, worst = draws[:2]
    return (best, worst) if best.draw < worst.draw else (worst, best)


# By the annotator -------------------------------------------------------------------------------------------


def _by_annotator(
    settings: GoldLabels, items: Sequence[Item], draws: Mapping[str, Sequence[Completion]]
) -> list[Labelled]:
    pairs = [_pair_to_label(settings, item, draws[item.id]) for item in items]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    verdicts = GoldAnnotator(settings.gold, settings.annotator).judge(items, first, second)
    texts = [(c.completions[0], d.completions[0]) for c, d in pairs]
    return [
        _label(item, verdict, *both, settings)
        for item, verdict, both in zip(items, verdicts, texts, strict=True)
    ]


def _pair_to_label(
    settings: GoldLabels, item: Item, draws: Sequence[Completion]
) -> tuple[Completion, Completion]:
    """The pair to label: of more than two samples the best and the worst by the annotator's score."""
    if len(draws) == 2 or item.task is None:
        return draws[0], draws[1]
    turn = Turn.from_json(item.task[0])
    scores = {
        draw_name(c): gold(turn, c.completions[0], settings.gold).total
        + settings.annotator.length_bias * count_words(c.completions[0])
        for c in draws
    }
    return extremes(draws, scores)


def _label(item: Item, verdict: Verdict, first: str, second: str, settings: GoldLabels) -> Labelled:
    """A label drawn from the annotator's preference, and flipped at its flip rate.

    If the annotator has no preference (equal margin), the pair is a tie and has no label.
    """
    rng = random.Random(f"label/{settings.seed}/{item.id}")
    prompt = conversation(item, [])
    if verdict.preference is None or verdict.details is None:
        return Labelled(item.id, prompt, first, second, None, None, unscored=verdict.unscored)
    tie = verdict.preference == 0.5 or first == second
    preferred = None if tie else draw_label(verdict.preference, settings.annotator.flip_rate, rng)
    difference = verdict.details["gold_first"] - verdict.details["gold_second"]
    correct = None if preferred is None or difference == 0 else preferred == (difference > 0)
    return Labelled(item.id, prompt, first, second, verdict.preference, preferred, correct)


# By a score -------------------------------------------------------------------------------------------------


def _by_score(
    settings: RankLabels, items: Sequence[Item], draws: Mapping[str, Sequence[Completion]], run: StageRun
) -> list[Labelled]:
    if settings.labeller == "judge":
        verdicts = {verdict.item_id: verdict for verdict in read_verdicts(run.inputs["verdicts"])}
        return [_by_judge(settings, item, draws[item.id], verdicts) for item in items]
    if settings.labeller == "human":
        return [
            _ranked(settings, item, (item.baseline or [])[0], draws[item.id][0].completions[0], 1.0, 0.0)
            for item in items
        ]
    scores = _scores(settings, [c for item in items for c in draws[item.id]], run)
    if (
        settings.labeller == "tuned_judge"
    ):  # Without a score for questions that were too long or of equal texts.
        return [_of_scored(settings, item, draws[item.id], scores) for item in items]
    return [_between(settings, item, extremes(draws[item.id], scores), scores) for item in items]


def _by_judge(
    settings: RankLabels, item: Item, draws: Sequence[Completion], verdicts: Mapping[str, Verdict]
) -> Labelled:
    values_of: dict[str, list[float]] = {draw_name(draw): [] for draw in draws}
    reasons: list[str] = []
    preferring = False
    for one, other in itertools.combinations(draws, 2):
        if (verdict := verdicts.get(pair_name(one, other))) is not None and verdict.preference is not None:
            values_of[draw_name(one)].append(verdict.preference)
            values_of[draw_name(other)].append(1 - verdict.preference)
            preferring = True
        reasons += [verdict.unscored] if verdict is not None and verdict.unscored else []
    for draw in draws:
        if (verdict := verdicts.get(draw_name(draw))) is not None and verdict.rating is not None:
            values_of[draw_name(draw)].append(verdict.rating)
        reasons += [verdict.unscored] if verdict is not None and verdict.unscored else []
    scores = {name: statistics.fmean(values) for name, values in values_of.items() if values}
    scored = [draw for draw in draws if draw_name(draw) in scores]
    if len(scored) < 2:
        reason = reasons[0] if reasons else "the judge said nothing"
        texts = draws[0].completions[0], draws[1].completions[0]
        return Labelled(
            item.id, conversation(item, []), *texts, p_first=None, first_preferred=None, unscored=reason
        )
    pair = extremes(scored, scores)
    label, (first, second) = (
        _between(settings, item, pair, scores),
        (scores[draw_name(draw)] for draw in pair),
    )
    # For two samples this is the preference itself.
    return replace(label, p_first=0.5 + (first - second) / 2) if preferring else label


def _scores(settings: RankLabels, completions: Sequence[Completion], run: StageRun) -> Scores:
    match settings.labeller:
        case "implicit":
            assert settings.beta is not None
            policy, reference = (read_logps(run.inputs[f"{role}_logps"]) for role in ("policy", "reference"))
            if other := [name for name, row in policy.items() if row.n_tokens != reference[name].n_tokens]:
                counts = f"{policy[other[0]].n_tokens} tokens and {reference[other[0]].n_tokens}"
                raise ValueError(
                    f"The policy and its judging reference tokenise completion {other[0]} differently: {counts}. Use a reference with the "
                    "same tokenizer and chat template."
                )
            return {
                name: settings.beta * (row.logps - reference[name].logps)
                - settings.length_penalty * row.n_tokens
                for name, row in policy.items()
            }
        case "reward_model":
            return read_rewards(run.inputs["rewards"])
        case "tuned_judge":
            return _chosen(read_logps(run.inputs["choice_logps"]))
        case "random":
            return {
                draw_name(c): random.Random(f"label/{settings.seed}/{draw_name(c)}").random()
                for c in completions
            }
        case "shorter":
            return {draw_name(c): -float(count_words(c.completions[0])) for c in completions}
    raise ValueError(f"labeller '{settings.labeller}' has no scores of single samples")


def _chosen(logps: Mapping[str, Logps]) -> Scores:
    """The mean probability of being chosen, over the questions about a sample.

    A question has a log-probability for each of its two replies: the name of the first is the question's.
    """
    won: dict[str, list[float]] = {}
    for name, second in logps.items():
        question, _, draw = name.rpartition("/")
        if draw != "1" or not question.endswith("#0"):
            continue
        p = sigmoid(logps[question].logps - second.logps)
        one, other = question.removesuffix("#0").split(">")
        won.setdefault(one, []).append(p)
        won.setdefault(other, []).append(1 - p)
    return {name: statistics.fmean(values) for name, values in won.items()}


def _between(
    settings: RankLabels | SelfLabels, item: Item, pair: Sequence[Completion], scores: Scores
) -> Labelled:
    first, second = pair
    texts = first.completions[0], second.completions[0]
    return _ranked(settings, item, *texts, scores[draw_name(first)], scores[draw_name(second)])


def _ranked(
    settings: RankLabels | SelfLabels, item: Item, first: str, second: str, score: float, other: float
) -> Labelled:
    """A label for the larger score; equal scores or texts are a tie.

    Only scores that are rewards give a probability between 0 and 1.
    """
    prompt = conversation(item, [])
    preferred = None if score == other or first == second else score > other
    sure = {"implicit": sigmoid(score - other), "reward_model": sigmoid(score - other), "random": 0.5}
    sure["tuned_judge"] = 0.5 + (score - other) / 2  # For two samples this is the probability itself.
    p_first = sure.get(getattr(settings, "labeller", ""), 0.5 if preferred is None else float(preferred))
    return Labelled(
        item.id,
        prompt,
        first,
        second,
        p_first,
        preferred,
        _right(preferred, item, first, second, settings.truth),
    )


def _right(
    preferred: bool | None, item: Item, first: str, second: str, truth: GoldWeights | None
) -> bool | None:
    """Whether a label agrees with the truth.

    None if the label is a tie, if the truth is a tie, or if it is not known.
    """
    if preferred is None or item.task is None or truth is None:
        return None
    turn = Turn.from_json(item.task[0])
    difference = gold(turn, first, truth).total - gold(turn, second, truth).total
    return None if difference == 0 else preferred == (difference > 0)


# By the policy's own judgements -----------------------------------------------------------------------------

TOO_FEW = "fewer than two samples have a score that can be read"


def _by_itself(
    settings: SelfLabels, items: Sequence[Item], draws: Mapping[str, Sequence[Completion]], run: StageRun
) -> tuple[list[Labelled], dict[str, int]]:
    judged = add_up(settings.prompt, self_judging_data.read_replies(run.inputs["replies"]))
    labels = [_of_scored(settings, item, draws[item.id], judged.scores) for item in items]
    return labels, {"judgements": judged.replies, "unparsed": judged.unparsed}


def _of_scored(
    settings: RankLabels | SelfLabels, item: Item, draws: Sequence[Completion], scores: Scores
) -> Labelled:
    """A label from those samples that have a score; with fewer than two the prompt is unscored."""
    scored = [completion for completion in draws if draw_name(completion) in scores]
    if len(scored) > 1:
        return _between(settings, item, extremes(scored, scores), scores)
    texts = [completion.completions[0] for completion in draws]
    # Equal texts get no question about pairs; they are a tie.
    unscored, p_first = (None, 0.5) if len(set(texts)) == 1 else (TOO_FEW, None)
    return Labelled(item.id, conversation(item, []), texts[0], texts[1], p_first, None, unscored=unscored)
