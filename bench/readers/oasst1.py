"""OpenAssistant/oasst1: trees of messages by people, the answers to a message ranked; splits train and validation.

Columns used: message_id, parent_id, text, role (prompter, assistant), lang, deleted, rank (0 is the best, None where not ranked). As
HALOs does, a ranking a, b, c of the answers to one message becomes the pairs (a, b), (b, c), in the wanted languages only. Here only
answers make pairs, and a deleted message takes its answers with it. A rank whose better neighbour is missing gives no pair; nor does an
answer one of whose ancestors is missing or in another language.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bench.config import Oasst1
from bench.preferences import make_pair
from bench.readers.common import Raw, Tally, alternates, drop, each, number, one_of, text
from bench.records import Message, Pair

VERSION = 1
COLUMNS = ("message_id", "parent_id", "text", "role", "lang", "deleted", "rank")
ROLES = {"prompter": "user", "assistant": "assistant"}


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, Oasst1)
    seen: set[str] = set()
    known = {raw.columns["message_id"]: raw for raw in each(raws, tally, lambda raw: _checked(raw, reading, seen))}
    ranked = {(raw.columns["parent_id"], raw.columns["rank"]): raw for raw in known.values() if raw.columns["role"] == "assistant"}
    yield from each(known.values(), tally, lambda raw: _pair(raw, ranked, known))


def _checked(raw: Raw, reading: Oasst1, seen: set[str]) -> Raw:
    one_of(raw.columns, "role", list(ROLES))
    name, _, _ = text(raw.columns, "message_id"), text(raw.columns, "text"), text(raw.columns, "lang")
    if raw.columns["parent_id"] is not None:
        text(raw.columns, "parent_id")
    if raw.columns["rank"] is not None and not number(raw.columns, "rank").is_integer():
        raise ValueError(f"rank must be a whole number, got {raw.columns['rank']}")
    one_of(raw.columns, "deleted", (True, False))
    if name in seen:
        raise ValueError(f"message_id {name[:80]!r} is another row's too")
    seen.add(name)
    if raw.columns["deleted"]:
        raise drop("deleted")
    if raw.columns["lang"] not in reading.languages:
        raise drop("another language")
    return raw


def _pair(worse: Raw, ranked: Mapping[tuple[Any, Any], Raw], known: Mapping[str, Raw]) -> Pair:
    parent, rank = worse.columns["parent_id"], worse.columns["rank"]
    if worse.columns["role"] != "assistant" or not rank:  # the best, rank 0, is in its neighbour's pair
        raise drop("no lower-ranked answer")
    if (better := ranked.get((parent, rank - 1))) is None:
        raise drop("no neighbour in rank")
    prompt: list[Message] = []
    above: set[str] = set()
    while parent is not None:
        if parent in above:
            raise ValueError(f"parent_id leads back to {parent[:80]!r}: a conversation has a beginning")
        above.add(parent)
        if (message := known.get(parent)) is None:
            raise drop("an ancestor is missing")
        prompt.insert(0, {"role": ROLES[message.columns["role"]], "content": message.columns["text"]})
        parent = message.columns["parent_id"]
    if not prompt or not alternates(prompt):
        raise drop("speakers do not take turns")
    return make_pair(worse.id, prompt, better.columns["text"], worse.columns["text"])
