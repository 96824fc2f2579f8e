"""No method: the start model as it is, judged like the others.

Every sweep has this row for each start model.
"""

from __future__ import annotations

from bench.config import Cell
from bench.planning.inputs import Ground, Policy


def chain(cell: Cell, ground: Ground) -> Policy:
    return Policy(ground.start, None)
