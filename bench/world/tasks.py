"""Tasks of the controlled world: readable instructions in MT-Bench's eight categories, with one or two turns.

An instruction is a question and up to three constraints of style or length. Every first-turn text belongs to
exactly one split, by a hash of its text: for every seed, no prompt of one split is a prompt of another. Only
the texts are disjoint, not the questions. The pools are small (18 and 20 facts in stem and humanities; a few
hundred sums, notes and greetings), and constraints make thousands of texts from them. About two thirds of the
evaluation prompts ask a question that training also asks, under other constraints. Evaluation therefore
measures how well a policy keeps constraints on known kinds of questions. (The same constraints in another
order make another text.)
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

# Shares of all prompt texts, in sixty-fourths. Evaluation is large, because its share must hold enough
# prompts of the smallest category for 805 distinct prompts.
SPLITS = {"train": 20, "demonstrations": 22, "evaluation": 10, "development": 7, "heldout": 3, "kl": 2}
_SPLIT_OF_BUCKET = tuple(itertools.chain.from_iterable([split] * share for split, share in SPLITS.items()))
_MAX_TRIES = 20_000  # A split counts as exhausted after this many draws without a new prompt.


@dataclass(frozen=True)
class Constraint:
    """A rule of style or length.

    `value`: the word for begin, end and avoid; the number of words for at_most; else None.
    """

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
    """One user turn, with the facts that the gold judge needs.

    `slots`: the words that each sentence of the answer must name, in order; `@cheerful` stands for any word
    of that tone. `target_words`: number of words of a perfect answer, in its longer phrasing. Longer
    completions lose conciseness.
    """

    text: str
    category: str
    slots: tuple[tuple[str, ...], ...]
    constraints: tuple[Constraint, ...]
    target_words: int

    def to_json(self) -> dict[str, Any]:
        slots = [list(sentence) for sentence in self.slots]
        return {
            **vars(self),
            "slots": slots,
            "constraints": [dict(vars(constraint)) for constraint in self.constraints],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Turn:
        constraints = tuple(
            Constraint(constraint["kind"], constraint["value"]) for constraint in row["constraints"]
        )
        return cls(
            row["text"], row["category"], tuple(map(tuple, row["slots"])), constraints, row["target_words"]
        )


@dataclass(frozen=True)
class Task:
    """A prompt of one or more user turns.

    Each later turn follows the policy's own completion of the turn before.
    """

    id: str
    category: str
    turns: tuple[Turn, ...]


class Question(NamedTuple):
    text: str
    slots: tuple[tuple[str, ...], ...]


def split_of(text: str) -> str:
    """The split of a first-turn text."""
    digest = hashlib.sha256(text.encode()).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest[:8], "big") % len(_SPLIT_OF_BUCKET)]


def make_tasks(world: World, n: int, *, split: str, seed: int, n_turns: int = 1) -> list[Task]:
    """`n` tasks of a split with distinct first turns, balanced over the world's categories (counts differ by
    one at most).

    The same arguments give the same tasks. When a category has no unconstrained question left, further ones
    are constrained. Raises ValueError if the split has fewer than `n` prompts.
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


def make_task(
    world: World, category: str, splits: set[str], seen: set[str], rng: random.Random, n_turns: int
) -> Task:
    """One task.

    Its first turn belongs to one of `splits` and is not in `seen`. Raises ValueError if there is none left.
    """
    for _ in range(_MAX_TRIES):
        question = QUESTIONS[category](rng)
        turn = _turn(
            question, category, _draw_constraints(question, category, _constraint_count(world, rng), rng)
        )
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
        f"the split {', '.join(sorted(splits))} has too few prompts of category {category}: none is left after {len(seen)} prompts of all "
        "categories. Use fewer prompts, more constraints (world.constraint_counts) or other categories (world.categories)."
    )


def _follow_up(world: World, category: str, question: Question, rng: random.Random) -> tuple[Question, Turn]:
    """A question for the next turn: the same one with new constraints (at least one), or another one of the
    same category.
    """
    count = _constraint_count(world, rng)
    if rng.random() < 0.5:
        again = Question("Drop the old rules and answer again.", question.slots)
        return question, _turn(again, category, _draw_constraints(question, category, max(1, count), rng))
    other = QUESTIONS[category](rng)
    follow_up = Question(f"Now {decapitalise(other.text)}", other.slots)
    return other, _turn(follow_up, category, _draw_constraints(other, category, count, rng))


