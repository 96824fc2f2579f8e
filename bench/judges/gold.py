"""The gold judge: the controlled world's own truth, exact and instant.

gold(x) is the true reward of a completion, from 0 to 10. The judge gives preferences as AlpacaEval 2.0 does, and
ratings as MT-Bench does. `temperature` sets how sharp a preference is; it is not a sampling temperature.

preference = σ((gold(policy) - gold(opponent)) / temperature)        rating = 1 + 0.9 gold, gold in [0, 10]

An empty completion is rated like any other (gold 0). Only an item without a task is unscored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.config import GoldWeights, WorldAnnotator
from bench.judges import text_pairs
from bench.judges.asked.request import Ask, Progress
from bench.records import Completion, Item, Verdict, by_id, sigmoid
from bench.store.stage_settings import GoldPreferenceSettings, GoldRatingSettings
from bench.world.gold import Gold, annotator_prefers, count_words, gold
from bench.world.tasks import Turn

NO_TASK = "the item has no task that the gold judge could read"


@dataclass(frozen=True)
class GoldPreference:
    """P(policy wins) against the opponent, on the first turn."""

    weights: GoldWeights
    temperature: float
    name: str = "gold_preference"
    against_baseline: ClassVar = True

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        for item, mine, other in text_pairs(items, completions, against):
            if item.task is None:
                yield Verdict(item.id, self.name, category=item.category, unscored=NO_TASK)
                continue
            turn = Turn.from_json(item.task[0])
            ours, theirs = gold(turn, mine, self.weights), gold(turn, other, self.weights)
            yield Verdict(
                item.id,
                self.name,
                category=item.category,
                preference=sigmoid((ours.total - theirs.total) / self.temperature),
                policy_length=len(mine),
                baseline_length=len(other),
                details=_details(ours) | {"gold_baseline": theirs.total},
            )


@dataclass(frozen=True)
class GoldRating:
    """A rating of 1 to 10 for each turn."""

    weights: GoldWeights
    name: str = "gold_rating"
    against_baseline: ClassVar = False

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        known = by_id(items)
        for completion in completions:
            item = known[completion.id]
            for number, text in enumerate(completion.completions):
                if item.task is None:
                    yield Verdict(item.id, self.name, number, item.category, unscored=NO_TASK)
                    continue
                score = gold(Turn.from_json(item.task[number]), text, self.weights)
                yield Verdict(
                    item.id,
                    self.name,
                    number,
                    item.category,
                    rating=1 + 0.9 * score.total,
                    policy_length=len(text),
                    details=_details(score),
                )


@dataclass(frozen=True)
class GoldAnnotator:
    """The labeller of the world's pairs: a logistic function of the gold difference plus a length bias.

    See config.WorldAnnotator.
    """

    weights: GoldWeights
    annotator: WorldAnnotator
    name: str = "gold_annotator"

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        for item, *texts in text_pairs(items, completions, against):
            if item.task is None:
                yield Verdict(item.id, self.name, category=item.category, unscored=NO_TASK)
                continue
            turn = Turn.from_json(item.task[0])
            first, second = (gold(turn, text, self.weights).total for text in texts)
            yield Verdict(
                item.id,
                self.name,
                category=item.category,
                preference=annotator_prefers(
                    first, second, count_words(texts[0]), count_words(texts[1]), self.annotator
                ),
                policy_length=len(texts[0]),
                baseline_length=len(texts[1]),
                details={"gold_first": first, "gold_second": second},
            )


def make_judge(
    settings: GoldPreferenceSettings | GoldRatingSettings,
    inputs: Mapping[str, Path],
    ask: Ask,
    progress: Progress,
) -> GoldPreference | GoldRating:
    if isinstance(settings, GoldPreferenceSettings):
        return GoldPreference(settings.gold, settings.temperature)
    return GoldRating(settings.gold)


def _details(score: Gold) -> dict[str, float]:
    parts = {name: getattr(score, name) for name in ("content", "constraints", "conciseness", "fluency")}
    return {"gold": score.total} | parts
