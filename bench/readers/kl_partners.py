"""The mismatched partner of each row, whose completion estimates KTO's reference point."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.readers.subsets import Row, prompt_key
from bench.records import Pair


def partners(prompts: Sequence[str], seed: int) -> list[int]:
    """Index of a row with another prompt, for each row: the next such row on a seeded cycle through all rows.

    Raises ValueError when all rows have the same prompt: then no completion is mismatched.
    """
    if len(set(prompts)) < 2:
        raise ValueError(
            "KTO pairs each completion with another prompt, so the rows must have two prompts or more"
        )
    order = list(range(len(prompts)))
    random.Random(f"partners/{seed}").shuffle(order)
    partner = [0] * len(prompts)
    following = order[0]
    # Backwards and twice, so that the last rows of the cycle find partners at its start.
    for row in reversed([*order, *order]):
        partner[row] = following if prompts[following] != prompts[row] else partner[following]
        following = row
    return partner


def with_partners(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows with mismatched completions added. KTO estimates its KL term from these at the rows' prompts."""
    index = partners([prompt_key(row.prompt) for row in rows], seed)
    both: list[Any] = [(row, rows[i]) for row, i in zip(rows, index, strict=True)]
    if isinstance(rows[0], Pair):
        return [
            replace(row, mismatched_chosen=partner.chosen, mismatched_rejected=partner.rejected)
            for row, partner in both
        ]
    return [replace(row, mismatched=partner.completion) for row, partner in both]
