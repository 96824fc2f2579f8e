"""A language model prefers one of two completions, asked as in AlpacaEval 2.0 (package alpaca-eval).

preference = P(policy's completion), as the annotator's parser reads it

The package's rule for the order: the opponent's completion is output 1 and the policy's is output 2. A random
choice, seeded by the instruction, may exchange them. Equal completions are a tie, and no request is sent.

Deliberate deviations: an unreadable vote is kept, unscored and with its text; a text in a completion that looks
like a placeholder is not filled in; with order=both each pair is shown in both orders and the two preferences are
averaged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.judges.asked.asking_judge import NO_BASELINE, AskingJudge, Replies, ShownRequest
from bench.judges.asked.prompts import PackageAnnotator, annotator
from bench.judges.asked.replies import read_preference
from bench.judges.asked.request import Ask, Progress, request_body
from bench.records import Item, Verdict, about_texts
from bench.store.stage_settings import LanguageJudgeSettings


def policy_first(instruction: str) -> bool:
    """Whether AlpacaEval shows the policy's completion first: drawn from the instruction alone, seed 0."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


@dataclass(frozen=True)
class AskedPreference(AskingJudge):
    """Judges pairs with an annotator of the alpaca-eval package."""

    annotator: PackageAnnotator
    order: str
    name: str = "alpaca_eval"
    against_baseline: ClassVar = False  # It reads the baselines from the items.

    def turn_requests(self, item: Item, ours: Sequence[str], turn: int) -> Iterator[ShownRequest]:
        if item.baseline is None or ours[0] == item.baseline[0]:
            return
        instruction = item.question
        for first in (False, True) if self.order == "both" else (policy_first(instruction),):
            one, two = (ours[0], item.baseline[0]) if first else (item.baseline[0], ours[0])
            messages = self.annotator.template.fill(
                {"instruction": instruction, "output_1": one, "output_2": two}
            )
            yield self.make_request(item, turn, first, messages, self.annotator.digest)

    def verdict(self, item: Item, ours: Sequence[str], turn: int, replies: Replies) -> Verdict:
        about = about_texts(ours[0], item.baseline[0] if item.baseline else None) | {
            "category": item.category
        }
        if not item.baseline:
            return Verdict(item.id, self.name, unscored=NO_BASELINE, **about)
        if not replies:
            return Verdict(item.id, self.name, preference=0.5, **about)
        readings = [
            read_preference(reply, self.annotator.parser, self.annotator.parser_kwargs)
            for _, reply in replies
        ]
        calls = self.calls(replies, readings)
        about |= {"calls": calls, "raw": "\n\n".join(reply.text for _, reply in replies)}
        preferences = [call.preference for call in calls if call.preference is not None]
        if len(preferences) < len(replies):
            why = next(reading.why for reading in readings if reading.why)
            return Verdict(item.id, self.name, unscored=why, **about)
        if any(reading.from_text for reading in readings):
            about["details"] = {"from_text": float(sum(reading.from_text for reading in readings))}
        return Verdict(
            item.id, self.name, preference=min(1.0, max(0.0, sum(preferences) / len(preferences))), **about
        )


def make_judge(
    settings: LanguageJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress
) -> AskedPreference:
    model = settings.model or inputs["model"].name
    config = annotator(settings.annotator)
    body = request_body(settings, model, config.decoding)
    return AskedPreference(body, f"{config.parser}/{settings.parser}", ask, config, settings.mode)
