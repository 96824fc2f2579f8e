"""A language model that prefers one of two answers, asked as an annotator of the alpaca-eval package asks (AlpacaEval 2.0).

The opponent is the first output and the policy the second, unless the item's instruction draws the other order: the package's rule.
preference = P(policy's answer) as the annotator's parser reads it. Equal answers are a tie and are not asked about.

Deviations, on purpose: a vote that cannot be read stays, unscored and with its text; answers are never read as template; with
order=both each pair is asked in both orders and the two are averaged.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.judges.asked.asked_pairs import AskedPairs, Replies, Shown
from bench.judges.asked.prompts import Annotator, annotator
from bench.judges.asked.replies import Reading, make_call, read_preference
from bench.judges.asked.request import Ask, Progress, Reply, request_body
from bench.records import Call, Item, Message, Verdict, text_digest
from bench.store.stage_settings import LanguageJudgeSettings


def policy_first(instruction: str) -> bool:
    """Whether AlpacaEval shows the policy's answer first: drawn from the instruction alone, seed 0."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


@dataclass(frozen=True)
class AskedPreference(AskedPairs):
    annotator: Annotator
    order: str
    name: str = "alpaca_eval"
    against_baseline: ClassVar = False  # it reads the items'

    def orders(self, item: Item) -> Sequence[bool]:
        return (False, True) if self.order == "both" else (policy_first(item.turns[0]),)

    def messages(self, item: Item, first: str, second: str) -> Sequence[Message]:
        return self.annotator.template.fill({"instruction": item.turns[0], "output_1": first, "output_2": second})

    def verdict(self, item: Item, ours: str, replies: Replies) -> Verdict:
        theirs = item.baseline[0] if item.baseline else None
        about: dict[str, Any] = {
            "category": item.category,
            "policy_length": len(ours),
            "baseline_length": None if theirs is None else len(theirs),
            "policy_digest": text_digest(ours),
            "baseline_digest": None if theirs is None else text_digest(theirs),
        }
        if theirs is None:
            return Verdict(item.id, self.name, unscored="the item has no baseline completion to compare with", **about)
        if not replies:
            return Verdict(item.id, self.name, preference=0.5, **about)
        readings = [read_preference(reply, self.annotator.parser, self.annotator.parser_kwargs) for _, reply in replies]
        about["calls"] = [self._call(asked, reply, reading) for (asked, reply), reading in zip(replies, readings, strict=True)]
        about["raw"] = "\n\n".join(reply.text for _, reply in replies)
        found = [call.preference for call in about["calls"] if call.preference is not None]
        if len(found) < len(replies):
            why = next(reading.why for reading in readings if reading.why)
            return Verdict(item.id, self.name, unscored=why, **about)
        if any(reading.from_text for reading in readings):
            about["details"] = {"from_text": float(sum(reading.from_text for reading in readings))}
        return Verdict(item.id, self.name, preference=min(1.0, max(0.0, sum(found) / len(found))), **about)

    def _call(self, asked: Shown, reply: Reply, reading: Reading) -> Call:
        return make_call(asked.request, reply, reading, self.annotator.digest, self.parser, asked.policy_first)


def make_judge(settings: LanguageJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> AskedPreference:
    model = settings.model or inputs["model"].name
    found = annotator(settings.annotator)
    body = request_body(settings, model, found.decoding)
    return AskedPreference(body, f"{found.parser}/{settings.parser}", ask, found, settings.mode)
