"""Facts of a training, measured while it ran. They decide whether two trained cells may be compared
(report/fairness.py).

A trainer's row holds one completion (KTO) or two (pairs). Counts and digests are of the preference rows and
their completions, so that methods of both kinds can be compared.
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
    """Data and steps of one training.

    Tokens are counted once for every completion in the loss, each time that it was there.
    """

    rows: int  # Different preference rows.
    completions: dict[str, int]  # Different completions in the loss, by column.
    examples: str  # Digest of the row ids and texts of these completions, in any order.
    order: list[str]  # Digest of the row ids in training order, one per epoch.
    prompt_tokens: int
    completion_tokens: int
    truncated: int  # Different completions cut at max_length.
    template: str  # Digest of the chat template; "none" without a template.
    steps: int
    batch_completions: int  # Completions in the loss of one optimizer step.
    batch_rows: float  # Preference rows of one optimizer step: pairs, if the data are pairs.
    epochs: float
    optimizer: str
    weight_decay: float
    max_grad_norm: float
    schedule: str
    warmup: float  # Share of all steps.
    learning_rate: float  # The peak.
    max_length: int
    dtype: str

    def seen(self, step: float) -> float:
        """Preference rows that the policy has seen after a step. The last step may have fewer than the others."""
        return min(step * self.batch_rows, self.rows * max(1.0, self.epochs))


@dataclass(frozen=True)
class TrainerRow:
    """One row of a trainer: its preference row, and token ids of the completions in the loss, by column."""

    row: Pair | Unpaired
    ids: Mapping[str, Ids]


class VisitedRows:
    """Counts the rows that a trainer steps on."""

    def __init__(self, examples: Sequence[TrainerRow]):
        self.examples = examples
        self.epochs: dict[int, list[int]] = {}
        self.steps: Counter[int] = Counter()  # Number of rows by step.

    def visit(self, rows: Sequence[int], *, step: int, epoch: int) -> None:
        """Count the rows of one forward and backward pass. A step may have several passes."""
        self.epochs.setdefault(epoch, []).extend(rows)
        self.steps[step] += len(rows)

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, for a checkpoint."""
        return {
            "epochs": {str(epoch): rows for epoch, rows in self.epochs.items()},
            "steps": {str(k): n for k, n in self.steps.items()},
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        self.epochs = {int(epoch): list(rows) for epoch, rows in kept["epochs"].items()}
        self.steps = Counter({int(step): n for step, n in kept["steps"].items()})

    def facts(self) -> dict[str, Any]:
        """The fields of TrainFacts that describe the data and the steps."""
        visits = [self.examples[i] for rows in self.epochs.values() for i in rows]
        seen = {example.row.id: example.row for example in visits}
        parts = {(e.row.id, column): ids for e in visits for column, ids in e.ids.items()}
        texts = [
            [name, column, seen[name].prompt, getattr(seen[name], column)] for name, column in sorted(parts)
        ]
        # Counted over all rows, not over the visited ones: part of an epoch may contain only one completion
        # of a pair.
        given = {(e.row.id, column) for e in self.examples for column in e.ids}
        per_row = len(given) / len({name for name, _ in given})
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
    """The first 16 hex digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
