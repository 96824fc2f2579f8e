"""A reward model as a judge: the Bradley-Terry preference (1952) between its rewards for two completions.

preference = σ(R(policy) - R(baseline))

Only the first turn is judged. The two texts are not shown in any order, and judging them again gives the same
preference. Equal texts are a tie. Texts are read whole, without truncation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.judges import text_pairs
from bench.judges.asked.request import Ask, Progress
from bench.models.tokenize import conversation, row_ids
from bench.records import Completion, Item, Message, Verdict, about_texts, sigmoid
from bench.store.stage_settings import RewardJudgeSettings

# (prompt, completion) -> reward, in the model's own units
Rewards = Callable[[Sequence[tuple[Sequence[Message], str]]], Sequence[float]]


@dataclass(frozen=True)
class RewardModelPreference:
    """Judges pairs by the difference of their rewards."""

    rewards: Rewards
    name: str = "reward_model"
    against_baseline: ClassVar = True

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        pairs = list(text_pairs(items, completions, against))
        # Equal texts are scored once, because in different batches they would differ in the last digits.
        texts = list(dict.fromkeys((item.id, text) for item, *both in pairs for text in both))
        prompts = {item.id: conversation(item, []) for item, _, _ in pairs}
        rewards = dict(zip(texts, self.rewards([(prompts[item], text) for item, text in texts]), strict=True))
        for item, mine, other in pairs:
            ours, theirs = rewards[item.id, mine], rewards[item.id, other]
            yield Verdict(
                item.id,
                self.name,
                category=item.category,
                preference=sigmoid(ours - theirs),
                details={"reward": ours, "reward_baseline": theirs},
                **about_texts(mine, other),
            )


def make_judge(
    settings: RewardJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress
) -> RewardModelPreference:
    from bench.engines.reward import Scorer

    scorer = Scorer(inputs["model"], settings.dtype, settings.batch_size)

    def rewards(rows: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        return scorer.rewards(
            [row_ids(scorer.tokenizer, prompt, text, None) for prompt, text in rows], progress
        )

    return RewardModelPreference(rewards)
