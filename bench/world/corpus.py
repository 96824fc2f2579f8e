"""What the controlled world's models read: clean text and copy drills for the base stage, noisy demonstrations for the start stage.

Also the evaluation items, with what the reference policy wrote. Nothing here is drawn from the splits that are judged.
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
# Clean, but not only: a start model must have seen constraints missed to be able to tell keeping from missing.
BASE_WRITER = Writer(error=0.02, missed_constraint=0.1, filler=0.1)
TWO_TURN_SHARE = 0.25  # of conversations in training texts
DRILL_SHARE = 0.6  # of the first rows; falls to 0 at DRILL_END. Copying is what tiny models learn last
DRILL_END = 0.6  # share of all rows
_DRILL_WORDS = tuple(word for pool in vocabulary.KINDS for word in pool) + vocabulary.OPENERS + vocabulary.CLOSERS


def base_rows(world: World, n: int, seed: int) -> Iterator[Text]:
    """The base stage's rows, in the order to be read: copy drills fade out, tasks of the training splits come in. Rows may repeat."""
    rng = random.Random(f"base/{seed}")
    for index in range(n):
        row_id = f"base-{index}"
        if rng.random() < DRILL_SHARE * (1 - index / (DRILL_END * n)):
            yield _drill(row_id, rng)
        else:
            category = world.categories[rng.randrange(len(world.categories))]
            task = make_task(world, category, BASE_SPLITS, set(), rng, n_turns=1 + (rng.random() < TWO_TURN_SHARE))
            yield _conversation(row_id, task, BASE_WRITER, rng)


def demonstration_rows(world: World, writer: Writer, n: int, seed: int) -> list[Text]:
    """The start stage's rows: one and two turns, balanced over categories, answers by `writer`."""
    return [text for _, text in _demonstrations(world, writer, n, seed)]


def demonstrated_items(world: World, writer: Writer, n: int, seed: int) -> list[Item]:
    """The first turns of the same rows as items to answer; the baseline is what the demonstration answers there."""
    items = []
    for task, text in _demonstrations(world, writer, n, seed):
        turn, answered = task.turns[0], text.prompt[1]["content"] if len(text.prompt) > 1 else text.completion
        items.append(Item(task.id, task.category, [turn.text], [turn.to_json()], [answered]))
    return items


def _demonstrations(world: World, writer: Writer, n: int, seed: int) -> Iterator[tuple[Task, Text]]:
    rng = random.Random(f"demonstrations/{seed}")
    for task in make_tasks(world, n, split="demonstrations", seed=seed, n_turns=2):
        turns = task.turns if rng.random() < TWO_TURN_SHARE else task.turns[:1]
        yield task, _conversation(task.id, Task(id=task.id, category=task.category, turns=turns), writer, rng)


def make_items(world: World, n: int, *, split: str, seed: int, n_turns: int = 1) -> list[Item]:
    """Items to answer, with the gold judge's task and the reference policy's completion of each turn."""
    items = []
    for task in make_tasks(world, n, split=split, seed=seed, n_turns=n_turns):
        rng = random.Random(f"reference/{seed}/{task.id}")  # of its own: an item's baseline does not depend on how many are made
        turns, truth = [turn.text for turn in task.turns], [turn.to_json() for turn in task.turns]
        items.append(Item(task.id, task.category, turns, truth, [write(turn, world.reference, rng) for turn in task.turns]))
    return items


def _drill(row_id: str, rng: random.Random) -> Text:
    """Repeat words, forwards or backwards."""
    said = rng.sample(_DRILL_WORDS, rng.randint(1, 4))
    backwards = rng.random() < 0.3
    prompt: list[Message] = [{"role": "user", "content": f"Repeat{' backwards' * backwards}: {', '.join(said)}."}]
    return Text(id=row_id, prompt=prompt, completion=", ".join(reversed(said) if backwards else said) + ".")


def _conversation(row_id: str, task: Task, writer: Writer, rng: random.Random) -> Text:
    """A text that ends with the completion of the last turn."""
    prompt: list[Message] = []
    completion = ""
    for turn in task.turns:
        if prompt:
            prompt.append({"role": "assistant", "content": completion})
        prompt.append({"role": "user", "content": turn.text})
        completion = write(turn, writer, rng)
    return Text(id=row_id, prompt=prompt, completion=completion)
