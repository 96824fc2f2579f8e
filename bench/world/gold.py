"""The exact gold reward of a completion in the controlled world, and the simulated annotator that uses it.

total = 10 flu (w_content c + (.3 + .7 c) (w_constraints s + w_conciseness conc))

c    content: share of the requested words named in order; each further named word costs two, so that naming
     every candidate earns nothing
s    constraints: share of the turn's constraints that are kept (1 if it has none)
conc conciseness: exp(-excess words / 8); excess words are those beyond a perfect answer's length
flu  fluency: share of known words x share of distinct sentences x proper ending (1, or 0.7 without a final
     mark)

The factor .3 + .7 c makes constraints and conciseness worth little while the content is wrong.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from bench.config import GoldWeights, WorldAnnotator
from bench.records import sigmoid
from bench.world.tasks import Constraint, Turn
from bench.world.vocabulary import CANDIDATES, KNOWN_WORDS, TONE_WORDS

_WORD = re.compile(r"[^\W_]+")
_SENTENCE = re.compile(r"[^.!?]*[^.!?\s][^.!?]*[.!?]*")
_POLITE_WORDS = frozenset({"thank", "thanks", "please", "kindly"})
_BREAK = "."  # Stands between two sentences that both name something.
_UNENDED = 0.7  # Factor of fluency for a completion without a final mark.
_EXTRA_COST = 2  # Requested words that each surplus word costs.
_EXCESS_SCALE = 8.0  # Words.


class Gold(NamedTuple):
    """Gold reward of a completion: the total in [0, 10], and its parts in [0, 1]."""

    content: float
    constraints: float
    conciseness: float
    fluency: float
    total: float


def gold(turn: Turn, completion: str, weights: GoldWeights) -> Gold:
    """The gold reward of a completion (see the module).

    Case does not matter, nor punctuation marks other than `.!?`.
    """
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE.findall(completion.lower())]
    words = [word for sentence in sentences for word in sentence]
    if not words:
        return Gold(content=0.0, constraints=0.0, conciseness=0.0, fluency=0.0, total=0.0)
    c = _content(turn, sentences)
    kept = [_keeps(constraint, words, completion) for constraint in turn.constraints]
    s = sum(kept) / len(kept) if kept else 1.0
    conciseness = math.exp(-max(0, len(words) - turn.target_words) / _EXCESS_SCALE)
    fluency = _fluency(sentences, words, completion)
    manner = weights.constraints * s + weights.conciseness * conciseness
    total = 10 * fluency * (weights.content * c + (0.3 + 0.7 * c) * manner)
    return Gold(content=c, constraints=s, conciseness=conciseness, fluency=fluency, total=total)


def count_words(completion: str) -> int:
    """Number of words, as the gold reward, the length constraint and the annotator's length bias count them."""
    return len(_WORD.findall(completion))


def keeps(constraint: Constraint, completion: str) -> bool:
    """Whether a completion keeps one constraint."""
    return _keeps(constraint, _WORD.findall(completion.lower()), completion)


def _content(turn: Turn, sentences: Sequence[Sequence[str]]) -> float:
    candidates = CANDIDATES[turn.category]
    named = _flat([[word for word in sentence if word in candidates] for sentence in sentences])
    requested = _flat(turn.slots)
    matches = sum(_fills(slot, word) for slot, word in zip(requested, named, strict=False))
    extra = max(0, len(named) - len(requested))
    return max(0, matches - _EXTRA_COST * extra) / len(requested)


def _flat(sentences: Sequence[Sequence[str]]) -> list[str]:
    """All words in order, with a break between sentences; sentences without words are skipped."""
    flat: list[str] = []
    for sentence in sentences:
        if sentence:
            flat += [_BREAK, *sentence] if flat else sentence
    return flat


def _fills(slot: str, word: str) -> bool:
    return word in TONE_WORDS[slot[1:]] if slot.startswith("@") else word == slot.lower()


def _keeps(constraint: Constraint, words: Sequence[str], completion: str) -> bool:
    kind, value = constraint.kind, constraint.value
    if not words:
        return False
    if kind == "polite":
        return not _POLITE_WORDS.isdisjoint(words)
    if kind == "excited":
        return completion.rstrip().endswith("!")
    if kind == "at_most":
        return len(words) <= int(value)  # type: ignore[arg-type]
    word = str(value).lower()
    if kind == "begin":
        return words[0] == word
    if kind == "end":
        return words[-1] == word
    if kind == "avoid":
        return word not in words
    raise ValueError(f"unknown constraint {kind!r}")


def _fluency(sentences: Sequence[Sequence[str]], words: Sequence[str], completion: str) -> float:
    known = sum(word in KNOWN_WORDS for word in words) / len(words)
    distinct = len({tuple(sentence) for sentence in sentences}) / len(sentences)
    ending = 1.0 if completion.rstrip()[-1] in ".!?" else _UNENDED
    return known * distinct * ending


# The annotator -------------------------------------------------------------------------------------------------------


def margin(
    first_gold: float, second_gold: float, first_words: int, second_words: int, annotator: WorldAnnotator
) -> float:
    """The annotator's preference for the first completion, in gold points; 0 is a tie, negative prefers the
    second.
    """
    return (first_gold - second_gold) + annotator.length_bias * (first_words - second_words)


def annotator_prefers(
    first_gold: float, second_gold: float, first_words: int, second_words: int, annotator: WorldAnnotator
) -> float:
    """Probability that the annotator prefers the first completion: sigmoid(margin / temperature).

    Label flips are not part of it (see `draw_label`).
    """
    scaled = margin(first_gold, second_gold, first_words, second_words, annotator) / annotator.temperature
    return sigmoid(scaled)


def draw_label(probability: float, flip_rate: float, rng: random.Random) -> bool:
    """Whether the label prefers the first completion.

    A share `flip_rate` of labels is flipped. Always draws two numbers from `rng`.
    """
    return (rng.random() < probability) != (rng.random() < flip_rate)
