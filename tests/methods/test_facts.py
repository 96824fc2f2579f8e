"""Facts of a training: counts and digests by hand, and what real trainers stepped on."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tiny import smoke_cell, smoke_folder

from bench.models.tokenize import Ids, load_tokenizer, preference_ids
from bench.records import Pair, read_rows
from bench.store.keys import Stage
from bench.training.trainers import LengthBatches
from bench.training.training_record import TrainerRow, TrainFacts, VisitedRows, digest


def pair(name: str, chosen: str = "yes") -> Pair:
    return Pair(name, [{"role": "user", "content": f"{name}?"}], chosen, "no", "", "")


CHOSEN, REJECTED = Ids([1, 2], [3, 4, 5]), Ids([1, 2], [6], cut=True)


def facts_after(
    examples: list[TrainerRow], *batches: list[int], per_step: int = 1, epochs: int = 1
) -> dict[str, Any]:
    visited = VisitedRows(examples)
    for i, rows in enumerate(batches):
        visited.visit(rows, step=i // per_step, epoch=i * epochs // len(batches))
    return visited.facts()


def pairs(*names: str) -> list[TrainerRow]:
    return [TrainerRow(pair(name), {"chosen": CHOSEN, "rejected": REJECTED}) for name in names]


def singles(*names: str) -> list[TrainerRow]:
    return [
        e
        for n in names
        for e in (TrainerRow(pair(n), {"chosen": CHOSEN}), TrainerRow(pair(n), {"rejected": REJECTED}))
    ]


def test_pairs_and_their_single_completions_are_the_same_examples_and_tokens() -> None:
    """Four pairs, two a step: 2 steps of 4 completions. As eight rows, two a step: 4 steps of 2 completions, one pair's worth.
    Each completion has a prompt of 2 tokens: 8 · 2; completions 4 · (3 + 1); the rejected ones are cut."""
    paired = facts_after(pairs("a", "b", "c", "d"), [0, 1], [3, 2])
    single = facts_after(singles("a", "b", "c", "d"), [7, 0], [1, 2], [3, 4], [5, 6])
    same = {
        "rows": 4,
        "completions": {"chosen": 4, "rejected": 4},
        "prompt_tokens": 16,
        "completion_tokens": 16,
        "truncated": 4,
    }
    for found in (paired, single):
        assert {name: found[name] for name in same} == same
    assert paired["examples"] == single["examples"]
    assert (paired["steps"], paired["batch_completions"], paired["batch_rows"]) == (2, 4, 2.0)
    assert (single["steps"], single["batch_completions"], single["batch_rows"]) == (4, 2, 1.0)
    assert paired["order"] == [digest(["a", "b", "d", "c"])]
    assert single["order"] == [digest(["d", "a", "a", "b", "b", "c", "c", "d"])]


def test_texts_rows_and_columns_make_the_examples_and_the_order_does_not() -> None:
    first = facts_after(pairs("a", "b"), [0], [1])
    assert facts_after(pairs("a", "b"), [1], [0])["examples"] == first["examples"]
    assert facts_after(pairs("a", "b"), [1], [0])["order"] != first["order"]
    other = [*pairs("a"), TrainerRow(pair("b", "maybe"), {"chosen": CHOSEN, "rejected": REJECTED})]
    chosen_only = [TrainerRow(pair(name), {"chosen": CHOSEN}) for name in "ab"]
    assert (
        len(
            {
                facts_after(rows, [0], [1])["examples"]
                for rows in (pairs("a", "b"), other, chosen_only, pairs("a", "c"))
            }
        )
        == 4
    )
    assert facts_after(chosen_only, [0], [1])["batch_rows"] == 1.0


def test_accumulated_batches_are_one_step_and_a_part_of_an_epoch_is_said() -> None:
    """Four pairs, one a pass, two passes a step; the second epoch ends half way."""
    found = facts_after(pairs("a", "b", "c", "d"), [0], [1], [2], [3], per_step=2)
    assert (found["steps"], found["batch_rows"]) == (2, 2.0)
    half = facts_after(pairs("a", "b", "c", "d"), [0, 1], [2, 3], [1, 0], [3], epochs=2)
    assert half["epochs"] == 1.75
    assert half["order"] == [digest(["a", "b", "c", "d"]), digest(["b", "a", "d"])]
    assert facts_after(pairs("a", "b", "c", "d"), [0, 1])["rows"] == 2


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_real_training_leaves_what_it_stepped_on(method: str) -> None:
    """Against rows, tokens and order made again from the stage's inputs."""
    train = smoke_cell(method, 0.1).roles["train"]
    assert all(isinstance(source, Stage) for source in train.inputs.values())
    facts = TrainFacts.from_json(json.loads((smoke_folder(train) / "facts.json").read_text()))
    rows = read_rows(smoke_folder(train.inputs["preferences"]) / "train.jsonl")  # type: ignore[arg-type]
    tokenizer = load_tokenizer(smoke_folder(train.inputs["model"]))  # type: ignore[arg-type]
    ids = [preference_ids(tokenizer, row, 192) for row in rows]
    assert (facts.rows, facts.completions) == (len(rows), {"chosen": len(rows), "rejected": len(rows)})
    assert facts.completion_tokens == sum(
        len(i[side].completion) for i in ids for side in ("chosen", "rejected")
    )
    assert facts.prompt_tokens == sum(2 * len(i["chosen"].prompt) for i in ids)
    whole = [[len(i[side].prompt) + len(i[side].completion) for side in ("chosen", "rejected")] for i in ids]
    sides = [(row.id, lengths) for row, lengths in zip(rows, whole, strict=True)]
    names = (
        [name for name, _ in sides] if method == "dpo" else [name for name, lengths in sides for _ in lengths]
    )
    lengths = (
        [max(both) for _, both in sides]
        if method == "dpo"
        else [length for _, both in sides for length in both]
    )
    assert facts.order == [digest([names[i] for i in LengthBatches(lengths, 32, seed=0)])]
    assert (facts.batch_completions, facts.batch_rows) == ((64, 32.0) if method == "dpo" else (32, 16.0))
    assert facts.steps == -(-len(names) // 32)
    assert (facts.truncated, facts.epochs, facts.max_length, facts.schedule, facts.warmup) == (
        0,
        1.0,
        192,
        "linear",
        0.1,
    )


def test_a_cut_completion_says_so() -> None:
    train = smoke_cell("dpo", 0.1).roles["train"]
    tokenizer = load_tokenizer(smoke_folder(train.inputs["model"]))  # type: ignore[arg-type]
    row = random.Random(0).choice(read_rows(smoke_folder(train.inputs["preferences"]) / "train.jsonl"))  # type: ignore[arg-type]
    whole = preference_ids(tokenizer, row, 192)["chosen"]
    length = len(whole.prompt) + len(whole.completion)
    assert not whole.cut
    assert not preference_ids(tokenizer, row, length)["chosen"].cut
    assert preference_ids(tokenizer, row, length - 1)["chosen"].cut
