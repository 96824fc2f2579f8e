"""Intel/orca_dpo_pairs, one file of JSON lines: the data of HF's sweep over DPO, IPO and KTO for OpenHermes.

Columns, all text: system (may be empty), question, chosen (GPT-4's or ChatGPT's completion from OpenOrca),
rejected (Llama-2-13B-chat's). A completion is chosen because of its author: nobody compared the two. There is
no split, and the order of the rows has no meaning.
"""

from __future__ import annotations

from bench.readers.common import Raw, by_row, text, user
from bench.readers.rows import make_pair
from bench.records import Pair

VERSION = 1
COLUMNS = ("system", "question", "chosen", "rejected")


def _pair(raw: Raw) -> Pair:
    system, question, chosen, rejected = (text(raw.columns, name) for name in COLUMNS)
    prompt = [{"role": "system", "content": system}] if system.strip() else []
    return make_pair(raw.id, [*prompt, user(question)], chosen, rejected)


read = by_row(_pair)
