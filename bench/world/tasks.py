"""What is asked in the controlled world: readable instructions in MT-Bench's eight categories, one or two turns.

An instruction is a question and up to three constraints of style or length. Every first-turn text belongs to exactly one split, by a
hash of its text: whatever the seed, no prompt of one split is ever a prompt of another. It is the texts that are disjoint, not the
questions: the pools are small (18 and 20 facts in stem and humanities; a few hundred sums, notes and greetings), constraints make
thousands of texts of them, and about two thirds of the evaluation prompts ask, under other constraints, a question that training asks
too. What evaluation measures is keeping constraints on known kinds of question. (The same rules in another order are another text.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.config import World
from bench.world import vocabulary

# Sixty-fourths of all prompt texts. Evaluation is large: 805 distinct prompts must be found in the smallest category's share too.
SPLITS = {"train": 20, "demonstrations": 22, "evaluation": 10, "development": 7, "heldout": 3, "kl": 2}
_SPLIT_OF_BUCKET = tuple(itertools.chain.from_iterable([split] * share for split, share in SPLITS.items()))
_MAX_TRIES = 20_000  # draws without a new prompt before a split counts as exhausted


@dataclass(frozen=True)
class Constraint:
    """A rule of style or length. `value`: the word of begin, end and avoid, the number of words of at_most, else None."""

    kind: str
    value: str | int | None = None

    @property
    def text(self) -> str:
        return CONSTRAINT_TEXTS[self.kind].format(self.value)


CONSTRAINT_TEXTS = {
    "polite": "Be polite.",
    "excited": "Sound excited.",
    "begin": "Begin with the word {}.",
    "end": "End with the word {}.",
    "avoid": "Avoid the word {}.",
    "at_most": "Use at most {} words.",
}


@dataclass(frozen=True)
class Turn:
    """What the user says in one turn, and what the gold judge needs to know about it.

    `slots`: for each sentence of the answer the words it must name, in order; `@cheerful` stands for any word of that tone.
    `target_words`: length in words of a perfect answer (its longer phrasing); longer ones lose conciseness.
    """

    text: str
    category: str
    slots: tuple[tuple[str, ...], ...]
    constraints: tuple[Constraint, ...]
    target_words: int

    def to_json(self) -> dict[str, Any]:
        slots = [list(sentence) for sentence in self.slots]
        return {**vars(self), "slots": slots, "constraints": [dict(vars(constraint)) for constraint in self.constraints]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Turn:
        constraints = tuple(Constraint(constraint["kind"], constraint["value"]) for constraint in row["constraints"])
        return cls(row["text"], row["category"], tuple(map(tuple, row["slots"])), constraints, row["target_words"])


@dataclass(frozen=True)
class Task:
    """A prompt of one or more user turns; a later turn is asked after the policy's own earlier answers."""

    id: str
    category: str
    turns: tuple[Turn, ...]


class Question(NamedTuple):
    text: str
    slots: tuple[tuple[str, ...], ...]


def split_of(text: str) -> str:
    """The split that owns a first-turn text."""
    digest = hashlib.sha256(text.encode()).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest[:8], "big") % len(_SPLIT_OF_BUCKET)]


