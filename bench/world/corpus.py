"""Training texts of the controlled world's models, and its evaluation items.

The base stage reads clean text and copy drills; the start stage reads noisy demonstrations. Neither draws
from the splits that are judged. Evaluation items come with the reference policy's completions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from bench.config import World, Writer
from bench.records import Item, Message, Text
from bench.world import vocabulary
from bench.world.tasks import Task, make_task, make_tasks
from bench.world.writers import write

BASE_SPLITS = {"train", "demonstrations"}
# Mostly clean. A start model must also see missed constraints, or it could not tell a kept constraint from a
# missed one.
BASE_WRITER = Writer(error=0.02, missed_constraint=0.1, filler=0.1)
TWO_TURN_SHARE = 0.25  # Share of the conversations in training texts.
# Share of drills in the first rows; it falls to 0 at DRILL_END. Tiny models learn copying last.
DRILL_SHARE = 0.6
DRILL_END = 0.6  # Share of all rows.
_DRILL_WORDS = (
    tuple(word for pool in vocabulary.KINDS for word in pool) + vocabulary.OPENERS + vocabulary.CLOSERS
)


def base_rows(world: World, n: int, seed: int) -> Iterator[Text]:
    """The base stage's rows, in training order: copy drills become rarer, tasks of the training splits more
    frequent. Rows may repeat.
    """
    rng = random.Random(f"base/{seed}")
    for index in range(n):
        row_id = f"base-{index}"
        if rng.random() < DRILL_SHARE * (1 - index / (DRILL_END * n)):
            yield _drill(row_id, rng)
        else:
            category = world.categories[rng.randrange(len(world.categories))]
            task = make_task(
                world, category, BASE_SPLITS, set(), rng, n_turns=1 + (rng.random() < TWO_TURN_SHARE)
            )
            yield _conversation(row_id, task, BASE_WRITER, rng)


def demonstration_rows(world: World, writer: Writer, n: int, seed: int) -> list[Text]:
    """The start stage's rows, of one or two turns, balanced over categories.

    `writer` writes the completions.
    """
    return [text for _, text in _demonstrations(world, writer, n, seed)]


def demonstrated_items(world: World, writer: Writer, n: int, seed: int) -> list[Item]:
    """Items with the first turns of `demonstration_rows`; the baseline is the demonstration's completion of
    that turn.
    """
    items = []
    for task, text in _demonstrations(world, writer, n, seed):
        turn, completion = (
            task.turns[0],
            text.prompt[1]["content"] if len(text.prompt) > 1 else text.completion,
        )
        items.append(Item(task.id, task.category, [turn.text], [turn.to_json()], [completion]))
    return items


def _demonstrations(world: World, writer: Writer, n: int, seed: int) -> Iterator[tuple[Task, Text]]:
    rng = random.Random(f"demonstrations/{seed}")
    for task in make_tasks(world, n, split="demonstrations", seed=seed, n_turns=2):
        turns = task.turns if rng.random() < TWO_TURN_SHARE else task.turns[:1]
        yield task, _conversation(task.id, Task(id=task.id, category=task.category, turns=turns), writer, rng)


def make_items(world: World, n: int, *, split: str, seed: int, n_turns: int = 1) -> list[Item]:
    """Evaluation items, with the gold judge's turns and the reference policy's completion of each turn."""
    items = []
    for task in make_tasks(world, n, split=split, seed=seed, n_turns=n_turns):
        # One generator per item, so that its baseline does not depend on `n`.
        rng = random.Random(f"reference/{seed}/{task.id}")
        turns, truth = [turn.text for turn in task.turns], [turn.to_json() for turn in task.turns]
        items.append(
            Item(
                task.id,
                task.category,
                turns,
                truth,
                [write(turn, world.reference, rng) for turn in task.turns],
            )
        )
    return items


def _drill(row_id: str, rng: random.Random) -> Text:
    """A row that asks to repeat words, forwards or backwards."""
    drilled = rng.sample(_DRILL_WORDS, rng.randint(1, 4))
    backwards = rng.random() < 0.3
    prompt: list[Message] = [
        {"role": "user", "content": f"Repeat{' backwards' * backwards}: {', '.join(drilled)}."}
    ]
    return Text(
        id=row_id, prompt=prompt, completion=", ".join(reversed(drilled) if backwards else drilled) + "."
    )


def _conversation(row_id: str, task: Task, writer: Writer, rng: random.Random) -> Text:
    """A row of a task's turns; it ends with the completion of the last turn."""
    prompt: list[Message] = []
    completion = ""
    for turn in task.turns:
        if prompt:
            prompt.append({"role": "assistant", "content": completion})
        prompt.append({"role": "user", "content": turn.text})
        completion = write(turn, writer, rng)
    return Text(id=row_id, prompt=prompt, completion=completion)
