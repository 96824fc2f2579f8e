"""A language model that plays games between two answers, in the manner of Arena-Hard-Auto 2.0 (Li et al. 2024).

Each pair is shown in both orders; a game ends with one of five verdicts, from a strong win of A to a strong win of B. A strong verdict
counts as three battles, any other as one: the preference of an item is the mean outcome of its battles. Rates over all battles and with
style controlled are computed from what a verdict holds (bench/stats/style_control.py): both games, both lengths, both answers' markup.

As in Arena-Hard an item of which one game cannot be read has no verdict; here it stays, unscored and with its text. Deviations: equal
answers are two ties without being asked about; a game without a verdict is not asked to be continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.judges.asked.asked_pairs import AskedPairs, Replies
from bench.judges.asked.prompts import Template, arena_hard_template
from bench.judges.asked.replies import make_call, read_game
from bench.judges.asked.request import Ask, Progress, request_body
from bench.records import Item, Message, Verdict, text_digest
from bench.stats.style_control import battles, game_facts
from bench.store.stage_settings import LanguageJudgeSettings

POLICY_FIRST = (True, False)  # the games of an item


@dataclass(frozen=True)
class AskedGames(AskedPairs):
    template: Template
    name: str = "arena_hard"
    against_baseline: ClassVar = False  # it reads the items'

    def orders(self, item: Item) -> Sequence[bool]:
        return POLICY_FIRST

    def messages(self, item: Item, first: str, second: str) -> Sequence[Message]:
        return self.template.fill({"QUESTION": item.turns[0], "ANSWER_A": first, "ANSWER_B": second})

    def verdict(self, item: Item, ours: str, replies: Replies) -> Verdict:
        if item.baseline is None:
            return Verdict(item.id, self.name, category=item.category, unscored="the item has no baseline completion to compare with")
        theirs = item.baseline[0]
        readings = [read_game(reply) for _, reply in replies]
        about: dict[str, Any] = {
            "category": item.category,
            "policy_length": len(ours),
            "baseline_length": len(theirs),
            "policy_digest": text_digest(ours),
            "baseline_digest": text_digest(theirs),
            "raw": "\n\n".join(reply.text for _, reply in replies) or None,
            "calls": [
                make_call(asked.request, reply, reading, self.template.digest, self.parser, asked.policy_first)
                for (asked, reply), reading in zip(replies, readings, strict=True)
            ],
        }
        if why := next((reading.why for reading in readings if reading.why), None):
            return Verdict(item.id, self.name, unscored=why, **about)
        games = [0.0, 0.0]
        for (asked, _), reading in zip(replies, readings, strict=True):
            margin = float(reading.margin or 0)  # of B
            games[POLICY_FIRST.index(asked.policy_first)] = -margin if asked.policy_first else margin
        return Verdict(item.id, self.name, preference=battles(games)[0], details=game_facts(games, ours, theirs), **about)


def make_judge(settings: LanguageJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> AskedGames:
    model = settings.model or inputs["model"].name
    body = request_body(settings, model, {"temperature": 0.0, "top_p": 1.0, "max_tokens": 16000})
    return AskedGames(body, f"game/{settings.parser}", ask, arena_hard_template(inputs["prompts"]))
