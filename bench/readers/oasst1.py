"""OpenAssistant/oasst1: trees of messages by people, with the replies to a message ranked; splits train and
validation.

Columns used: message_id, parent_id, text, role (prompter, assistant), lang, deleted, rank (0 is the best,
None where not ranked). A ranking a, b, c of the replies to one message becomes the pairs (a, b), (b, c), as
in HALOs, in the wanted languages only. Here only assistant messages make pairs, and the replies to a deleted
message are dropped with it. A reply gives no pair if the reply ranked just above it is missing, or if one of
its ancestors is missing or in another language.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bench.config import Oasst1
from bench.readers.common import Raw, Tally, alternates, drop, each, number, one_of, text
from bench.readers.rows import make_pair
from bench.records import Message, Pair

VERSION = 1
COLUMNS = ("message_id", "parent_id", "text", "role", "lang", "deleted", "rank")
ROLES = {"prompter": "user", "assistant": "assistant"}


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, Oasst1)
    seen: set[str] = set()
    known = {
        raw.columns["message_id"]: raw for raw in each(raws, tally, lambda raw: _checked(raw, reading, seen))
    }
    ranked = {
        (raw.columns["parent_id"], raw.columns["rank"]): raw
        for raw in known.values()
        if raw.columns["role"] == "assistant"
    }
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
        raise ValueError(f"message_id {name[:80]!r} occurs twice; every row needs its own")
    seen.add(name)
    if raw.columns["deleted"]:
        raise drop("deleted")
    if raw.columns["lang"] not in reading.languages:
        raise drop("another language")
    return raw


def _pair(worse: Raw, ranked: Mapping[tuple[Any, Any], Raw], known: Mapping[str, Raw]) -> Pair:
    parent, rank = worse.columns["parent_id"], worse.columns["rank"]
    if worse.columns["role"] != "assistant" or not rank:  # the best reply, rank 0, is in the next one's pair
        raise drop("no lower-ranked answer")
    if (better := ranked.get((parent, rank - 1))) is None:
        raise drop("no neighbour in rank")
    prompt: list[Message] = []
    above: set[str] = set()
    while parent is not None:
        if parent in above:
            raise ValueError(
                f"parent_id leads in a circle back to {parent[:80]!r}; every conversation needs a first message"
            )
        above.add(parent)
        if (message := known.get(parent)) is None:
            raise drop("an ancestor is missing")
        prompt.insert(0, {"role": ROLES[message.columns["role"]], "content": message.columns["text"]})
        parent = message.columns["parent_id"]
    if not prompt or not alternates(prompt):
        raise drop("speakers do not take turns")
    return make_pair(worse.id, prompt, better.columns["text"], worse.columns["text"])
