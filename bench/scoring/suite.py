"""Numbers of a policy with several evaluations: those of its training once, each evaluation's as LABEL/NAME."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from bench.records import Result

# Names of numbers that no evaluation changes, with the endings that bench/scoring/numbers.py gives them.
OF_TRAINING = re.compile(
    r"kl(_\w+)?|reward_(?!best)\w+|logps_\w+|shift_\w+|label_accuracy\w*|noise_\w+|judge_\w+|tasks/.*"
)
V = TypeVar("V", float, str)


def is_of_training(name: str) -> bool:
    """Whether a number is one of the training, or of the tasks that a policy was run on, by its name."""
    return OF_TRAINING.fullmatch(name) is not None


def joined(results: Mapping[str, Result]) -> Result:
    """The numbers of all evaluations by label, and the reasons of missing ones.

    A number of the training that is not the same in all evaluations (KL at another length) is each one's own.
    """
    metrics = _joined({label: result.metrics for label, result in results.items()})
    missing = _joined({label: result.missing for label, result in results.items()})
    return Result(metrics, dict(sorted(missing.items())))


def _joined(values: Mapping[str, Mapping[str, V]]) -> dict[str, V]:
    once: dict[str, V] = {}
    own: dict[str, V] = {}
    for label, named in values.items():
        for name, value in named.items():
            others = (other.get(name) for other in values.values())
            if is_of_training(name) and all(other == value for other in others):
                once[name] = value
            else:
                own[f"{label}/{name}"] = value
    return own | once
