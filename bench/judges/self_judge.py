"""The policy as its own judge (LLM-as-a-judge): questions, reading of replies, scores, judge quality.

Source: Yuan et al. 2024, arXiv 2401.10020, section 2.1 and appendix A.

additive         one reply per completion: up to five points, one per quality it has, then `Score: n`
criteria         one reply per criterion: 1 or 0. The score is the sum. Models too small to work through a
                 list can still answer one criterion at a time.
multiple_choice  one reply per completion: the letter of one of five descriptions, A is the best
pairwise         one reply per ordered pair of completions: first or second. The score is the share of
                 comparisons won.

Deviation: the prompts are worded here, not copied. In the controlled world bench/world/judging.py words them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.config import JudgePrompt
from bench.judges.asked.thinking import after_thinking
from bench.models.tokenize import conversation
from bench.records import Completion, Item, Message, draw_name, grouped
from bench.stats import estimates
from bench.world import judging
from bench.world.tasks import Turn

MOST_POINTS = 5
LETTERS = "ABCDE"  # The best first.
POINTS = (
    "it is on the topic and gives some information that was asked for, even if incomplete",
    "it deals with a substantial part of what was asked, even if some of it stays open",
    "it gives the user what is basically needed to get on, whoever may have written it",
    "it is clearly an assistant's answer to this user: direct, complete, well organised, helpful in tone",
    "an expert could have written it for this very question, and nothing in it is superfluous",
)
_SHOWN = "A user asked:\n{conversation}\n\n{completions}\n\n"
_ONE, _TWO = "An assistant answered:\n{0}", "First answer:\n{0}\n\nSecond answer:\n{1}"
ADDITIVE = (
    "Judge the answer by adding up points, one for each of these that is true:\n"
    + "\n".join(f"- {point};" for point in POINTS)
    + '\n\nGive your reasons in at most 100 words, then the sum of the points (0 to 5) on a line of its own as "Score: n".'
)
CRITERION = 'Is this true of the answer: {}?\n\nReply with "1" if it is and with "0" if it is not.'
CHOICE = (
    "Which of these describes the answer best?\n"
    "(A) excellent: expert, complete and to the point\n(B) good: helpful and complete, with small flaws\n"
    "(C) fair: useful in its main points, incomplete\n(D) poor: on the topic, of little use\n(E) bad: wrong, off the topic or empty\n\n"
    'Reply with the letter as "Choice: X".'
)
CHOICES = ("Better: first", "Better: second")  # The replies to a pairwise question.
BETTER = 'Which answer is better: more helpful, more accurate and closer to what was asked? Reply with "Better: first" or "Better: second".'


# Questions --------------------------------------------------------------------------------------------------


class JudgeQuestion(NamedTuple):
    """One question to the judge.

    `about`: one completion, or two in the order shown; `criterion`: its index.
    """

    about: tuple[Completion, ...]
    criterion: int
    messages: list[Message]

    @property
    def name(self) -> str:
        return f"{'>'.join(draw_name(completion) for completion in self.about)}#{self.criterion}"


def questions(prompt: JudgePrompt, item: Item, draws: Sequence[Completion]) -> list[JudgeQuestion]:
    """All questions about the completions of one item.

    Pairs come in both orders; pairs of equal texts are skipped.
    """
    if prompt == "pairwise":
        pairs = [(a, b) for a, b in itertools.permutations(draws, 2) if a.completions[0] != b.completions[0]]
        return [
            JudgeQuestion(pair, 0, _question_messages(prompt, item, [c.completions[0] for c in pair])[0])
            for pair in pairs
        ]
    return [
        JudgeQuestion((completion,), place, messages)
        for completion in draws
        for place, messages in enumerate(_question_messages(prompt, item, completion.completions[:1]))
    ]


def _question_messages(prompt: JudgePrompt, item: Item, texts: Sequence[str]) -> list[list[Message]]:
    """The messages of each question about one completion, or about a pair."""
    if item.task is not None:
        turn = Turn.from_json(item.task[0])
        whole = {"additive": judging.TOTAL, "multiple_choice": judging.GRADE, "pairwise": judging.BETTER}
        return (
            judging.criteria(turn, texts[0])
            if prompt == "criteria"
            else [judging.judging_prompt(turn, texts, whole[prompt])]
        )
    whole = {"additive": ADDITIVE, "multiple_choice": CHOICE, "pairwise": BETTER}
    turns = conversation(item, [])
    shown = (
        turns[0]["content"]
        if len(turns) == 1
        else "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in turns)
    )
    completions = (_ONE if len(texts) == 1 else _TWO).format(*texts)
    tasks = [CRITERION.format(point) for point in POINTS] if prompt == "criteria" else [whole[prompt]]
    return [
        [{"role": "user", "content": _SHOWN.format(conversation=shown, completions=completions) + task}]
        for task in tasks
    ]


# Replies ----------------------------------------------------------------------------------------------------

_SCORE = re.compile(r"score\W{1,4}(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5)?(?![\d./])", re.IGNORECASE)
_MARK = re.compile(r"(?:^|[\s:\"'])([01])[\"'.!]*$")
_LETTER = re.compile(r"choice\W{1,4}([A-E])\b", re.IGNORECASE)
_WINNER = re.compile(r"better\W{1,4}(first|second)\b", re.IGNORECASE)


def read_reply(prompt: JudgePrompt, reply: str) -> float | None:
    """The judgement in one reply; None if it cannot be read.

    additive: points from 0 to 5. criteria: 0 or 1. multiple_choice: 5 (A) to 1 (E). pairwise: 1 for the
    first, 0 for the second. The last of several scores counts; one outside 0 to 5 is unreadable. The thinking
    part is ignored.
    """
    text = after_thinking(reply)
    if text is None:
        return None
    match prompt:
        case "additive":
            scores = _SCORE.findall(text)
            return float(scores[-1]) if scores and float(scores[-1]) <= MOST_POINTS else None
        case "criteria":
            mark = _MARK.search(text)
            return float(mark[1]) if mark else None
        case "multiple_choice":
            letter = (
                text.strip("().").upper()
                if len(text) <= 3
                else next(iter(_LETTER.findall(text)[-1:]), "").upper()
            )
            return float(MOST_POINTS - LETTERS.index(letter)) if letter and letter in LETTERS else None
        case "pairwise":
            word = text.strip(".").lower()
            word = word if word in ("first", "second") else next(iter(_WINNER.findall(text)[-1:]), "").lower()
            return None if not word else float(word == "first")


@dataclass(frozen=True)
class SelfJudgements:
    """Scores by draw_name, with counts of the replies behind them. Completions without a score are left out.

    `perfect`: completions with the highest possible score. `histogram`: number of judgements by value, as
    text.
    """

    scores: Mapping[str, float]
    perfect: frozenset[str]
    replies: int
    unparsed: int
    histogram: Mapping[str, int]


def add_up(prompt: JudgePrompt, replies: Iterable[tuple[str, int, str]]) -> SelfJudgements:
    """Scores from replies, each given as (name of the question, draw, text).

    The readable judgements of a question are averaged. A completion has no score if one criterion has no
    readable judgement, or if it has no comparison.
    """
    read: dict[str, dict[int, float | None]] = {}
    for name, draw, text in replies:
        read.setdefault(name, {})[draw] = read_reply(prompt, text)
    values = [value for draws in read.values() for value in draws.values()]
    scores, histogram = _comparison_scores(read) if prompt == "pairwise" else _summed_scores(read)
    n_criteria = {name: float(n) for name, n in Counter(name.rpartition("#")[0] for name in read).items()}
    best = {"pairwise": dict.fromkeys(scores, 1.0), "criteria": n_criteria}.get(prompt)
    perfect = frozenset(
        name for name, score in scores.items() if score == (best[name] if best else MOST_POINTS)
    )
    return SelfJudgements(
        scores, perfect, len(values), sum(value is None for value in values), dict(sorted(histogram.items()))
    )


Read = Mapping[str, Mapping[int, float | None]]  # question -> draw -> value


def _summed_scores(read: Read) -> tuple[dict[str, float], Counter[str]]:
    by_completion = grouped((name.rpartition("#")[0], draws) for name, draws in read.items())
    scores: dict[str, float] = {}
    histogram: Counter[str] = Counter()
    for completion, criteria in by_completion.items():
        means = [estimates.mean_estimate(list(draws.values())) for draws in criteria]
        if all(means):
            scores[completion] = sum(mean.value for mean in means if mean)
        for draw in criteria[0]:
            marks = [draws.get(draw) for draws in criteria]
            if None not in marks:
                histogram[f"{sum(mark for mark in marks if mark is not None):g}"] += 1
    return scores, histogram


def _comparison_scores(read: Read) -> tuple[dict[str, float], Counter[str]]:
    won: dict[str, list[float]] = {}
    histogram: Counter[str] = Counter()
    for name, draws in read.items():
        first, second = name.rpartition("#")[0].split(">")
        for value in draws.values():
            if value is not None:
                won.setdefault(first, []).append(value)
                won.setdefault(second, []).append(1 - value)
                histogram["first" if value else "second"] += 1
    return {name: sum(wins) / len(wins) for name, wins in won.items()}, histogram


# How right a judge is ---------------------------------------------------------------------------------------


class Ranking(NamedTuple):
    """Completions of one prompt: scores (None: unscored), truths, and whether a score is the maximum."""

    scores: list[float | None]
    truths: list[float]
    perfect: list[bool]


def judge_quality(rankings: Sequence[Ranking]) -> Iterator[tuple[str, estimates.Estimate | None]]:
    """The paper's five numbers on held-out rankings (table 4), and the tie rate, over scored completions.

    pair_accuracy  share of pairs of one prompt with different truths that the judge orders correctly; a tie
                   counts one half
    best_accuracy  share of completions with the maximum score that are a best one of their prompt ("5-best")
    exact_match    share of prompts with the whole order correct, ties included
    spearman, kendall   means over prompts with different truths; 0 if the judge gives all the same score (the
                   paper does not say)
    tie_rate       share of pairs with different truths that the judge ties
    """
    from scipy import stats  # Slow to import, and most commands judge nothing.

    measures: dict[str, Callable[..., Any]] = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}
    pairs: dict[str, list[float | None]] = {}
    ties: dict[str, list[float | None]] = {}
    best: list[bool | None] = []
    exact: list[bool | None] = []
    correlations: dict[str, list[float | None]] = {name: [] for name in measures}
    for place, ranking in enumerate(rankings):
        scored = [(s, t, p) for s, t, p in zip(*ranking, strict=True) if s is not None]
        orders = [(_sign(a[0] - b[0]), _sign(a[1] - b[1])) for a, b in itertools.combinations(scored, 2)]
        apart = [(judged, true) for judged, true in orders if true]
        pairs[str(place)] = [0.5 if not judged else float(judged == true) for judged, true in apart]
        ties[str(place)] = [float(not judged) for judged, _ in apart]
        best += [truth == max(ranking.truths) for _, truth, perfect in scored if perfect]
        if apart and len(scored) == len(ranking.scores):
            exact.append(all(judged == true for judged, true in orders))
        if apart:
            scores, truths = [s for s, _, _ in scored], [t for _, t, _ in scored]
            for name, of in measures.items():
                correlations[name].append(
                    0.0 if len(set(scores)) == 1 else float(of(scores, truths).statistic)
                )
    yield "pair_accuracy", estimates.rating_mean(pairs)
    yield "best_accuracy", estimates.accuracy(best)
    yield "exact_match", estimates.accuracy(exact)
    for name, values in correlations.items():
        yield name, estimates.mean_estimate(values)
    yield "tie_rate", estimates.rating_mean(ties)


def _sign(x: float) -> int:
    return int(x > 0) - int(x < 0)
