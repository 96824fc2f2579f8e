"""What a training was fed, measured while it ran: the facts that decide whether two trained cells may be compared (report/fairness.py).

A trainer's row holds one completion (KTO) or two (pairs); counts and digests are of the preference rows and completions behind it, so that
methods of either form can be held against each other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.models.tokenize import Ids
from bench.records import Pair, Record, Unpaired


@dataclass(frozen=True)
class TrainFacts(Record):
    """What one training saw and how it stepped. Tokens are counted once for every completion learned from, each time it was."""

    rows: int  # different preference rows
    completions: dict[str, int]  # different completions in the loss, by column
    examples: str  # digest of their row ids and texts, whatever the order
    order: list[str]  # digest of the row ids in the order in which they came, one an epoch
    prompt_tokens: int
    completion_tokens: int
    truncated: int  # different completions whose end was cut at max_length
    template: str  # digest of the chat template; "none" where there is none
    steps: int
    batch_completions: int  # completions in the loss of a whole step
    batch_rows: float  # the same in preference rows: pairs, where the data are pairs
    epochs: float
    optimizer: str
    weight_decay: float
    max_grad_norm: float
    schedule: str
    warmup: float  # share of the steps
    learning_rate: float  # the highest
    max_length: int
    dtype: str


@dataclass(frozen=True)
class TrainerRow:
    """One row of a trainer: the preference row behind it, and the ids of those of its completions that the loss learns from."""

    row: Pair | Unpaired
    ids: Mapping[str, Ids]


class Fed:
    """Counts the rows that a trainer steps on."""

    def __init__(self, examples: Sequence[TrainerRow]):
        self.examples = examples
        self.epochs: dict[int, list[int]] = {}
        self.steps: Counter[int] = Counter()  # rows by step

    def visit(self, rows: Sequence[int], *, step: int, epoch: int) -> None:
        """Rows of one forward and backward pass; a step may be several."""
        self.epochs.setdefault(epoch, []).extend(rows)
        self.steps[step] += len(rows)

    def to_json(self) -> dict[str, Any]:
        """What was visited, for a checkpoint."""
        return {"epochs": {str(epoch): rows for epoch, rows in self.epochs.items()}, "steps": {str(k): n for k, n in self.steps.items()}}

    def restore(self, kept: Mapping[str, Any]) -> None:
        self.epochs = {int(epoch): list(rows) for epoch, rows in kept["epochs"].items()}
        self.steps = Counter({int(step): n for step, n in kept["steps"].items()})

    def facts(self) -> dict[str, Any]:
        """The part of TrainFacts that says what was learned from."""
        visits = [self.examples[i] for rows in self.epochs.values() for i in rows]
        seen = {example.row.id: example.row for example in visits}
        parts = {(e.row.id, column): ids for e in visits for column, ids in e.ids.items()}
        texts = [[name, column, seen[name].prompt, getattr(seen[name], column)] for name, column in sorted(parts)]
        # As handed over, not as visited: a part of an epoch may have met one completion of a pair only.
        handed = {(e.row.id, column) for e in self.examples for column in e.ids}
        per_row = len(handed) / len({name for name, _ in handed})
        batch = max(self.steps.values()) * len(self.examples[0].ids)
        return {
            "rows": len(seen),
            "completions": dict(sorted(Counter(column for _, column in parts).items())),
            "examples": digest(texts),
            "order": [digest([self.examples[i].row.id for i in rows]) for rows in self.epochs.values()],
            "prompt_tokens": sum(len(ids.prompt) for e in visits for ids in e.ids.values()),
            "completion_tokens": sum(len(ids.completion) for e in visits for ids in e.ids.values()),
            "truncated": sum(ids.cut for ids in parts.values()),
            "steps": len(self.steps),
            "batch_completions": batch,
            "batch_rows": batch / per_row,
            "epochs": round(len(visits) / len(self.examples), 4),
        }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
