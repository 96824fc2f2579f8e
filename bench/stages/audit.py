"""What a judge's verdicts say about the judge (bench/audit.py), in a file: values with their intervals, or why there is none."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import audit, stats
from bench.canaries import canary_of
from bench.kinds import AuditSettings
from bench.records import HumanLabel, Verdict, preference_verdicts, read_jsonl
from bench.worker import Outcome, StageRun


def run(settings: AuditSettings, run: StageRun) -> Outcome:
    """Inputs: verdicts; again, gold, human, recorded, recorded_verdicts, canary_verdicts where there are such."""
    _check_served(run.inputs)
    verdicts = _verdicts(run.inputs["verdicts"])
    again = _verdicts(run.inputs["again"]) if "again" in run.inputs else None
    truths = _truths(settings, run.inputs, verdicts)
    # What length does at equal quality is asked of the truth that is fullest.
    fullest = max((truth for truth, _ in truths.values()), key=len, default=None)
    found = {
        "statistics": _plain(audit.verdict_statistics(verdicts, again, fullest)),
        "truths": {name: _against(verdicts, *truth) for name, truth in truths.items()},
        "canaries": _canaries(_verdicts(run.inputs["canary_verdicts"])),
    }
    if "recorded" in run.inputs:
        recorded = {v.item_id: v.preference for v in _verdicts(run.inputs["recorded"]) if v.preference is not None}
        own = _verdicts(run.inputs["recorded_verdicts"])
        found["recorded"] = _plain(audit.truth_statistics(own, recorded))
    (run.out / "passport.json").write_text(json.dumps(found, indent=1, allow_nan=False))
    return Outcome({"verdicts": len(verdicts)})


def _check_served(inputs: Mapping[str, Path]) -> None:
    """Raises ValueError where one audit's verdicts came from two models: an alias has moved on between them."""
    served: dict[str, list[str]] = {}
    for role in ("verdicts", "again", "canary_verdicts", "recorded_verdicts"):
        for verdict in read_jsonl(inputs[role] / "verdicts.jsonl", Verdict) if role in inputs else ():
            for call in verdict.calls:
                if call.served and str(inputs[role]) not in served.setdefault(call.served, []):
                    served[call.served].append(str(inputs[role]))
    if len(served) > 1:
        where = "; ".join(f"{model} in {', '.join(folders)}" for model, folders in sorted(served.items()))
        raise ValueError(f"verdicts of two models are not pooled: name one of them as judge.model, or delete the folders of one ({where})")


def _verdicts(folder: Path) -> list[Verdict]:
    return preference_verdicts(folder / "verdicts.jsonl")


def _truths(
    settings: AuditSettings, inputs: Mapping[str, Path], verdicts: Sequence[Verdict]
) -> dict[str, tuple[audit.Truth, audit.Truth]]:
    """(all that is known, the labels that a correction may use), by who says so. Of the world's truth a seeded sample is used, as if
    labels were dear."""
    found: dict[str, tuple[audit.Truth, audit.Truth]] = {}
    if "gold" in inputs:
        gold = {v.item_id: v.preference for v in _verdicts(inputs["gold"]) if v.preference is not None}
        some = random.Random("labelled").sample(sorted(gold), min(settings.n_labelled, len(gold)))
        found["gold"] = gold, {item: gold[item] for item in some}
    if "human" in inputs:
        labels = {label.item_id: label.preference for label in read_jsonl(inputs["human"], HumanLabel)}
        known = {v.item_id: labels[v.item_id] for v in verdicts if v.item_id in labels}
        if not known:
            raise ValueError(
                f"human: none of the {len(labels)} labels is about one of the {len(verdicts)} judged items; the first label is of "
                f"{next(iter(labels))}, the first item is {verdicts[0].item_id}"
            )
        found["human"] = known, known
    return found


def _against(verdicts: Sequence[Verdict], truth: audit.Truth, labelled: audit.Truth) -> dict[str, Any]:
    return _plain(
        {
            **audit.truth_statistics(verdicts, truth),
            "true_win_rate": audit.truth_win_rate(truth),
            "corrected_win_rate": audit.corrected_win_rate(verdicts, labelled),
        }
    )


def _canaries(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    by_name: dict[str, list[float | None]] = {}
    for verdict in verdicts:
        by_name.setdefault(canary_of(verdict.item_id), []).append(verdict.preference)
    rates = {name: stats.win_rate(preferences, np.random.default_rng(0)) for name, preferences in by_name.items()}
    return _plain({name: rate or stats.Unmeasured("no verdict on it could be read") for name, rate in rates.items()})


def _plain(found: Mapping[str, audit.Found]) -> dict[str, Any]:
    return {
        name: {"unmeasured": value.reason} if isinstance(value, stats.Unmeasured) else dataclasses.asdict(value)
        for name, value in found.items()
    }
