"""A reward model as a judge: the Bradley-Terry preference (1952) of its rewards for the two answers to the first turn.

preference = σ(R(policy) - R(baseline))

A function of the texts: it is shown no order, and says the same again. Equal texts are a tie. Texts are read whole, not cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.judges.asked.request import Ask, Progress
from bench.models.tokenize import conversation, row_ids
from bench.records import Completion, Item, Message, Verdict, text_digest
from bench.store.stage_settings import RewardJudgeSettings

Rewards = Callable[[Sequence[tuple[Sequence[Message], str]]], Sequence[float]]  # of (prompt, completion), in the model's own units


@dataclass(frozen=True)
class RewardModelPreference:
    rewards: Rewards
    name: str = "reward_model"
    against_baseline: ClassVar = True

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        opponents = {completion.id: completion.completions[0] for completion in against or ()}
        by_id = {item.id: item for item in items}
        asked = [(completion.id, text) for completion in completions for text in (completion.completions[0], opponents[completion.id])]
        texts = list(dict.fromkeys(asked))  # equal texts once: in two batches they would differ in their last digits
        prompts = {item: conversation(by_id[item], []) for item, _ in texts}
        rewards = dict(zip(texts, self.rewards([(prompts[item], text) for item, text in texts]), strict=True))
        for completion in completions:
            mine, other = completion.completions[0], opponents[completion.id]
            ours, theirs = rewards[completion.id, mine], rewards[completion.id, other]
            yield Verdict(
                completion.id,
                self.name,
                category=by_id[completion.id].category,
                preference=_logistic(ours - theirs),
                policy_length=len(mine),
                baseline_length=len(other),
                policy_digest=text_digest(mine),
                baseline_digest=text_digest(other),
                details={"reward": ours, "reward_baseline": theirs},
            )


def make_judge(
    settings: RewardJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress
) -> RewardModelPreference:
    from bench.engines.reward import Scorer

    scorer = Scorer(inputs["model"], settings.dtype, settings.batch_size)

    def rewards(rows: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        return scorer.rewards([row_ids(scorer.tokenizer, prompt, text, None) for prompt, text in rows], progress)

    return RewardModelPreference(rewards)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
