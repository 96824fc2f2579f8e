"""The controlled world's truth: how good a completion is, exactly and at once, and the simulated annotator built on it.

total = 10 flu (w_content c + (.3 + .7 c) (w_constraints s + w_conciseness conc))

c    content: share of the asked words named in order; each word named beyond those costs two, so naming every candidate earns nothing
s    constraints: share of the turn's constraints kept (1 without any)
conc conciseness: exp(-excess words / 8), the excess over a perfect answer's length
flu  fluency: share of known words x share of distinct sentences x proper ending

The gate .3 + .7 c leaves the manner of an answer little worth while its matter is wrong.
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
_BREAK = "."  # a sentence break between two sentences that name something
_UNENDED = 0.7  # fluency left without a final mark
_EXTRA_COST = 2  # asked words lost for each word named too many
_EXCESS_SCALE = 8.0  # words


class Gold(NamedTuple):
    """Parts in [0, 1] and the total in [0, 10]."""

    content: float
    constraints: float
    conciseness: float
    fluency: float
    total: float


def gold(turn: Turn, completion: str, weights: GoldWeights) -> Gold:
    """The gold reward of a completion (see the module). Case and punctuation marks other than `.!?` do not matter."""
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE.findall(completion.lower())]
    said = [word for sentence in sentences for word in sentence]
    if not said:
        return Gold(content=0.0, constraints=0.0, conciseness=0.0, fluency=0.0, total=0.0)
    c = _content(turn, sentences)
    kept = [_keeps(constraint, said, completion) for constraint in turn.constraints]
    s = sum(kept) / len(kept) if kept else 1.0
    conciseness = math.exp(-max(0, len(said) - turn.target_words) / _EXCESS_SCALE)
    fluency = _fluency(sentences, said, completion)
    manner = weights.constraints * s + weights.conciseness * conciseness
    total = 10 * fluency * (weights.content * c + (0.3 + 0.7 * c) * manner)
    return Gold(content=c, constraints=s, conciseness=conciseness, fluency=fluency, total=total)


def count_words(completion: str) -> int:
    """Words as the gold reward, the length constraint and the annotator count them."""
    return len(_WORD.findall(completion))


def keeps(constraint: Constraint, completion: str) -> bool:
    """Whether a completion keeps one constraint."""
    return _keeps(constraint, _WORD.findall(completion.lower()), completion)


def _content(turn: Turn, sentences: Sequence[Sequence[str]]) -> float:
    candidates = CANDIDATES[turn.category]
    named = _flat([[word for word in sentence if word in candidates] for sentence in sentences])
    asked = _flat(turn.slots)
    matches = sum(_fills(slot, word) for slot, word in zip(asked, named, strict=False))
    extra = max(0, len(named) - len(asked))
    return max(0, matches - _EXTRA_COST * extra) / len(asked)


def _flat(sentences: Sequence[Sequence[str]]) -> list[str]:
    """Words in order, a break between sentences; sentences without any are skipped."""
    flat: list[str] = []
    for sentence in sentences:
        if sentence:
            flat += [_BREAK, *sentence] if flat else sentence
    return flat


def _fills(slot: str, word: str) -> bool:
    return word in TONE_WORDS[slot[1:]] if slot.startswith("@") else word == slot.lower()


def _keeps(constraint: Constraint, said: Sequence[str], completion: str) -> bool:
    kind, value = constraint.kind, constraint.value
    if not said:
        return False
    if kind == "polite":
        return not _POLITE_WORDS.isdisjoint(said)
    if kind == "excited":
        return completion.rstrip().endswith("!")
    if kind == "at_most":
        return len(said) <= int(value)  # type: ignore[arg-type]
    word = str(value).lower()
    if kind == "begin":
        return said[0] == word
    if kind == "end":
        return said[-1] == word
    if kind == "avoid":
        return word not in said
    raise ValueError(f"unknown constraint {kind!r}")


def _fluency(sentences: Sequence[Sequence[str]], said: Sequence[str], completion: str) -> float:
    known = sum(word in KNOWN_WORDS for word in said) / len(said)
    distinct = len({tuple(sentence) for sentence in sentences}) / len(sentences)
    ending = 1.0 if completion.rstrip()[-1] in ".!?" else _UNENDED
    return known * distinct * ending


# The annotator -------------------------------------------------------------------------------------------------------


def margin(first_gold: float, second_gold: float, first_words: int, second_words: int, annotator: WorldAnnotator) -> float:
    """How much better the first completion looks to the annotator, in gold points; 0 is a tie."""
    return (first_gold - second_gold) + annotator.length_bias * (first_words - second_words)


def annotator_prefers(first_gold: float, second_gold: float, first_words: int, second_words: int, annotator: WorldAnnotator) -> float:
    """Probability that the annotator's own opinion prefers the first: sigmoid(margin / temperature); flips come after (`draw_label`)."""
    scaled = margin(first_gold, second_gold, first_words, second_words, annotator) / annotator.temperature
    return sigmoid(scaled)


def draw_label(probability: float, flip_rate: float, rng: random.Random) -> bool:
    """Whether the first is labelled preferred; a share `flip_rate` of labels is turned round. Always takes two numbers from `rng`."""
    return (rng.random() < probability) != (rng.random() < flip_rate)
