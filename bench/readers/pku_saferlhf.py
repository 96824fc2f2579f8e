"""PKU-Alignment/PKU-SafeRLHF: two answers to a question, compared in helpfulness and, apart from it, in safety.

Columns used: prompt, response_0, response_1 (text), better_response_id, safer_response_id (0 or 1). Also there: prompt_source,
is_response_0_safe, harm categories, severity levels. Read on huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF (README.md, data/).
Its folders are data/Alpaca-7B, Alpaca2-7B and Alpaca3-8B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.config import PkuSafeRlhf
from bench.readers.common import Raw, Tally, each, one_of, text, user
from bench.readers.rows import make_pair
from bench.records import Pair

VERSION = 1
COLUMNS = ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id")


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, PkuSafeRlhf)
    return each(raws, tally, lambda raw: _pair(raw, reading))


def _pair(raw: Raw, reading: PkuSafeRlhf) -> Pair:
    chosen = one_of(raw.columns, f"{reading.chosen}_response_id", (0, 1))
    answers = [text(raw.columns, name) for name in ("response_0", "response_1")]
    return make_pair(raw.id, [user(text(raw.columns, "prompt"))], answers[chosen], answers[1 - chosen])
