r"""Anthropic/hh-rlhf, the four folders of preference data (harmless-base, helpful-base, helpful-online,
helpful-rejection-sampled).

Columns, both text: chosen, rejected. They are transcripts "\n\nHuman: ...\n\nAssistant: ..." that share
everything except the last completion. A row is dropped and counted in three cases: the transcripts differ
earlier (HALOs and DPO's code cut them all the same, and train on completions of another prompt); they do not
end in a completion; or the speakers do not take turns, which chat templates refuse. Texts are stripped: HH
has spaces before line breaks, and these change the tokens. red-team-attempts is another kind of data with
other columns.
"""

from __future__ import annotations

import re

from bench.readers.common import Raw, alternates, by_row, drop, text
from bench.readers.rows import make_pair
from bench.records import Message, Pair

VERSION = 1
COLUMNS = ("chosen", "rejected")
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def _pair(raw: Raw) -> Pair:
    chosen, rejected = (turns(text(raw.columns, name)) for name in COLUMNS)
    if (
        not chosen
        or not rejected
        or any(messages[-1]["role"] != "assistant" for messages in (chosen, rejected))
    ):
        raise drop("no answer at the end")
    if chosen[:-1] != rejected[:-1]:
        raise drop("transcripts part before the last answer")
    if not alternates(chosen):
        raise drop("speakers do not take turns")
    return make_pair(raw.id, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def turns(transcript: str) -> list[Message]:
    """Messages of a transcript. Raises ValueError for text that is no transcript."""
    before, *parts = SPEAKER.split(transcript)
    if before.strip() or not parts:
        raise ValueError(f"a transcript must begin with '\\n\\nHuman:', got {transcript[:60]!r}")
    return [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


read = by_row(_pair)
