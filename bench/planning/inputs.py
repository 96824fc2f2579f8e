"""Parts of a plan: sources outside the store, stages that cells share, a policy, a planned cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.config import Cell, evaluated
from bench.store.keys import Input, Source, Stage


@dataclass(frozen=True)
class JudgeSources:
    """Files from outside the store for a judge other than the gold judge."""

    # Prompt templates of a language model; None for a judge that is a function of the texts.
    prompts: Source | None
    parser: str  # Version of the code that reads replies.
    model: Source | None = None  # The model folder, for a judge that runs on this machine.
    files: Mapping[str, Source] = field(default_factory=dict)  # By role: items, references, baseline.
    n_items: int = 0  # Number of items in the file `items`.
    calibration: Source | None = None  # For length control.
    # Members of a jury and evaluations of a suite, by label. The gold judge reads nothing and is left out.
    members: Mapping[str, JudgeSources] = field(default_factory=dict)


@dataclass(frozen=True)
class Sources:
    """Files from outside the store that a cell reads."""

    model: Source | None = None
    data: Source | None = None
    completions: Source | None = None
    judge: JudgeSources | None = None
    base: Source | None = None  # The base model from which `model` was fine-tuned.
    labelling_judge: JudgeSources | None = None
    of_method: Mapping[str, Source] = field(
        default_factory=dict
    )  # Files and models of its settings, by name.
    conversations: Source | None = None  # Data for supervised fine-tuning (SFT) of the start model.
    tasks: Source | None = None  # The user's own tasks for the forgetting check.
    mixture: Mapping[str, Source] = field(default_factory=dict)  # Sources of data=mixture by label.


@dataclass(frozen=True)
class Ground:
    """Stages shared by all cells with the same model, data and seed."""

    start: Input
    preferences: Stage
    reference: Stage  # The start model's log-probs on train and held-out rows.
    kl_prompts: Stage
    base: Input | None = None  # The model from which the start model was fine-tuned; None if unknown.
    labelling_judge: JudgeSources | None = None
    prompts: Input | None = None  # New prompts for an iterative method, if a file or conversations have them.
    of_method: Mapping[str, Source] = field(
        default_factory=dict
    )  # Files and models of its settings, by name.


@dataclass(frozen=True)
class CellPlan:
    """A cell with its key, its folder name and its stages."""

    cell: Cell
    key: str
    name: str
    score: Stage
    roles: dict[str, Stage]  # By role: stages whose files tables, trackers and readers open.
    # The evaluations of a suite by label, each planned as the cell with that judge alone.
    evaluations: Mapping[str, CellPlan] = field(default_factory=dict)

    @property
    def stages(self) -> list[Stage]:
        return list(self.score.walk())


@dataclass(frozen=True)
class Policy:
    """A method's result, ready to be judged: a model, its control token, and its best-of-n selection.

    With `best_of` > 1 the reward model chooses one of `best_of` samples.
    """

    model: Input
    train: Stage | None  # The last training stage; None if nothing was trained.
    control: str | None = None  # Token appended to every prompt (CSFT). Engines refuse the model without it.
    reward_model: Input | None = None
    best_of: int = 1
    # Labels of the pairs in an iterative method's last training, oldest iteration first.
    labels: Sequence[Stage] = ()
    previous: Input | None = None  # The policy of the iteration before; None without iterations.
    self_judge: Stage | None = None  # Measures how well the policy judges (self-rewarding methods).


def single(cells: Iterable[CellPlan]) -> list[CellPlan]:
    """The cells with one judge each: a cell with a suite gives way to its evaluations."""
    return [one for cell in cells for one in (cell.evaluations.values() or (cell,))]


def evaluation_of(cells: Iterable[CellPlan]) -> dict[Stage, str]:
    """The evaluation of each judge stage, by label."""
    return {
        stage: label
        for cell in cells
        for label, plan in cell.evaluations.items()
        for stage in plan.stages
        if stage.kind == "judge"
    }


def evaluated_sources(cell: Cell, sources: Sources) -> dict[str, tuple[Cell, Sources]]:
    """Each evaluation of a cell with the files that it reads, by label; "" where the cell has one judge."""
    cells = evaluated(cell)
    if "" in cells:
        return {"": (cell, sources)}
    members = sources.judge.members if sources.judge else {}
    return {label: (one, replace(sources, judge=members.get(label))) for label, one in cells.items()}


def all_stages(cells: Iterable[CellPlan]) -> list[Stage]:
    """Every stage of the cells once, inputs before the stages that read them."""
    return list(dict.fromkeys(stage for cell in cells for stage in cell.stages))


Chain = Callable[[Cell, Ground], Policy]
