"""Conversations for supervised fine-tuning: HuggingFaceH4/ultrachat_200k (train_sft), and TRL's language
modelling format.

Columns of ultrachat_200k: prompt (text, the first message), prompt_id, messages (several turns). A
conversation is cut after its last assistant message. A conversation is dropped and counted if it has no
assistant message or an empty message, or if its speakers do not take turns.
"""

from __future__ import annotations

from bench.readers.common import Raw, alternates, by_row, drop
from bench.readers.rows import read_messages
from bench.records import Conversation

VERSION = 1
COLUMNS = ("messages",)


def _conversation(raw: Raw) -> Conversation:
    messages = read_messages(raw.columns["messages"], "messages")
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise drop("no answer")
    if not alternates(messages):
        raise drop("speakers do not take turns")
    if any(not message["content"].strip() for message in messages):
        raise drop("empty message")
    return Conversation(raw.id, messages)


read = by_row(_conversation)
