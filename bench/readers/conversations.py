"""Conversations for supervised fine-tuning: HuggingFaceH4/ultrachat_200k (train_sft), and TRL's language
modelling format; and Alpaca's instructions.

Columns of ultrachat_200k: prompt (text, the first message), prompt_id, messages (several turns). A
conversation is cut after its last assistant message. A conversation is dropped and counted if it has no
assistant message or an empty message, or if its speakers do not take turns. Columns of Alpaca's form, all text: instruction, input
(may be empty, and follows the instruction on a new line), output.
"""

from __future__ import annotations

from bench.readers.common import Raw, alternates, by_row, drop, text, user
from bench.readers.rows import read_messages
from bench.records import Conversation
from bench.text_files import printable

VERSION = 1
COLUMNS = ()
EXPECTED = "expected columns messages, or instruction, input and output"


def _conversation(raw: Raw) -> Conversation:
    columns = raw.columns
    if "messages" in columns:
        messages = read_messages(columns["messages"], "messages")
    elif {"instruction", "output"} <= columns.keys():
        parts = [text(columns, "instruction"), text(columns, "input") if columns.get("input") else ""]
        messages = [
            user("\n".join(filter(None, parts))),
            {"role": "assistant", "content": text(columns, "output")},
        ]
    else:
        raise ValueError(f"{EXPECTED}, got {printable(', '.join(map(str, columns)))[:200]}")
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
