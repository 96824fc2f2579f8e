"""berkeley-nest/Nectar, one file of Parquet rows: 183 K prompts with seven answers each, ranked by GPT-4.

Columns used: prompt (a transcript that ends in "Assistant:"), answers (a list of answer, model, rank; rank 1 is the best). Also
there: turns, num_responses, source, good_natured. Read on huggingface.co/datasets/berkeley-nest/Nectar (README.md). Pairs of
equal rank and rows with fewer than two ranks are dropped. There is no test split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bench.config import Nectar
from bench.readers.common import Raw, Tally, alternates, drop, each, number, text
from bench.readers.hh_rlhf import turns
from bench.readers.rows import Unusable, make_pair
from bench.records import Message, Pair
from bench.text_files import describe

VERSION = 1
COLUMNS = ("prompt", "answers")


class Ranked(NamedTuple):
    """The answers to a prompt as (rank, text), the best first."""

    id: str
    prompt: list[Message]
    answers: list[tuple[float, str]]


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair]:
    assert isinstance(reading, Nectar)
    for ranked in each(raws, tally, _ranked):
        both = {
            "best_worst": [(ranked.answers[0], ranked.answers[-1])],
            "neighbours": list(itertools.pairwise(ranked.answers)),
            "all": list(itertools.combinations(ranked.answers, 2)),
        }[reading.pairs]
        for place, (better, worse) in enumerate(both):
            if better[0] == worse[0]:
                tally.dropped["equal rank"] += 1
                continue
            try:
                yield make_pair(f"{ranked.id}.{place}", ranked.prompt, better[1], worse[1])
            except Unusable as error:
                tally.dropped[error.reason] += 1


def _ranked(raw: Raw) -> Ranked:
    answers = raw.columns["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError(f"answers must be a list of answer, model and rank, got {describe(answers)}")
    ranked = [(number(answer, "rank"), text(answer, "answer").strip()) for answer in answers]
    if len({rank for rank, _ in ranked}) < 2:
        raise drop("fewer than two ranks")
    return Ranked(raw.id, _prompt(raw), sorted(ranked, key=lambda answer: answer[0]))


def _prompt(raw: Raw) -> list[Message]:
    messages = turns(text(raw.columns, "prompt"))
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user" or not alternates(messages):
        raise drop("speakers do not take turns")
    return messages
