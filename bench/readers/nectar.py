"""berkeley-nest/Nectar, one file of Parquet rows: 183 K prompts with seven answers each, ranked by GPT-4.

Columns used: prompt (a transcript that ends in "Assistant:"), answers (a list of answer, model, rank; rank 1 is the best). Also
there: turns, num_responses, source, good_natured. Read on huggingface.co/datasets/berkeley-nest/Nectar (README.md). Pairs of
equal rank and rows with fewer than two ranks are dropped. There is no test split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from bench.config import Nectar
from bench.readers.common import Raw, Tally, alternates, drop, each, number, text
from bench.readers.hh_rlhf import turns
from bench.readers.rows import Unusable, make_pair
from bench.records import Message, Pair, RankedAnswers
from bench.text_files import describe

VERSION = 1
COLUMNS = ("prompt", "answers")


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, Nectar)
    for ranking in rankings(raws, reading, tally, train=train):
        ranked = sorted(zip(ranking.ranks, ranking.answers, strict=True), key=lambda answer: answer[0])
        both = {
            "best_worst": [(ranked[0], ranked[-1])],
            "neighbours": list(itertools.pairwise(ranked)),
            "all": list(itertools.combinations(ranked, 2)),
        }[reading.pairs]
        for place, (better, worse) in enumerate(both):
            if better[0] == worse[0]:
                tally.dropped["equal rank"] += 1
                continue
            try:
                yield make_pair(f"{ranking.id}.{place}", ranking.prompt, better[1], worse[1])
            except Unusable as error:
                tally.dropped[error.reason] += 1


def rankings(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[RankedAnswers]:
    """The ranked answers to each prompt."""
    return each(raws, tally, _ranking)


def _ranking(raw: Raw) -> RankedAnswers:
    answers = raw.columns["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError(f"answers must be a list of answer, model and rank, got {describe(answers)}")
    ranks = [number(answer, "rank") for answer in answers]
    if len(set(ranks)) < 2:
        raise drop("fewer than two ranks")
    return RankedAnswers(raw.id, _prompt(raw), [text(answer, "answer").strip() for answer in answers], ranks)


def _prompt(raw: Raw) -> list[Message]:
    messages = turns(text(raw.columns, "prompt"))
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user" or not alternates(messages):
        raise drop("speakers do not take turns")
    return messages
