"""A jury combines several judges' verdicts on the same completions (Verga et al. 2024).

preference = the median of the members' preferences (for an even number, the mean of the middle two)

Deviation: the paper takes the mean. Here it is the median, because one faulty judge can move a mean without
limit. Each member judges alone. A member without a verdict on an item is left out of that item's median. An
item is unscored unless more than half of the members have a verdict. The details hold each member's
preference.
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
    """`members`: verdicts by the member's label, one per item."""

    members: Mapping[str, Sequence[Verdict]]
    name: str = "jury"
    against_baseline: ClassVar = False

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        by_item = {
            label: {verdict.item_id: verdict for verdict in verdicts}
            for label, verdicts in self.members.items()
        }
        for completion in completions:
            verdicts = {
                label: known[completion.id] for label, known in by_item.items() if completion.id in known
            }
            yield self._verdict(completion.id, verdicts)

    def _verdict(self, item_id: str, verdicts: Mapping[str, Verdict]) -> Verdict:
        preferences = {
            label: v.preference for label, v in sorted(verdicts.items()) if v.preference is not None
        }
        fullest = max(
            verdicts.values(),
            key=lambda v: (v.preference is not None, v.policy_digest is not None),
            default=None,
        )
        about = (
            Verdict(item_id, self.name, unscored="no member has judged it")
            if fullest is None
            else replace(fullest, judge=self.name)
        )
        about = replace(
            about, preference=None, rating=None, raw=None, calls=[], details=preferences or None, unscored=""
        )
        if 2 * len(preferences) <= len(self.members):
            why = "; ".join(
                f"{label}: {verdicts[label].unscored if label in verdicts else 'no verdict'}"
                for label in sorted(self.members)
                if label not in preferences
            )
            return replace(
                about, unscored=f"{len(preferences)} of {len(self.members)} members have a verdict ({why})"
            )
        return replace(about, preference=statistics.median(preferences.values()), unscored=None)


def make_judge(settings: JurySettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> Jury:
    paths = {label: path for role, path in inputs.items() if (label := member_label(role))}
    return Jury({label: preference_verdicts(path) for label, path in paths.items()})
