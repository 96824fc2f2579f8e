"""nvidia/HelpSteer3, the preference part: pairs of answers that people judged.

Columns used: domain (general, stem, code, multilingual), context (messages, the user's last), response1, response2 (text),
overall_preference (-3 to 3; below 0 response1 is better, 0 is a tie). Also there: language, individual_preference. Read on
huggingface.co/datasets/nvidia/HelpSteer3 (README.md, preference/) and in NVIDIA NeMo RL's helpsteer3 dataset. Ties are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.config import HelpSteer3
from bench.readers.common import Raw, Tally, drop, each, number, text
from bench.readers.rows import parse_row
from bench.records import Pair, Unpaired

VERSION = 1
COLUMNS = ("domain", "context", "response1", "response2", "overall_preference")


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair | Unpaired]:
    assert isinstance(reading, HelpSteer3)
    return each(raws, tally, lambda raw: _pair(raw, reading))


def _pair(raw: Raw, reading: HelpSteer3) -> Pair | Unpaired:
    preference = number(raw.columns, "overall_preference")
    if text(raw.columns, "domain") not in reading.domains:
        raise drop("another domain")
    if preference == 0:
        raise drop("tie")
    if abs(preference) < reading.min_preference:
        raise drop("preference too weak")
    answers = [
        [{"role": "assistant", "content": text(raw.columns, name)}] for name in ("response1", "response2")
    ]
    chosen, rejected = answers if preference < 0 else answers[::-1]
    return parse_row({"prompt": raw.columns["context"], "chosen": chosen, "rejected": rejected}, raw.id)
