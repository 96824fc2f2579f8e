"""The interface of a launcher: it takes stages that are ready, runs them, and reports each outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from bench.store.keys import Stage
from bench.store.stage_settings import Need

Outcome = Literal["done", "failed", "over_budget", "lost", "late"]


@dataclass(frozen=True)
class StageReport:
    """The outcome of a stage.

    `lost`: its worker died, and another attempt may succeed. `late`: it ran beyond its time limit.
    """

    key: str
    outcome: Outcome
    error: str = ""


class Launcher(Protocol):
    """Runs stages in worker processes or as jobs of a cluster."""

    def can_take(self, needs: Need) -> bool:
        """Whether one more stage with these needs can start now."""
        ...

    def start(self, job: Mapping[str, Any], log: Path) -> None:
        """Take a stage that worker.describe has described. It starts now, or soon together with others."""
        ...

    def reports(self, timeout_s: float) -> Sequence[StageReport]:
        """Reports of the stages that ended since the last call. Waits up to `timeout_s` for the first."""
        ...

    def close(self) -> None:
        """End all stages that still run."""
        ...


def chain_lengths(stages: Sequence[Stage], seconds: Callable[[Stage], float]) -> dict[Stage, float]:
    """Seconds from the start of each stage to the end of the longest chain of stages that depends on it.

    `stages` must list inputs before their readers.
    """
    after: dict[Stage, float] = {}
    for stage in reversed(stages):
        after[stage] = after.get(stage, 0.0) + seconds(stage)
        for source in stage.input_stages:
            after[source] = max(after.get(source, 0.0), after[stage])
    return {stage: after[stage] for stage in stages}
