"""argilla/ultrafeedback-binarized-preferences-cleaned, split train: SPA's data (Kim et al. 2024).

Columns: source, prompt (text), chosen, rejected (conversations of one turn), chosen-rating, rejected-rating
(means of the four aspects, 1 to 5), chosen-model, rejected-model. The authors of the dataset removed
TruthfulQA's prompts and pairs of equal ratings. There is no test split.
"""

from __future__ import annotations

from bench.readers.common import Raw, by_row, drop, number
from bench.readers.rows import parse_row
from bench.records import Pair

VERSION = 1
COLUMNS = ("prompt", "chosen", "rejected", "chosen-rating", "rejected-rating")


def _pair(raw: Raw) -> Pair:
    # No such row in the published file.
    if number(raw.columns, "chosen-rating") <= number(raw.columns, "rejected-rating"):
        raise drop("chosen not rated higher")
    row = parse_row({name: raw.columns[name] for name in ("prompt", "chosen", "rejected")}, raw.id)
    assert isinstance(row, Pair)
    return row


read = by_row(_pair)
