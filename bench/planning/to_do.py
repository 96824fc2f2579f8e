"""Sorts the stages of a sweep's cells into done and still to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.planning.inputs import CellPlan
from bench.store.keys import Stage
from bench.store.store import Status, Store


@dataclass(frozen=True)
class Plan:
    """Cells with the status of every stage they need."""

    cells: list[CellPlan]
    statuses: dict[Stage, Status]  # Only needed stages, in an order in which they can run.

    @property
    def to_do(self) -> list[Stage]:
        return [stage for stage, status in self.statuses.items() if status.state != "done"]

    @property
    def done(self) -> list[Stage]:
        return [stage for stage, status in self.statuses.items() if status.state == "done"]


def make_plan(cells: Sequence[CellPlan], store: Store) -> Plan:
    """The status of every stage that the cells need.

    A done stage does not need its inputs, even when their files were deleted.
    """
    statuses: dict[Stage, Status] = {}
    order: dict[Stage, None] = {}

    def need(stage: Stage, held: bool) -> None:
        """Add a stage and, unless it is done, its inputs.

        `held`: its files will be read, so evicted weights must be made again.
        """
        if stage in statuses and (not held or statuses[stage].state != "done"):
            return
        statuses[stage] = store.status_with_weights(stage) if held else store.status(stage)
        if statuses[stage].state != "done":
            for source in stage.input_stages:
                need(source, held=True)
        order.pop(stage, None)
        order[stage] = None

    for cell in cells:
        for role in [*cell.roles.values(), cell.score]:
            need(role, held=False)
    return Plan(list(cells), {needed: statuses[needed] for needed in order})
