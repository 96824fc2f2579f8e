"""Where stages run: a launcher takes stages whose inputs are done and tells what became of each."""

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
    """What became of a stage: `lost` when its worker died, so that trying again makes sense."""

    key: str
    outcome: Outcome
    error: str = ""


class Launcher(Protocol):
    def can_take(self, needs: Need) -> bool:
        """Whether it can take one more stage with these needs now."""
        ...

    def start(self, job: Mapping[str, Any], log: Path) -> None:
        """Take a stage as `describe` puts it; it runs soon, and others may be handed in before it does."""
        ...

    def reports(self, timeout_s: float) -> Sequence[StageReport]:
        """What became of stages since the last call; waits up to `timeout_s` for the first."""
        ...

    def close(self) -> None:
        """End what still runs."""
        ...


def chain_lengths(stages: Sequence[Stage], seconds: Callable[[Stage], float]) -> dict[Stage, float]:
    """Seconds from the start of each stage to the end of the longest chain of stages that waits for it; inputs come first."""
    after: dict[Stage, float] = {}
    for stage in reversed(stages):
        after[stage] = after.get(stage, 0.0) + seconds(stage)
        for source in stage.input_stages:
            after[source] = max(after.get(source, 0.0), after[stage])
    return {stage: after[stage] for stage in stages}
