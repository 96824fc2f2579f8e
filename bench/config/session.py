"""How a command runs - verb, launcher, tracker, folders: nothing of it reaches a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.config.base import Count, Name, Positive, Probability, Settings


class Verb(Settings):
    """What to do with the cells."""

    name: Literal["run", "plan", "report", "status", "conformance"]


class Why(Settings):
    """How a cell came to be. Its key needs no `do.` on the command line: `do=why cell=KEY`."""

    name: Literal["why"]
    cell: str | None


class Rescore(Settings):
    """Tables again from stored verdicts, with no judge. Its keys need no `do.` on the command line: `do=rescore judgements=DIR`."""

    name: Literal["rescore"]
    judgements: str | None
    reference_outputs: str | None
    calibration: str | None
    out: str | None
    max_unscored: Probability


class Audit(Settings):
    """A judge's passport. Its keys need no `do.` either: `do=audit judge=... n_items=50`."""

    name: Literal["audit"]
    n_items: Annotated[int, Field(ge=4)]
    n_canaries: Annotated[int, Field(ge=2)]
    n_labelled: Annotated[int, Field(ge=2)]
    human: str | None
    recorded: str | None
    out: str | None


FITTED = "fitted"  # a calibration: item difficulties from the other rows of the table

# Keys of a verb that are typed without its section.
VERB_KEYS = frozenset(Rescore.model_fields | Why.model_fields | Audit.model_fields) - {"name"}


class WandbTracker(Settings):
    name: Literal["wandb"]
    project: str = Field(min_length=1)
    entity: str | None
    mode: Literal["auto", "online", "offline"]  # auto: online when a key is configured
    timeout_s: Positive  # the longest that the tracker may hold up a sweep


class NoTracker(Settings):
    name: Literal["none"]


class LocalLauncher(Settings):
    """Long-lived worker processes on this machine."""

    name: Literal["local"]
    workers: Count | None  # None: one a GPU, or one a core where there is none
    threads: Count  # a worker's; recorded, not keyed
    stage_timeout_s: Positive
    retries: int = Field(ge=0)  # of a stage whose worker died


class Accelerate(Settings):
    """How one training is spread over devices, and how often it leaves a checkpoint. `config` is accelerate's own, and checked by it."""

    name: Name
    devices: Count
    checkpoint_s: Positive
    config: dict[str, Any]


class Session(Settings):
    do: Verb | Rescore | Why | Audit = Field(discriminator="name")
    tracker: WandbTracker | NoTracker = Field(discriminator="name")
    launcher: LocalLauncher
    accelerate: Accelerate
    results: str | None

    @property
    def results_dir(self) -> Path:
        return Path(self.results or os.environ.get("BENCH_RESULTS") or "results").expanduser().absolute()


class Expectation(Settings):
    """An order by win rate of two groups of a sweep's cells, named before it ran; each side is written as axes are."""

    better: dict[str, Any]
    worse: dict[str, Any]
