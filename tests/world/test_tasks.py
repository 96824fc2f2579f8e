from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from bench.config import CATEGORIES, World
from bench.world.corpus import base_rows
from bench.world.tasks import SPLITS, Turn, make_tasks

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_tasks_of_a_split_are_golden(world: World, split: str) -> None:
    rows = [
        [task.id, *[turn.to_json() for turn in task.turns]]
        for task in make_tasks(world, 64, split=split, seed=0, n_turns=2)
    ]
    assert hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest() == GOLDEN[f"tasks/{split}"]


def test_splits_share_no_prompt_whatever_the_seeds(world: World) -> None:
    prompts = {
        split: {
            task.turns[0].text
            for seed in range(3)
            for task in make_tasks(world, 400, split=split, seed=seed + 10 * index)
        }
        for index, split in enumerate(SPLITS)
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]


def test_the_base_stage_reads_no_prompt_that_is_judged(world: World) -> None:
    read = {row.prompt[0]["content"] for row in base_rows(world, 5000, seed=0)}
    for split in ("evaluation", "development", "heldout", "kl"):
        for seed in range(2):
            assert not read & {task.turns[0].text for task in make_tasks(world, 300, split=split, seed=seed)}


@pytest.mark.parametrize(
    ("split", "n"),
    [("evaluation", 805), ("train", 2500), ("heldout", 300), ("development", 480), ("demonstrations", 4000)],
)
def test_sets_of_the_sizes_in_use_are_distinct_and_balanced(world: World, split: str, n: int) -> None:
    tasks = make_tasks(world, n, split=split, seed=1)
    assert len({task.turns[0].text for task in tasks}) == len({task.id for task in tasks}) == n
    counts = Counter(task.category for task in tasks)
    assert set(counts) == set(CATEGORIES)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_other_seeds_ask_other_things(world: World) -> None:
    first, second = (make_tasks(world, 50, split="train", seed=seed) for seed in (0, 1))
    assert [task.id for task in first] != [task.id for task in second]


def test_turns_survive_json(world: World) -> None:
    for task in make_tasks(world, 80, split="development", seed=0, n_turns=2):
        assert len(task.turns) == 2
        for turn in task.turns:
            assert Turn.from_json(json.loads(json.dumps(turn.to_json()))) == turn


def test_an_exhausted_split_says_so(world: World) -> None:
    facts_only = world.model_copy(update={"categories": ("stem",), "constraint_counts": (1.0,)})
    with pytest.raises(ValueError, match="too few prompts of category stem"):
        make_tasks(facts_only, 100, split="train", seed=0)


def test_an_unknown_split_names_the_known_ones(world: World) -> None:
    with pytest.raises(ValueError, match="unknown split 'eval'; known: train"):
        make_tasks(world, 1, split="eval", seed=0)
