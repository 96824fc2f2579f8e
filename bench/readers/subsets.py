"""Comparison of prompts, and subsets of rows: held-out splits, nested fractions, mismatched partners."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

from bench.records import Message, Pair, Unpaired

Row = TypeVar("Row", Pair, Unpaired)
T = TypeVar("T")

PUNCTUATION = " .,:;!?\"'`"


def prompt_key(prompt: Sequence[Message]) -> str:
    """Key of a prompt: its roles and exact texts."""
    return json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)


def normalised(text: str) -> str:
    """The text without the differences of its copies: letter case, character width, white space, punctuation
    at the ends.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(PUNCTUATION) or text


def prompt_group(prompt: Sequence[Message]) -> str:
    """Key that all copies of a prompt share: its roles and normalised texts."""
    return json.dumps([[m["role"], normalised(m["content"])] for m in prompt], ensure_ascii=False)


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_heldout(rows: Sequence[Row], heldout_fraction: float) -> tuple[list[Row], list[Row]]:
    """Train and held-out rows.

    All rows of a prompt are on one side, which depends on the prompt's text alone.
    """
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        (heldout if hash_fraction(prompt_key(row.prompt)) < heldout_fraction else train).append(row)
    return train, heldout


def check_labels(rows: Sequence[Pair] | Sequence[Unpaired]) -> None:
    """Raises ValueError for unpaired rows that all have the same label: there is nothing to tell apart."""
    n_desirable = sum(row.label for row in rows if isinstance(row, Unpaired))
    n_undesirable = sum(not row.label for row in rows if isinstance(row, Unpaired))
    if bool(n_desirable) != bool(n_undesirable):
        raise ValueError(
            f"the train rows are {n_desirable} desirable and {n_undesirable} undesirable ones. Methods that learn from labels need both: "
            "add rows with the other label, or use more of the rows (data.fraction, data.heldout_fraction)"
        )


def nested_subset(rows: Sequence[T], fraction: float, seed: int) -> list[T]:
    """The first round(fraction * n) rows of a seeded order, at least one: a smaller fraction is inside a
    larger one.
    """
    order = list(range(len(rows)))
    random.Random(f"fraction/{seed}").shuffle(order)
    keep = sorted(order[: max(1, round(fraction * len(rows)))])
    return [rows[i] for i in keep]
