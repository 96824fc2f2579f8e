"""Conversations for supervised fine-tuning: HuggingFaceH4/ultrachat_200k (train_sft), and TRL's language
modelling format; and Alpaca's instructions.

Columns of ultrachat_200k: prompt (text, the first message), prompt_id, messages (several turns). A
conversation is cut after its last assistant message. A conversation is dropped and counted if it has no
assistant message or an empty message, or if its speakers do not take turns. Columns of Alpaca's form, all text: instruction, input
(may be empty, and follows the instruction on a new line), output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.readers.common import Raw, alternates, by_row, drop, text, user
from bench.readers.rows import read_messages
from bench.records import Conversation, Message, Text
from bench.text_files import printable

VERSION = 1
COLUMNS = ()
EXPECTED = "expected columns messages, or instruction, input and output"


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


def _conversation(raw: Raw) -> Conversation:
    columns: Any = raw.columns
    if "messages" in columns:
        return Conversation(raw.id, messages_of(columns["messages"]))
    if not {"instruction", "output"} <= columns.keys():
        raise ValueError(f"{EXPECTED}, got {printable(', '.join(map(str, columns)))[:200]}")
    parts = [text(columns, "instruction"), text(columns, "input") if columns.get("input") else ""]
    answer = {"role": "assistant", "content": text(columns, "output")}
    return Conversation(raw.id, messages_of([user("\n".join(filter(None, parts))), answer]))


read = by_row(_conversation)
