"""What judges share that are shown two answers to an item: what they are asked, and which replies are about which item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.judges.asked.request import Ask, Reply, Request
from bench.records import Completion, Item, Message, Verdict


@dataclass(frozen=True)
class Shown:
    """One request about an item: which answer stands first."""

    item_id: str
    policy_first: bool
    request: Request


Replies = Sequence[tuple[Shown, Reply]]


@dataclass(frozen=True)
class AskedPairs(ABC):
    """`body` is what a request holds beside its messages; `parser` names what reads the replies, with its version."""

    body: dict[str, Any]
    parser: str
    ask: Ask

    @abstractmethod
    def orders(self, item: Item) -> Sequence[bool]:
        """Whether the policy's answer stands first, of each time that the pair is shown."""

    @abstractmethod
    def messages(self, item: Item, first: str, second: str) -> Sequence[Message]:
        """What is asked about two answers."""

    @abstractmethod
    def verdict(self, item: Item, ours: str, replies: Replies) -> Verdict:
        """What the replies about an item say; there are none about equal answers, nor where the item has no baseline."""

    def requests(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[Shown]:
        """What has to be asked: nothing about equal answers."""
        by_id = {item.id: item for item in items}
        shown = []
        for completion in completions:
            item, ours = by_id[completion.id], completion.completions[0]
            if item.baseline is None or ours == (theirs := item.baseline[0]):
                continue
            for policy_first in self.orders(item):
                answers = (ours, theirs) if policy_first else (theirs, ours)
                shown.append(Shown(item.id, policy_first, Request(self.messages(item, *answers), self.body)))
        return shown

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        shown = self.requests(items, completions)
        replies: dict[str, list[tuple[Shown, Reply]]] = {}
        for asked, reply in zip(shown, self.ask([asked.request for asked in shown]), strict=True):
            replies.setdefault(asked.item_id, []).append((asked, reply))
        by_id = {item.id: item for item in items}
        for completion in completions:
            yield self.verdict(by_id[completion.id], completion.completions[0], replies.get(completion.id, []))
