"""A jury: several judges of the same answers, each of which has judged by itself (Verga et al. 2024, with a median for their mean).

preference = the median of the members' preferences; of an even number the mean of the two in the middle

A median, because one judge with a fault of its own moves a mean as far as it likes. A member without a verdict on an item is left out of
its median; an item on which no more than half of the members have one is unscored. Each member's preference stands in the details.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from bench.judges.asked.request import Ask, Progress
from bench.records import Completion, Item, Verdict, preference_verdicts
from bench.store.stage_settings import JurySettings, member_label


@dataclass(frozen=True)
class Jury:
    """`members`: each one's verdicts by its label, one an item."""

    members: Mapping[str, Sequence[Verdict]]
    name: str = "jury"
    against_baseline: ClassVar = False

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        found = {label: {verdict.item_id: verdict for verdict in given} for label, given in self.members.items()}
        for completion in completions:
            said = {label: verdicts[completion.id] for label, verdicts in found.items() if completion.id in verdicts}
            yield self._verdict(completion.id, said)

    def _verdict(self, item_id: str, said: Mapping[str, Verdict]) -> Verdict:
        preferences = {label: v.preference for label, v in sorted(said.items()) if v.preference is not None}
        fullest = max(said.values(), key=lambda v: (v.preference is not None, v.policy_digest is not None), default=None)
        about = Verdict(item_id, self.name, unscored="no member has judged it") if fullest is None else replace(fullest, judge=self.name)
        about = replace(about, preference=None, rating=None, raw=None, calls=[], details=preferences or None, unscored="")
        if 2 * len(preferences) <= len(self.members):
            why = "; ".join(
                f"{label}: {said[label].unscored if label in said else 'no verdict'}"
                for label in sorted(self.members)
                if label not in preferences
            )
            return replace(about, unscored=f"{len(preferences)} of {len(self.members)} members have a verdict ({why})")
        return replace(about, preference=statistics.median(preferences.values()), unscored=None)


def make_judge(settings: JurySettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> Jury:
    found = {label: path for role, path in inputs.items() if (label := member_label(role))}
    return Jury({label: preference_verdicts(path) for label, path in found.items()})
