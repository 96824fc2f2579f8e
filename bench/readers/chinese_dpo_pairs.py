"""wenbopan/Chinese-dpo-pairs: UltraFeedback's, Orca's and Truthy's pairs, translated into Chinese by GPT-3.5.

Columns used, all text: prompt, system (may be empty), chosen, rejected. Also there: source, id. Read on
huggingface.co/datasets/wenbopan/Chinese-dpo-pairs (README.md). There is no test split.
"""

from __future__ import annotations

from bench.readers.common import Raw, by_row, text, user
from bench.readers.rows import make_pair
from bench.records import Pair

VERSION = 1
COLUMNS = ("prompt", "system", "chosen", "rejected")


def _pair(raw: Raw) -> Pair:
    question, chosen, rejected = (text(raw.columns, name) for name in ("prompt", "chosen", "rejected"))
    system = text(raw.columns, "system") if raw.columns["system"] is not None else ""
    prompt = [{"role": "system", "content": system}] if system.strip() else []
    return make_pair(raw.id, [*prompt, user(question)], chosen, rejected)


read = by_row(_pair)
