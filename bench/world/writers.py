"""Simulated writers: they make a perfect answer worse, with given probabilities. They write demonstrations
and reference completions.

`error`: one named word is wrong. `missed_constraint`: each constraint is missed with this probability,
independently. Above one half, most demonstrations miss a given constraint, and preference data can teach a
policy to keep it. `filler`: one or two empty sentences are added. A missed word limit also adds filler, and a
kept one leaves it out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.config import Writer
from bench.world import vocabulary
from bench.world.gold import count_words
from bench.world.tasks import Constraint, Turn, decapitalise

_SECOND_FILLER = 0.3  # Share of the completions with filler that have two.


def write(turn: Turn, writer: Writer, rng: random.Random) -> str:
    """A completion of `turn`; it is perfect if all three probabilities are 0."""
    kept = {
        constraint.kind: constraint
        for constraint in turn.constraints
        if rng.random() >= writer.missed_constraint
    }
    missed = {constraint.kind: constraint for constraint in turn.constraints if constraint.kind not in kept}
    slots = _named(turn, rng)
    if rng.random() < writer.error:
        slots = _with_error(slots, turn, rng)
    form = _form(turn.category, kept.get("avoid"), missed.get("avoid"), rng)
    before, after = _fillers(rng) if rng.random() < writer.filler else ([], [])
    polite = [vocabulary.POLITE] if "polite" in kept else []
    body = [
        form.format(", ".join(named)) if form.count("{}") == 1 else form.format(*named) for named in slots
    ]
    completion = _finish([*before, *body, *after, *polite], kept)
    if "at_most" in kept:
        completion = _finish([*body, *polite], kept)
    elif "at_most" in missed and count_words(completion) <= int(missed["at_most"].value):  # type: ignore[arg-type]
        completion = _finish([rng.choice(vocabulary.FILLERS), *body, *polite], kept)
    return completion


def _named(turn: Turn, rng: random.Random) -> list[list[str]]:
    """The words to name, by sentence. A tone's slots get different words of that tone."""
    tones = {slot for sentence in turn.slots for slot in sentence if slot.startswith("@")}
    left = {tone: rng.sample(vocabulary.TONES[tone[1:]], len(turn.slots)) for tone in sorted(tones)}
    return [[left[slot].pop() if slot in left else slot for slot in sentence] for sentence in turn.slots]


def _with_error(slots: list[list[str]], turn: Turn, rng: random.Random) -> list[list[str]]:
    """The slots with one word replaced by a wrong word of the same kind."""
    sentence, place = rng.choice([(i, j) for i, named in enumerate(slots) for j in range(len(named))])
    right = turn.slots[sentence][place]
    alike = next(pool for pool in vocabulary.KINDS if slots[sentence][place] in pool)
    wrong = [word for word in alike if word != right and word not in vocabulary.TONES.get(right[1:], ())]
    changed = [list(named) for named in slots]
    changed[sentence][place] = rng.choice(wrong)
    return changed


def _form(category: str, avoided: Constraint | None, used: Constraint | None, rng: random.Random) -> str:
    """A phrasing for the answer: without the word to avoid if the constraint is kept, with that word if it is
    missed.
    """
    allowed = [
        form
        for form, words in zip(vocabulary.FORMS[category], vocabulary.FORM_WORDS[category], strict=True)
        if (avoided is None or avoided.value not in words) and (used is None or used.value in words)
    ]
    return rng.choice(allowed)


def _fillers(rng: random.Random) -> tuple[list[str], list[str]]:
    """One or two filler sentences: those before and those after the answer."""
    first, second = rng.sample(vocabulary.FILLERS, 2)
    if rng.random() < _SECOND_FILLER:
        return [first], [second]
    return ([first], []) if rng.random() < 0.5 else ([], [first])


def _finish(sentences: Sequence[str], kept: dict[str, Constraint]) -> str:
    text = " ".join(sentences)
    if "begin" in kept:
        text = f"{kept['begin'].value}, {decapitalise(text)}"
    mark = "!" if "excited" in kept else "."
    closer = f" {kept['end'].value}" if "end" in kept else ""
    return text.removesuffix(".") + closer + mark
