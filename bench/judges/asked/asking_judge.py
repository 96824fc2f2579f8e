"""What judges share that ask a language model about items: what they are asked, and which replies are about which turn of an item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.judges.asked.replies import Reading, make_call
from bench.judges.asked.request import Ask, Reply, Request
from bench.records import Call, Completion, Item, Message, Verdict, by_id, grouped

NO_BASELINE = "the item has no baseline completion to compare with"


@dataclass(frozen=True)
class ShownRequest:
    """One request about a turn of an item. `policy_first`: which answer stands first; None where there is no opponent."""

    item_id: str
    turn: int
    policy_first: bool | None
    prompt_digest: str
    request: Request


Replies = Sequence[tuple[ShownRequest, Reply]]


@dataclass(frozen=True)
class AskingJudge(ABC):
    """`body` is what a request holds beside its messages; `parser` names what reads the replies, with its version."""

    body: dict[str, Any]
    parser: str
    ask: Ask
    most_turns: ClassVar[int] = 1

    @abstractmethod
    def show(self, item: Item, ours: Sequence[str], turn: int) -> Iterable[ShownRequest]:
        """What is asked about a turn: nothing about equal answers, nor where a baseline is needed and the item has none."""

    @abstractmethod
    def verdict(self, item: Item, ours: Sequence[str], turn: int, replies: Replies) -> Verdict:
        """What the replies about a turn say."""

    def _turns(self, items: Sequence[Item], completions: Sequence[Completion]) -> Iterator[tuple[Item, Sequence[str], int]]:
        known = by_id(items)
        for completion in completions:
            for turn in range(min(self.most_turns, len(completion.completions))):
                yield known[completion.id], completion.completions, turn

    def requests(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[ShownRequest]:
        """What has to be asked."""
        return [shown for turn in self._turns(items, completions) for shown in self.show(*turn)]

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        shown = self.requests(items, completions)
        asked = zip(shown, self.ask([one.request for one in shown]), strict=True)
        replies = grouped(((one.item_id, one.turn), (one, reply)) for one, reply in asked)
        for item, ours, turn in self._turns(items, completions):
            yield self.verdict(item, ours, turn, replies.get((item.id, turn), []))

    def shown(self, item: Item, turn: int, policy_first: bool | None, messages: Sequence[Message], digest: str) -> ShownRequest:
        return ShownRequest(item.id, turn, policy_first, digest, Request(messages, self.body))

    def calls(self, replies: Replies, readings: Sequence[Reading]) -> list[Call]:
        return [
            make_call(asked.request, reply, reading, asked.prompt_digest, self.parser, asked.policy_first)
            for (asked, reply), reading in zip(replies, readings, strict=True)
        ]
