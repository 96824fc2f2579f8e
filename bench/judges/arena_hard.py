"""A language model that plays games between two answers, in the manner of Arena-Hard-Auto 2.0 (Li et al. 2024).

Each pair is shown in both orders; a game ends with one of five verdicts, from a strong win of A to a strong win of B. A strong verdict
counts as three battles, any other as one: the preference of an item is the mean outcome of its battles. Rates over all battles and with
style controlled are computed from what a verdict holds (bench/style_control.py): both games, both lengths, both answers' markup.

As in Arena-Hard an item of which one game cannot be read has no verdict; here it stays, unscored and with its text. Deviations: equal
answers are two ties without being asked about; a game without a verdict is not asked to be continued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.judges.asking import Ask, Reply, Request
from bench.judges.prompts import Template
from bench.judges.replies import make_call, read_game
from bench.records import Completion, Item, Verdict, text_digest
from bench.style_control import battles, game_facts

POLICY_FIRST = (True, False)  # the games of an item


@dataclass(frozen=True)
class Shown:
    """One request about an item: which answer is A."""

    item_id: str
    policy_first: bool
    request: Request


@dataclass(frozen=True)
class AskedGames:
    """`body` is what a request holds beside its messages; `parser` names what reads the replies, with its version."""

    template: Template
    body: dict[str, Any]
    parser: str
    ask: Ask
    name: str = "arena_hard"

    def requests(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[Shown]:
        """What has to be asked: nothing about equal answers."""
        by_id = {item.id: item for item in items}
        shown = []
        for completion in completions:
            item = by_id[completion.id]
            if item.baseline is None or completion.completions[0] == item.baseline[0]:
                continue
            for first in POLICY_FIRST:
                ours, theirs = completion.completions[0], item.baseline[0]
                answers = (ours, theirs) if first else (theirs, ours)
                texts = {"QUESTION": item.turns[0], "ANSWER_A": answers[0], "ANSWER_B": answers[1]}
                shown.append(Shown(item.id, first, Request(self.template.fill(texts), self.body)))
        return shown

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        shown = self.requests(items, completions)
        replies: dict[str, list[tuple[Shown, Reply]]] = {}
        for asked, reply in zip(shown, self.ask([asked.request for asked in shown]), strict=True):
            replies.setdefault(asked.item_id, []).append((asked, reply))
        by_id = {item.id: item for item in items}
        for completion in completions:
            yield self._verdict(by_id[completion.id], completion.completions[0], replies.get(completion.id, []))

    def _verdict(self, item: Item, ours: str, replies: Sequence[tuple[Shown, Reply]]) -> Verdict:
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
