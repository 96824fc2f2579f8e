"""A cell's numbers item by item, for paired comparisons between cells.

Items are those over which a number is a mean: prompts for the length-controlled rate, questions for ratings,
held-out pairs for reward_accuracy, samples for the KL, documents for a task. The win rate's items are its
verdicts' preferences, and are not here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.records import (
    Pair,
    TaskAnswer,
    TaskResult,
    Verdict,
    grouped,
    read_jsonl,
    read_logps,
    read_rewards,
    read_rows,
    read_verdicts,
    task_number,
)
from bench.stats.estimates import Unmeasured
from bench.stats.length_control import Calibration, contributions_of_verdicts, lc_name

Items = dict[str, float | None]


def by_item(
    metrics: Mapping[str, float],
    inputs: Mapping[str, Path],
    verdicts: Sequence[Verdict],
    calibration: Calibration | Unmeasured | None,
) -> dict[str, Items]:
    """Values by name of the number, then by item. A number that the cell lacks, or whose inputs are gone, is not there.

    `inputs`: the folders of its score stage's inputs that exist, by role.
    """
    return {name: items for name, items in _all(metrics, inputs, verdicts, calibration) if items}


def _all(
    metrics: Mapping[str, float],
    inputs: Mapping[str, Path],
    verdicts: Sequence[Verdict],
    calibration: Calibration | Unmeasured | None,
) -> list[tuple[str, Items]]:
    found: list[tuple[str, Items]] = []
    if not isinstance(calibration, Unmeasured):
        controlled = contributions_of_verdicts(verdicts, calibration)
        found.append((lc_name(calibration), {} if isinstance(controlled, Unmeasured) else controlled))
    if "rating_verdicts" in inputs:
        found.append(("rating", ratings(read_verdicts(inputs["rating_verdicts"]))))
    if "reward_accuracy" in metrics:
        found.append(("reward_accuracy", _right(inputs)))
    if "kl" in metrics and {"kl_policy_logps", "kl_reference_logps"} <= inputs.keys():
        policy, reference = (read_logps(inputs[f"kl_{side}_logps"]) for side in ("policy", "reference"))
        found.append(("kl", {name: policy[name].logps - reference[name].logps for name in policy}))
    if "tasks" in inputs:
        found += _tasks(inputs["tasks"])
    return found


def ratings(verdicts: Sequence[Verdict]) -> Items:
    """Mean rating of each item's turns; None where a turn has none."""
    by_question = grouped((v.item_id, v.rating) for v in verdicts)
    return {
        item: None if None in rated else statistics.fmean(r for r in rated if r is not None)
        for item, rated in by_question.items()
    }


def _right(inputs: Mapping[str, Path]) -> Items:
    """1 for a held-out pair whose chosen completion has the larger reward, 0 for the others, 0.5 for a tie."""
    if "preferences" not in inputs or not (
        "rewards" in inputs or {"policy_logps", "reference_logps"} <= inputs.keys()
    ):
        return {}
    if "rewards" in inputs:
        rewards = read_rewards(inputs["rewards"])
    else:
        policy, reference = (read_logps(inputs[f"{side}_logps"]) for side in ("policy", "reference"))
        rewards = {name: policy[name].logps - reference[name].logps for name in policy}
    sides = ("chosen", "rejected")
    items: Items = {}
    for row in read_rows(inputs["preferences"] / "heldout.jsonl"):
        assert isinstance(row, Pair)
        chosen, rejected = (rewards[f"heldout/{row.id}/{side}"] for side in sides)
        items[row.id] = float(np.sign(chosen - rejected) + 1) / 2
    return items


def _tasks(folder: Path) -> list[tuple[str, Items]]:
    """Documents of the shown tasks whose number is the mean over documents."""
    answers = grouped(
        ((answer.task, metric if answer.how == "none" else f"{metric}_{answer.how}"), (answer, metric))
        for answer in read_jsonl(folder / "answers.jsonl", TaskAnswer)
        for metric in answer.values
    )
    found: list[tuple[str, Items]] = []
    for result in read_jsonl(folder / "results.jsonl", TaskResult):
        some = answers.get((result.task, result.metric), ())
        items: Items = {str(answer.document): answer.values[metric] for answer, metric in some}
        values = [value for value in items.values() if value is not None]
        is_mean = (
            values
            and result.value is not None
            and math.isclose(statistics.fmean(values), result.value, rel_tol=1e-9, abs_tol=1e-12)
        )
        if result.shown and is_mean:
            found.append((task_number(result.task, result.metric), items))
    return found
