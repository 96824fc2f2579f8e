"""stanfordnlp/SHP: pairs of Reddit comments, the later and more upvoted one preferred; 18 folders of JSON
lines.

Columns used: history (the post), human_ref_A, human_ref_B, labels (1 if A is preferred, 0 if B), score_A,
score_B. Training rows are filtered as its authors advise for reward models, and as HALOs does: the preferred
comment's score is at least `min_score_ratio` times the other's, and a post gives at most `max_pairs` pairs.
The choice of these pairs depends on their texts alone (HALOs draws them at random). Held-out rows are not
filtered. HALOs also replaces several spaces by one, in posts and comments; here texts stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.config import Shp
from bench.readers.common import Raw, Tally, drop, each, number, one_of, text, user
from bench.readers.rows import make_pair
from bench.readers.subsets import hash_fraction
from bench.records import Pair, grouped

VERSION = 1
COLUMNS = ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B")


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, Shp)
    rows = list(each(raws, tally, lambda raw: _pair(raw, reading, train)))
    yield from _capped(rows, reading.max_pairs, tally) if train else rows


def _pair(raw: Raw, reading: Shp, train: bool) -> Pair:
    label = one_of(raw.columns, "labels", (1, 0))
    scores = number(raw.columns, "score_A"), number(raw.columns, "score_B")
    if train and max(scores) < reading.min_score_ratio * min(scores):
        raise drop("score ratio too small")
    comments = text(raw.columns, "human_ref_A"), text(raw.columns, "human_ref_B")
    chosen, rejected = comments if label == 1 else comments[::-1]
    return make_pair(raw.id, [user(text(raw.columns, "history"))], chosen, rejected)


def _capped(rows: list[Pair], most: int, tally: Tally) -> list[Pair]:
    """The rows, in order, with at most `most` rows for each post."""
    by_post = grouped((row.prompt[0]["content"], row) for row in rows)
    kept = {row.id for of_post in by_post.values() for row in sorted(of_post, key=_lot)[:most]}
    tally.dropped["more pairs than a post may give"] += len(rows) - len(kept)
    return [row for row in rows if row.id in kept]


def _lot(row: Pair) -> float:
    return hash_fraction(f"{row.prompt[0]['content']}\n{row.chosen}\n{row.rejected}")
