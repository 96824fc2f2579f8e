"""A language model compares two completions in games, as in Arena-Hard-Auto 2.0 (Li et al. 2024).

Each pair is shown in both orders, one game per order. A game ends with one of five verdicts, from a strong
win of A to a strong win of B. A strong verdict counts as three battles, any other as one. An item's
preference is the mean outcome of its battles. Each verdict stores both games, both lengths and both
completions' markup; bench/stats/style_control.py computes the win rates over all battles, plain and with
style controlled.

As in Arena-Hard, an item has no verdict if one of its games cannot be read. Deviations: such an item is kept,
unscored and with the reply's text; equal completions are two ties and no request is sent; a game without a
verdict is not continued with a second request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.judges.asked.asking_judge import NO_BASELINE, AskingJudge, Replies, ShownRequest
from bench.judges.asked.prompts import PromptTemplate, arena_hard_template
from bench.judges.asked.replies import read_game
from bench.judges.asked.request import Ask, Progress, request_body
from bench.records import Item, Verdict, about_texts
from bench.stats.style_control import battles, game_facts
from bench.store.stage_settings import LanguageJudgeSettings

POLICY_FIRST = (True, False)  # The two games of an item.


@dataclass(frozen=True)
class AskedGames(AskingJudge):
    """Judges each pair in two games."""

    template: PromptTemplate
    name: str = "arena_hard"
    against_baseline: ClassVar = False  # It reads the baselines from the items.

    def turn_requests(self, item: Item, ours: Sequence[str], turn: int) -> Iterator[ShownRequest]:
        if item.baseline is None or ours[0] == item.baseline[0]:
            return
        for first in POLICY_FIRST:
            a, b = (ours[0], item.baseline[0]) if first else (item.baseline[0], ours[0])
            messages = self.template.fill({"QUESTION": item.question, "ANSWER_A": a, "ANSWER_B": b})
            yield self.make_request(item, turn, first, messages, self.template.digest)

    def verdict(self, item: Item, ours: Sequence[str], turn: int, replies: Replies) -> Verdict:
        if item.baseline is None:
            return Verdict(item.id, self.name, category=item.category, unscored=NO_BASELINE)
        mine, theirs = ours[0], item.baseline[0]
        readings = [read_game(reply) for _, reply in replies]
        about = about_texts(mine, theirs) | {
            "category": item.category,
            "raw": "\n\n".join(reply.text for _, reply in replies) or None,
            "calls": self.calls(replies, readings),
        }
        if why := next((reading.why for reading in readings if reading.why), None):
            return Verdict(item.id, self.name, unscored=why, **about)
        games = [0.0, 0.0]
        for (shown, _), reading in zip(replies, readings, strict=True):
            assert reading.margin is not None  # A reading without a reason has one; it is B's.
            margin = float(reading.margin)
            games[POLICY_FIRST.index(shown.policy_first is True)] = -margin if shown.policy_first else margin
        return Verdict(
            item.id, self.name, preference=battles(games)[0], details=game_facts(games, mine, theirs), **about
        )


def make_judge(
    settings: LanguageJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress
) -> AskedGames:
    model = settings.model or inputs["model"].name
    body = request_body(settings, model, {"temperature": 0.0, "top_p": 1.0, "max_tokens": 16000})
    return AskedGames(body, f"game/{settings.parser}", ask, arena_hard_template(inputs["prompts"]))
