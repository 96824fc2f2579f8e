"""The base of judges that ask a language model: matches requests and replies to turns of items."""

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
    """One request about a turn of an item.

    `policy_first`: the policy's completion is shown first; None without an opponent.
    """

    item_id: str
    turn: int
    policy_first: bool | None
    prompt_digest: str
    request: Request


Replies = Sequence[tuple[ShownRequest, Reply]]


@dataclass(frozen=True)
class AskingJudge(ABC):
    """A judge that asks a language model.

    `body`: every field of a request except its messages. `parser`: name and version of the code that reads
    replies.
    """

    body: dict[str, Any]
    parser: str
    ask: Ask
    most_turns: ClassVar[int] = 1

    @abstractmethod
    def turn_requests(self, item: Item, ours: Sequence[str], turn: int) -> Iterable[ShownRequest]:
        """The requests about a turn.

        There are none for equal completions, nor for an item without a needed baseline.
        """

    @abstractmethod
    def verdict(self, item: Item, ours: Sequence[str], turn: int, replies: Replies) -> Verdict:
        """The verdict from the replies about a turn."""

    def _turns(
        self, items: Sequence[Item], completions: Sequence[Completion]
    ) -> Iterator[tuple[Item, Sequence[str], int]]:
        known = by_id(items)
        for completion in completions:
            for turn in range(min(self.most_turns, len(completion.completions))):
                yield known[completion.id], completion.completions, turn

    def requests(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[ShownRequest]:
        """All requests of the judge, in order."""
        return [shown for turn in self._turns(items, completions) for shown in self.turn_requests(*turn)]

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        requests = self.requests(items, completions)
        answered = zip(requests, self.ask([shown.request for shown in requests]), strict=True)
        replies = grouped(((shown.item_id, shown.turn), (shown, reply)) for shown, reply in answered)
        for item, ours, turn in self._turns(items, completions):
            yield self.verdict(item, ours, turn, replies.get((item.id, turn), []))

    def make_request(
        self, item: Item, turn: int, policy_first: bool | None, messages: Sequence[Message], digest: str
    ) -> ShownRequest:
        return ShownRequest(item.id, turn, policy_first, digest, Request(messages, self.body))

    def calls(self, replies: Replies, readings: Sequence[Reading]) -> list[Call]:
        return [
            make_call(shown.request, reply, reading, shown.prompt_digest, self.parser, shown.policy_first)
            for (shown, reply), reading in zip(replies, readings, strict=True)
        ]
