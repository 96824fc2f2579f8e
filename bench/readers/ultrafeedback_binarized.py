"""HuggingFaceH4/ultrafeedback_binarized, splits train_prefs and test_prefs: the preference data of Zephyr
(Tunstall et al. 2023).

Columns: prompt (text), prompt_id, chosen, rejected (whole conversations, prompt included), messages (=
chosen), score_chosen, score_rejected (1 to 10). The best of four completions by overall score is chosen, and
another one, drawn at random, is rejected. Both may have the same score; the choice between them is then
arbitrary. alignment-handbook, HALOs and SimPO train on these ties too. `ties: drop` leaves them out. They are
counted in both cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.config import UltraFeedbackBinarized
from bench.readers.common import Raw, Tally, drop, each, number
from bench.readers.rows import parse_row
from bench.records import Pair

VERSION = 1
COLUMNS = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, UltraFeedbackBinarized)
    yield from each(raws, tally, lambda raw: _pair(raw, reading, tally))


def _pair(raw: Raw, reading: UltraFeedbackBinarized, tally: Tally) -> Pair:
    tie = number(raw.columns, "score_chosen") == number(raw.columns, "score_rejected")
    if tie and reading.ties == "drop":
        raise drop("equal scores")
    row = parse_row({name: raw.columns[name] for name in ("prompt", "chosen", "rejected")}, raw.id)
    assert isinstance(row, Pair)
    tally.noted["equal scores"] += tie
    return row
