"""Conversations for supervised fine-tuning: HuggingFaceH4/ultrachat_200k (train_sft), and TRL's language
modelling format.

Columns of ultrachat_200k: prompt (text, the first message), prompt_id, messages (several turns). A
conversation is cut after its last assistant message. A conversation is dropped and counted if it has no
assistant message or an empty message, or if its speakers do not take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.readers.common import alternates, by_row, drop
from bench.readers.rows import read_messages
from bench.records import Conversation, Message, Text

VERSION = 1
COLUMNS = ("messages",)


def messages_of(value: Any) -> list[Message]:
    """Messages of a conversation, up to its last answer.

    Raises Unusable where nothing can be learned from it, and ValueError for another value.
    """
    messages = read_messages(value, "messages")
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise drop("no answer")
    if not alternates(messages):
        raise drop("speakers do not take turns")
    if any(not message["content"].strip() for message in messages):
        raise drop("empty message")
    return messages


def first_turn(name: str, messages: Sequence[Message]) -> Text:
    """The user's first message, with a system message before it, and the assistant's answer to it."""
    place = next(place for place, message in enumerate(messages) if message["role"] == "assistant")
    return Text(name, list(messages[:place]), messages[place]["content"])


read = by_row(lambda raw: Conversation(raw.id, messages_of(raw.columns["messages"])))
