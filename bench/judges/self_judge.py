"""A model that judges by writing (LLM-as-a-judge, Yuan et al. 2024, arXiv 2401.10020, section 2.1 and appendix A): what it is asked, how
its replies are read, what they add up to, and how right that is.

additive         one reply a completion: up to five points, one for each thing that it does well, then `Score: n`
criteria         one reply a criterion: 1 or 0. The score is the sum; a model too small to go through a list can do this
multiple_choice  one reply a completion: the letter of one of five descriptions, A the best
pairwise         one reply an ordered pair of completions: first or second. The score is the share of comparisons won

The words are ours. In the controlled world the questions are those of bench/world/judging.py.
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
LETTERS = "ABCDE"  # from the best
POINTS = (
    "it is on the topic and gives some information that was asked for, even if incomplete",
    "it deals with a substantial part of what was asked, even if some of it stays open",
    "it gives the user what is basically needed to get on, whoever may have written it",
    "it is clearly an assistant's answer to this user: direct, complete, well organised, helpful in tone",
    "an expert could have written it for this very question, and nothing in it is superfluous",
)
_SHOWN = "A user asked:\n{asked}\n\n{answers}\n\n"
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
BETTER = 'Which answer is better: more helpful, more accurate and closer to what was asked? Reply with "Better: first" or "Better: second".'


# Questions ------------------------------------------------------------------------------------------------------------


class JudgeQuestion(NamedTuple):
    """One thing that the judge is asked. `about`: which completion, or which two, as they are shown; `criterion`: its place."""

    about: tuple[Completion, ...]
    criterion: int
    messages: list[Message]

    @property
    def name(self) -> str:
        return f"{'>'.join(draw_name(completion) for completion in self.about)}#{self.criterion}"


def questions(prompt: JudgePrompt, item: Item, draws: Sequence[Completion]) -> list[JudgeQuestion]:
    """Everything that is asked about the completions of one item; pairs in both orders, equal texts not held against each other."""
    if prompt == "pairwise":
        pairs = [(a, b) for a, b in itertools.permutations(draws, 2) if a.completions[0] != b.completions[0]]
        return [JudgeQuestion(pair, 0, _asked(prompt, item, [c.completions[0] for c in pair])[0]) for pair in pairs]
    return [
        JudgeQuestion((completion,), place, messages)
        for completion in draws
        for place, messages in enumerate(_asked(prompt, item, completion.completions[:1]))
    ]


def _asked(prompt: JudgePrompt, item: Item, texts: Sequence[str]) -> list[list[Message]]:
    if item.task is not None:
        turn = Turn.from_json(item.task[0])
        whole = {"additive": judging.TOTAL, "multiple_choice": judging.GRADE, "pairwise": judging.BETTER}
        return judging.criteria(turn, texts[0]) if prompt == "criteria" else [judging.judging_prompt(turn, texts, whole[prompt])]
    whole = {"additive": ADDITIVE, "multiple_choice": CHOICE, "pairwise": BETTER}
    said = conversation(item, [])
    asked = said[0]["content"] if len(said) == 1 else "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in said)
    answers = (_ONE if len(texts) == 1 else _TWO).format(*texts)
    wanted = [CRITERION.format(point) for point in POINTS] if prompt == "criteria" else [whole[prompt]]
    return [[{"role": "user", "content": _SHOWN.format(asked=asked, answers=answers) + what}] for what in wanted]


# Replies --------------------------------------------------------------------------------------------------------------

_SCORE = re.compile(r"score\W{1,4}(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5)?(?![\d./])", re.IGNORECASE)
_MARK = re.compile(r"(?:^|[\s:\"'])([01])[\"'.!]*$")
_LETTER = re.compile(r"choice\W{1,4}([A-E])\b", re.IGNORECASE)
_WINNER = re.compile(r"better\W{1,4}(first|second)\b", re.IGNORECASE)


def read_reply(prompt: JudgePrompt, reply: str) -> float | None:
    """What one reply says; None where it cannot be read. Points, a mark, 5 (A) to 1 (E), or 1 and 0 for the first and the second.

    The last of several scores counts; one outside 0 to 5 is none. What the model thinks before it answers is no judgement.
    """
    text = after_thinking(reply)
    if text is None:
        return None
    match prompt:
        case "additive":
            found = _SCORE.findall(text)
            return float(found[-1]) if found and float(found[-1]) <= MOST_POINTS else None
        case "criteria":
            mark = _MARK.search(text)
            return float(mark[1]) if mark else None
        case "multiple_choice":
            letter = text.strip("().").upper() if len(text) <= 3 else next(iter(_LETTER.findall(text)[-1:]), "").upper()
            return float(MOST_POINTS - LETTERS.index(letter)) if letter and letter in LETTERS else None
        case "pairwise":
            word = text.strip(".").lower()
            word = word if word in ("first", "second") else next(iter(_WINNER.findall(text)[-1:]), "").lower()
            return None if not word else float(word == "first")


@dataclass(frozen=True)
class SelfJudgements:
    """Scores by draw_name, of those that have one, and what was read.

    `perfect`: those that have the highest score there is. `histogram`: single judgements by value, as text.
    """

    scores: Mapping[str, float]
    perfect: frozenset[str]
    replies: int
    unparsed: int
    histogram: Mapping[str, int]


def add_up(prompt: JudgePrompt, replies: Iterable[tuple[str, int, str]]) -> SelfJudgements:
    """From (name of the question, draw, text). Judgements of a question are averaged over those that can be read; one criterion without
    any, or no comparison, and there is no score."""
    read: dict[str, dict[int, float | None]] = {}
    for name, draw, text in replies:
        read.setdefault(name, {})[draw] = read_reply(prompt, text)
    values = [value for draws in read.values() for value in draws.values()]
    scores, histogram = _compared(read) if prompt == "pairwise" else _summed(read)
    n_criteria = {name: float(n) for name, n in Counter(name.rpartition("#")[0] for name in read).items()}
    best = {"pairwise": dict.fromkeys(scores, 1.0), "criteria": n_criteria}.get(prompt)
    perfect = frozenset(name for name, score in scores.items() if score == (best[name] if best else MOST_POINTS))
    return SelfJudgements(scores, perfect, len(values), sum(value is None for value in values), dict(sorted(histogram.items())))


Read = Mapping[str, Mapping[int, float | None]]  # question -> draw -> value


def _summed(read: Read) -> tuple[dict[str, float], Counter[str]]:
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


def _compared(read: Read) -> tuple[dict[str, float], Counter[str]]:
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


# How right a judge is -------------------------------------------------------------------------------------------------


class Ranking(NamedTuple):
    """Completions of one prompt: what the judge gives each (None: unscored), what is true, whether the score is the highest there is."""

    scores: list[float | None]
    truths: list[float]
    perfect: list[bool]


def judge_quality(rankings: Sequence[Ranking]) -> Iterator[tuple[str, estimates.Estimate | None]]:
    """The paper's five numbers on held-out rankings (table 4), each over what was scored.

    pair_accuracy  pairs of one prompt that differ in truth and that the judge orders so; its tie counts a half
    best_accuracy  completions with the highest score there is that are a best one of their prompt ("5-best")
    exact_match    prompts whose whole order agrees, ties with ties
    spearman, kendall   means over prompts whose truths differ; 0 for a judge that gives all the same (the paper does not say)
    tie_rate       pairs that differ in truth and that the judge does not tell apart
    """
    from scipy import stats  # slow to import, and most commands judge nothing

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
                correlations[name].append(0.0 if len(set(scores)) == 1 else float(of(scores, truths).statistic))
    yield "pair_accuracy", estimates.rating_mean(pairs)
    yield "best_accuracy", estimates.accuracy(best)
    yield "exact_match", estimates.accuracy(exact)
    for name, values in correlations.items():
        yield name, estimates.mean_estimate(values)
    yield "tie_rate", estimates.rating_mean(ties)


def _sign(x: float) -> int:
    return int(x > 0) - int(x < 0)