def decapitalise(text: str) -> str:
    """The text with a lower-case first letter, unless it starts with a name or with `I`."""
    return text if text.startswith((*vocabulary.NAMES, "I ")) else text[0].lower() + text[1:]


# Constraints ---------------------------------------------------------------------------------------------------------


def _constraint_count(world: World, rng: random.Random) -> int:
    return rng.choices(range(len(world.constraint_counts)), weights=world.constraint_counts)[0]


def _draw_constraints(
    question: Question, category: str, count: int, rng: random.Random
) -> tuple[Constraint, ...]:
    """`count` constraints of different kinds (at most all six), in random order."""
    kinds = rng.sample(tuple(CONSTRAINT_TEXTS), min(count, len(CONSTRAINT_TEXTS)))
    needed = _answer_words(question.slots, category) + _constraint_words(kinds)
    return tuple(_constraint(kind, category, needed, rng) for kind in kinds)


def _constraint(kind: str, category: str, needed: int, rng: random.Random) -> Constraint:
    if kind == "begin":
        return Constraint(kind, rng.choice(vocabulary.OPENERS))
    if kind == "end":
        return Constraint(kind, rng.choice(vocabulary.CLOSERS))
    if kind == "avoid":  # A word that only one of the two phrasings uses.
        first, second = vocabulary.FORM_WORDS[category]
        return Constraint(kind, rng.choice(sorted(first ^ second)))
    if kind == "at_most":
        return Constraint(kind, needed + rng.randrange(3))
    return Constraint(kind)


def _constraint_words(kinds: Sequence[str]) -> int:
    """Number of words that a perfect answer needs for constraints: an opener, a closer, `Thank you`."""
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
        target_words=_answer_words(question.slots, category)
        + _constraint_words([constraint.kind for constraint in constraints]),
    )


# Questions -----------------------------------------------------------------------------------------------------------


def _writing(rng: random.Random) -> Question:
    tone, topic, n = rng.choice(tuple(vocabulary.TONES)), rng.choice(vocabulary.TOPICS), rng.choice((1, 2))
    sentences = "sentence" if n == 1 else "sentences"
    return Question(
        f"Write a {tone} note of {vocabulary.COUNTS[n - 1]} {sentences} about the {topic}.",
        ((topic, f"@{tone}"),) * n,
    )


def _roleplay(rng: random.Random) -> Question:
    persona, name = rng.choice(tuple(vocabulary.PERSONAS)), rng.choice(vocabulary.NAMES)
    return Question(f"Act as a {persona} and greet {name}.", ((vocabulary.PERSONAS[persona], name),))


def _reasoning(rng: random.Random) -> Question:
    if rng.random() < 0.5:
        tall, short = rng.sample(vocabulary.NAMES, 2)
        wanted = rng.choice(("taller", "shorter"))
        given = rng.choice((f"{tall} is taller than {short}.", f"{short} is shorter than {tall}."))
        return Question(f"{given} Who is {wanted}?", ((tall if wanted == "taller" else short,),))
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
        return Question(
            f"Keep the first {vocabulary.COUNTS[n - 1]} of the list {listed}.", (tuple(items[:n]),)
        )
    gone = rng.choice(items)
    return Question(
        f"Remove {gone} from the list {listed}.", (tuple(item for item in items if item != gone),)
    )


def _extraction(rng: random.Random) -> Question:
    record = {
        "name": rng.choice(vocabulary.NAMES),
        "city": rng.choice(vocabulary.CITIES),
        "job": rng.choice(vocabulary.JOBS),
    }
    fields = rng.sample(tuple(record), rng.choice((1, 2)))
    shown = ", ".join(f"{field} {value}" for field, value in record.items())
    return Question(
        f"Record: {shown}. Give the {' and '.join(fields)}.", (tuple(record[field] for field in fields),)
    )


def _fact(rng: random.Random, tables: Sequence[tuple[str, Mapping[str, str]]]) -> Question:
    text, table = rng.choice(tables)
    subject = rng.choice(tuple(table))
    return Question(text.format(subject), ((table[subject],),))


def _stem(rng: random.Random) -> Question:
    return _fact(
        rng,
        (
            ("What is the chemical symbol of {}?", vocabulary.SYMBOLS),
            ("Which planet is the {} from the sun?", vocabulary.PLANETS),
        ),
    )


def _humanities(rng: random.Random) -> Question:
    return _fact(
        rng,
        (
            ("What is the capital of {}?", vocabulary.CAPITALS),
            ("Who is the author of {}?", vocabulary.AUTHORS),
        ),
    )


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
