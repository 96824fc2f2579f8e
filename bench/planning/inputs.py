"""What a plan is made of: sources outside the store, stages that cells share, a policy, a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.config import Cell
from bench.store.keys import Input, Source, Stage


@dataclass(frozen=True)
class JudgeSources:
    """What a judge that is no function of the world reads from outside the store."""

    prompts: Source | None  # what it is asked with, and how its replies are read; None of one that is a function
    parser: str  # version of that reading
    model: Source | None = None  # its folder, where it is served here
    files: Mapping[str, Source] = field(default_factory=dict)  # items, references, baseline
    n_items: int = 0  # that `items` holds
    calibration: Source | None = None  # of length control
    members: Mapping[str, JudgeSources] = field(default_factory=dict)  # of a jury, less those that read nothing


@dataclass(frozen=True)
class Sources:
    """What a cell reads from outside the store."""

    model: Source | None = None
    data: Source | None = None
    completions: Source | None = None
    judge: JudgeSources | None = None
    base: Source | None = None  # what the model was tuned from
    labelling_judge: JudgeSources | None = None
    prompts: Source | None = None  # new ones of a loop
    conversations: Source | None = None  # that a start model learns from
    tasks: Source | None = None  # own ones of the forgetting check


@dataclass(frozen=True)
class Ground:
    """What cells of one model, data and seed share."""

    start: Input
    preferences: Stage
    reference: Stage  # log-probs of the start model, on train and held-out rows
    kl_prompts: Stage
    base: Input | None = None  # what the start model was tuned from; None where nobody says
    labelling_judge: JudgeSources | None = None
    prompts: Source | None = None  # new ones of a loop, where a file brings them


@dataclass(frozen=True)
class CellPlan:
    cell: Cell
    key: str
    name: str
    score: Stage
    roles: dict[str, Stage]  # the stages whose files the tables, the tracker and the reader want, by role

    @property
    def stages(self) -> list[Stage]:
        return list(self.score.walk())


@dataclass(frozen=True)
class Policy:
    """What a method hands over to be judged: the model that writes, how it is asked, and who chooses among `best_of` samples of it."""

    model: Input
    train: Stage | None  # its last training; None where nothing was trained
    control: str | None = None  # token after every prompt, whatever is asked or scored; engines refuse the model without it
    reward_model: Input | None = None
    best_of: int = 1
    labels: Sequence[Stage] = ()  # of the pairs that its last training read, where a loop made them; the loop's latest last
    self_judge: Stage | None = None  # how well it judges, where that is asked


def all_stages(cells: Iterable[CellPlan]) -> list[Stage]:
    """Every stage of the cells, each once, inputs before what reads them."""
    return list(dict.fromkeys(stage for cell in cells for stage in cell.stages))


Chain = Callable[[Cell, Ground], Policy]
