"""What of the cells' stages is done, and what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.planning.inputs import CellPlan
from bench.store.keys import Stage
from bench.store.store import Status, Store


@dataclass(frozen=True)
class Plan:
    cells: list[CellPlan]
    statuses: dict[Stage, Status]  # of the stages that the cells need, in an order in which they could run

    @property
    def to_do(self) -> list[Stage]:
        return [stage for stage, status in self.statuses.items() if status.state != "done"]

    @property
    def done(self) -> list[Stage]:
        return [stage for stage, status in self.statuses.items() if status.state == "done"]


def make_plan(cells: Sequence[CellPlan], store: Store) -> Plan:
    """What is needed and what of it is done. Inputs of a done stage are not needed, even when they are gone."""
    statuses: dict[Stage, Status] = {}
    order: dict[Stage, None] = {}

    def need(stage: Stage, held: bool) -> None:
        """`held`: its files are going to be read, so evicted weights have to be made again."""
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