def make_tasks(world: World, n: int, *, split: str, seed: int, n_turns: int = 1) -> list[Task]:
    """`n` tasks of a split with distinct first turns, balanced over the world's categories (counts differ by one at most).

    Same arguments, same tasks. A category whose unconstrained questions run out goes on with constrained ones.
    Raises ValueError when a split has fewer than `n` prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    rng = random.Random(f"tasks/{split}/{n_turns}/{seed}")
    seen: set[str] = set()
    tasks = []
    for index in range(n):
        task = make_task(world, world.categories[index % len(world.categories)], {split}, seen, rng, n_turns)
        seen.add(task.turns[0].text)
        tasks.append(task)
    return tasks


def make_task(world: World, category: str, splits: set[str], seen: set[str], rng: random.Random, n_turns: int) -> Task:
    """One task whose first turn belongs to one of `splits`, and is none of those `seen`."""
    for _ in range(_MAX_TRIES):
        question = QUESTIONS[category](rng)
        turn = _turn(question, category, _draw_constraints(question, category, _constraint_count(world, rng), rng))
        if turn.text in seen or split_of(turn.text) not in splits:
            continue
        turns = [turn]
        while len(turns) < n_turns:
            question, turn = _follow_up(world, category, question, rng)
            turns.append(turn)
        rows = json.dumps([turn.to_json() for turn in turns], sort_keys=True)
        task_id = f"{category}-{hashlib.sha256(rows.encode()).hexdigest()[:12]}"
        return Task(id=task_id, category=category, turns=tuple(turns))
    raise ValueError(
        f"the split {', '.join(sorted(splits))} has too few prompts of category {category}: no new one after {len(seen)} in all; "
        "ask for fewer prompts, or allow more constraints (world.constraint_counts) or other categories (world.categories)"
    )


def _follow_up(world: World, category: str, question: Question, rng: random.Random) -> tuple[Question, Turn]:
    """The same question under at least one new constraint, or the same kind of question about something else."""
    count = _constraint_count(world, rng)
    if rng.random() < 0.5:
        again = Question("Drop the old rules and answer again.", question.slots)
        return question, _turn(again, category, _draw_constraints(question, category, max(1, count), rng))
    other = QUESTIONS[category](rng)
    asked = Question(f"Now {decapitalise(other.text)}", other.slots)
    return other, _turn(asked, category, _draw_constraints(other, category, count, rng))


def decapitalise(text: str) -> str:
    """Lower-case start, unless the text starts with a name or with `I`."""
    return text if text.startswith((*vocabulary.NAMES, "I ")) else text[0].lower() + text[1:]


# Constraints ---------------------------------------------------------------------------------------------------------


def _constraint_count(world: World, rng: random.Random) -> int:
    return rng.choices(range(len(world.constraint_counts)), weights=world.constraint_counts)[0]


def _draw_constraints(question: Question, category: str, count: int, rng: random.Random) -> tuple[Constraint, ...]:
    """`count` different kinds (at most all six), in a drawn order."""
    kinds = rng.sample(tuple(CONSTRAINT_TEXTS), min(count, len(CONSTRAINT_TEXTS)))
    needed = _answer_words(question.slots, category) + _constraint_words(kinds)
    return tuple(_constraint(kind, category, needed, rng) for kind in kinds)


def _constraint(kind: str, category: str, needed: int, rng: random.Random) -> Constraint:
    if kind == "begin":
        return Constraint(kind, rng.choice(vocabulary.OPENERS))
    if kind == "end":
        return Constraint(kind, rng.choice(vocabulary.CLOSERS))
    if kind == "avoid":  # a word of one phrasing that the other does without
        first, second = vocabulary.FORM_WORDS[category]
        return Constraint(kind, rng.choice(sorted(first ^ second)))
    if kind == "at_most":
        return Constraint(kind, needed + rng.randrange(3))
    return Constraint(kind)


def _constraint_words(kinds: Sequence[str]) -> int:
    """Words that a perfect answer spends on constraints: an opener, a closer, `Thank you`."""
    return ("begin" in kinds) + ("end" in kinds) + 2 * ("polite" in kinds)


def _answer_words(slots: tuple[tuple[str, ...], ...], category: str) -> int:
    longest = max(sum("{}" not in word for word in form.split()) for form in vocabulary.FORMS[category])
    return sum(longest + len(sentence) for sentence in slots)


def _turn(question: Question, category: str, constraints: tuple[Constraint, ...]) -> Turn:
    return Turn(
        text=" ".join([question.text, *(constraint.text for constraint in constraints)]),
        category=category,
        slots=question.slots,
        constraints=constraints,
        target_words=_answer_words(question.slots, category) + _constraint_words([constraint.kind for constraint in constraints]),
    )


# Questions -----------------------------------------------------------------------------------------------------------


def _writing(rng: random.Random) -> Question:
    tone, topic, n = rng.choice(tuple(vocabulary.TONES)), rng.choice(vocabulary.TOPICS), rng.choice((1, 2))
    sentences = "sentence" if n == 1 else "sentences"
    return Question(f"Write a {tone} note of {vocabulary.COUNTS[n - 1]} {sentences} about the {topic}.", ((topic, f"@{tone}"),) * n)


def _roleplay(rng: random.Random) -> Question:
    persona, name = rng.choice(tuple(vocabulary.PERSONAS)), rng.choice(vocabulary.NAMES)
    return Question(f"Act as a {persona} and greet {name}.", ((vocabulary.PERSONAS[persona], name),))


def _reasoning(rng: random.Random) -> Question:
    if rng.random() < 0.5:
        tall, short = rng.sample(vocabulary.NAMES, 2)
        asked = rng.choice(("taller", "shorter"))
        given = rng.choice((f"{tall} is taller than {short}.", f"{short} is shorter than {tall}."))
        return Question(f"{given} Who is {asked}?", ((tall if asked == "taller" else short,),))
    usual, other = rng.sample(tuple(vocabulary.GROUPS.values()), 2)
    odd = rng.choice(other)
    shown = [*rng.sample(usual, 2), odd]
    rng.shuffle(shown)
    return Question(f"Which is the odd one out: {', '.join(shown)}?", ((odd,),))


def _math(rng: random.Random) -> Question:
    a, b = rng.randint(1, vocabulary.LARGEST_OPERAND), rng.randint(1, vocabulary.LARGEST_OPERAND)
    kind = rng.choice(("plus", "minus", "double"))
    if kind == "plus":
        return Question(f"What is {a} plus {b}?", ((str(a + b),),))
    if kind == "minus":
        return Question(f"What is {max(a, b)} minus {min(a, b)}?", ((str(abs(a - b)),),))
    return Question(f"What is double {a} plus one?", ((str(2 * a + 1),),))


def _coding(rng: random.Random) -> Question:
    items = rng.sample(vocabulary.ITEMS, rng.choice((2, 3)))
    listed = ", ".join(items)
    kind = rng.choice(("reverse", "keep", "remove"))
    if kind == "reverse":
        return Question(f"Reverse the list {listed}.", (tuple(reversed(items)),))
    if kind == "keep":
        n = rng.randrange(1, len(items))
        return Question(f"Keep the first {vocabulary.COUNTS[n - 1]} of the list {listed}.", (tuple(items[:n]),))
    gone = rng.choice(items)
    return Question(f"Remove {gone} from the list {listed}.", (tuple(item for item in items if item != gone),))


def _extraction(rng: random.Random) -> Question:
    record = {"name": rng.choice(vocabulary.NAMES), "city": rng.choice(vocabulary.CITIES), "job": rng.choice(vocabulary.JOBS)}
    asked = rng.sample(tuple(record), rng.choice((1, 2)))
    shown = ", ".join(f"{field} {value}" for field, value in record.items())
    return Question(f"Record: {shown}. Give the {' and '.join(asked)}.", (tuple(record[field] for field in asked),))


def _fact(rng: random.Random, tables: Sequence[tuple[str, Mapping[str, str]]]) -> Question:
    text, table = rng.choice(tables)
    subject = rng.choice(tuple(table))
    return Question(text.format(subject), ((table[subject],),))


def _stem(rng: random.Random) -> Question:
    return _fact(
        rng, (("What is the chemical symbol of {}?", vocabulary.SYMBOLS), ("Which planet is the {} from the sun?", vocabulary.PLANETS))
    )


def _humanities(rng: random.Random) -> Question:
    return _fact(rng, (("What is the capital of {}?", vocabulary.CAPITALS), ("Who is the author of {}?", vocabulary.AUTHORS)))


QUESTIONS = {
    "writing": _writing,
    "roleplay": _roleplay,
    "reasoning": _reasoning,
    "math": _math,
    "coding": _coding,
    "extraction": _extraction,
    "stem": _stem,
    "humanities": _humanities,
}
