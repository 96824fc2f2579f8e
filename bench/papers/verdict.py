"""The verdict rule: how a published difference and ours are put side by side.

Contrasts are compared, not rows: `better` less `worse`, as the paper orders them, written before a run. They
are one family for Holm's correction. The first word that fits is taken:

not run, ambiguous        a role has no finished row of ours, or several
not comparable            metric of another kind, human raters, a role that differs, unlike conditions on the
                          two sides beyond the contrast (the certificate's dagger), above 5 % unscored, a slip
                          of the source, a value that is published as a picture only
nothing to reproduce      the published difference lies within two of its own standard errors
same / opposite direction, separable     ours differs from zero (5 %, Holm over the contrasts)
equal here                two one-sided tests place ours within the margin (5 %)
undecided, same / opposite sign          with the largest advantage that our interval leaves

The published standard error comes from the paper's own standard error, counts or seeds, else from its number
of prompts (unpaired, hence an upper bound). Without either the word is "direction only".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.stats.contrasts import equivalence_p
from bench.stats.estimates import Difference

MARGIN = 0.02
MAX_UNSCORED = 0.05
ALPHA = 0.05
SEPARABLE = 2.0  # Standard errors of a published difference.


class Word(StrEnum):
    """The verdicts, in the order of a count."""

    SAME = "same direction, separable"
    OPPOSITE = "opposite direction, separable"
    EQUAL = "equal here"
    UNDECIDED_SAME = "undecided, same sign"
    UNDECIDED_OPPOSITE = "undecided, opposite sign"
    NOTHING = "nothing to reproduce"
    NOT_COMPARABLE = "not comparable"
    AMBIGUOUS = "ambiguous"
    NOT_RUN = "not run"


COUNTED = (Word.SAME, Word.OPPOSITE, Word.EQUAL, Word.UNDECIDED_SAME, Word.UNDECIDED_OPPOSITE)


@dataclass(frozen=True)
class Theirs:
    """A published difference, better less worse; `value` is None where it is published as a picture only."""

    value: float | None
    standard_error: float | None
    n_seeds: int = 1
    slip: str | None = None  # What is wrong with the source's rows.

    @property
    def errors(self) -> float | None:
        """The difference in its own standard errors; None without one."""
        return self.value / self.standard_error if self.value is not None and self.standard_error else None

    @property
    def within_noise(self) -> bool | None:
        """Whether the difference lies within its own noise; None where that is not known."""
        if self.value is None or self.slip:
            return None
        if self.standard_error is None:
            return True if self.value == 0 else None
        return abs(self.value) <= SEPARABLE * self.standard_error


@dataclass(frozen=True)
class Ours:
    """Our difference of the same two roles, with its p over the contrasts of the table."""

    difference: Difference
    p: float | None
    n_seeds: int
    world: bool  # In the controlled world, whose judge is the truth.
    other_judge: bool = False


@dataclass(frozen=True)
class VerdictWord:
    """Result of the rule for one contrast."""

    word: Word
    why: str = ""
    suffixes: Sequence[str] = ()
    counts: bool = False  # Whether it counts as evidence for or against the paper.
    advantage: float | None = None  # Largest advantage in the published direction that our interval leaves.

    @property
    def text(self) -> str:
        word = f"{self.word} (within {100 * MARGIN:g} points)" if self.word is Word.EQUAL else str(self.word)
        if self.advantage is not None:
            word += f", at most {100 * self.advantage:+.1f}"
        return ", ".join([f"{word}: {self.why}" if self.why else word, *self.suffixes])


def verdict(
    theirs: Theirs, ours: Ours | None, *, obstacle: VerdictWord | None = None, margin: float = MARGIN
) -> VerdictWord:
    """The word for one contrast. `obstacle` says why ours cannot stand beside theirs (see `obstacle_of`)."""
    if obstacle and obstacle.word in (Word.NOT_RUN, Word.AMBIGUOUS):
        return obstacle
    if theirs.slip:
        return VerdictWord(Word.NOT_COMPARABLE, f"slip of the source, {theirs.slip}")
    if theirs.value is None:
        return VerdictWord(Word.NOT_COMPARABLE, "published as a picture only")
    if obstacle:
        return obstacle
    assert ours is not None
    suffixes = [
        *(["direction only"] if theirs.standard_error is None else []),
        *(["in the world"] if ours.world else ["other judge"] if ours.other_judge else []),
        *(["one training"] if ours.n_seeds == 1 else []),
    ]
    if theirs.within_noise:
        return VerdictWord(Word.NOTHING, suffixes=[s for s in suffixes if s != "direction only"])
    counts, sign = ours.n_seeds > 1, 1 if theirs.value > 0 else -1
    value = sign * ours.difference.value
    if ours.p is not None and ours.p < ALPHA and value:
        return VerdictWord(Word.SAME if value > 0 else Word.OPPOSITE, "", suffixes, counts)
    if (p := equivalence_p(ours.difference, margin)) is not None and p < ALPHA:
        return VerdictWord(Word.EQUAL, "", suffixes, counts)
    end = ours.difference.high if sign > 0 else ours.difference.low
    word = Word.UNDECIDED_SAME if value > 0 else Word.UNDECIDED_OPPOSITE
    return VerdictWord(word, "", suffixes, counts, None if end is None else sign * end)


def obstacle_of(
    rows: tuple[int, int],
    *,
    absent: Sequence[str] = (),
    kind: str | None = None,
    differs: Sequence[str] = (),
    unlike: Collection[str] = (),
    unscored: float | None = None,
) -> VerdictWord | None:
    """Why our two sides cannot stand beside a published contrast; None where they can.

    rows: finished rows of ours for better and worse. absent: why a role has none. kind: the published metric in
    words, where ours is of another kind. differs: what a role of ours has unlike the paper's. unlike: conditions
    that only one of the two sides has, beyond the contrast. unscored: the larger share of unscored verdicts; None: unknown.
    """
    if 0 in rows:
        return VerdictWord(Word.NOT_RUN, "; ".join(dict.fromkeys(absent)))
    if max(rows) > 1:
        return VerdictWord(Word.AMBIGUOUS, f"{max(rows)} rows of ours fit one role")
    reasons = [
        *([f"theirs is {kind}"] if kind else []),
        *dict.fromkeys(differs),
        *([f"our two rows also differ in {', '.join(sorted(unlike))}"] if unlike else []),
        *(
            [f"{100 * unscored:.0f} % of a row's verdicts are unscored"]
            if unscored is not None and unscored > MAX_UNSCORED
            else []
        ),
    ]
    return VerdictWord(Word.NOT_COMPARABLE, "; ".join(reasons)) if reasons else None


def best_of_grid(best: float, starred: Sequence[float], grid: Sequence[float], decided: bool) -> str:
    """Word for a published best setting.

    starred: our settings not told apart from our best. decided: whether ours has several seeds.
    """
    if best not in grid:
        return "not in grid"
    if best not in starred:
        return "excluded" if decided else "excluded, one training"
    if len(starred) == len(grid):
        return "undecided"
    return "compatible" if decided else "compatible, one training"
