"""Feedback files of HALOs' train.label: a list of JSON objects with `type` pairwise_feedback or
binary_feedback.

Columns of pairwise_feedback: prompt_id, prompt (messages), output_A, output_B (a list of one assistant
message), label (1 if A is preferred), reward_A, reward_B. Columns of binary_feedback: prompt_id, prompt,
output, label (1 is desirable), reward. Where rows have a `split`, "train" marks the train rows and "test" the
held-out rows of the file. scalar_feedback has rewards and no labels, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.readers.common import Raw, Tally, each, one_of
from bench.readers.rows import parse_row
from bench.records import Pair, Unpaired
from bench.text_files import describe

VERSION = 1
COLUMNS = ("type", "prompt", "label")
HELDOUT_IN_TRAIN_FILES = True  # rows name their own split


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair | Unpaired]:
    wanted = "train" if train else "test"
    yield from each(
        (raw for raw in each(raws, tally, _placed) if (raw.columns.get("split") or "train") == wanted),
        tally,
        _row,
    )


def _placed(raw: Raw) -> Raw:
    one_of(raw.columns, "split", ("train", "test", None, ""))
    return raw


def _row(raw: Raw) -> Pair | Unpaired:
    columns, label = raw.columns, one_of(raw.columns, "label", (1, 0))
    match columns["type"]:
        case "pairwise_feedback":
            chosen, rejected = ("output_A", "output_B") if label == 1 else ("output_B", "output_A")
            return parse_row(
                {
                    "prompt": columns["prompt"],
                    "chosen": columns.get(chosen),
                    "rejected": columns.get(rejected),
                },
                raw.id,
            )
        case "binary_feedback":
            return parse_row(
                {"prompt": columns["prompt"], "completion": columns.get("output"), "label": bool(label)},
                raw.id,
            )
    raise ValueError(f"type must be pairwise_feedback or binary_feedback, got {describe(columns['type'])}")
