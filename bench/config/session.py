"""How a command runs - verb, launcher, tracker, folders: nothing of it reaches a key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.config.base import AsList, Count, Name, Positive, Probability, Settings


class Verb(Settings):
    """What to do with the cells."""

    name: Literal["run", "report", "status", "verify", "conformance"]


class PlanVerb(Settings):
    """What would run. Its key needs no `do.` on the command line: `do=plan size=cells`."""

    name: Literal["plan"]
    size: Literal["auto", "stages", "cells"]


class Why(Settings):
    """How a cell came to be. Its key needs no `do.` on the command line: `do=why cell=KEY`."""

    name: Literal["why"]
    cell: str | None


class Export(Settings):
    """A cell's model as a folder with a card. Its keys need no `do.` either: `do=export cell=KEY out=DIR`."""

    name: Literal["export"]
    cell: str | None
    out: str | None


class Bundle(Settings):
    """A sweep as one archive, from which its tables can be made: `do=bundle +sweep=... out=FILE.tar.gz`."""

    name: Literal["bundle"]
    out: str | None


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
    plan: bool  # say what it would ask and cost, and ask nothing
    out: str | None


FITTED = "fitted"  # a calibration: item difficulties from the other rows of the table

# Keys of a verb that are typed without its section.
VERB_KEYS = frozenset(Rescore.model_fields | Why.model_fields | Audit.model_fields | PlanVerb.model_fields) - {"name"}


class WandbTracker(Settings):
    name: Literal["wandb"]
    project: str | None = Field(min_length=1)  # None: WANDB_PROJECT, else bench
    entity: str | None
    mode: Literal["auto", "online", "offline"]  # auto: online when a key is configured
    timeout_s: Positive  # the longest that the tracker may hold up a sweep


class NoTracker(Settings):
    name: Literal["none"]


class AnyLauncher(Settings):
    threads: Annotated[int, Field(ge=1, le=1024)]  # a worker's; recorded, not keyed
    stage_timeout_s: Positive  # of a stage that runs where the command was typed
    retries: int = Field(ge=0)  # of a stage whose worker died
    workers_per_core: Count = 4  # processes here; more of them are refused


class LocalLauncher(AnyLauncher):
    """Long-lived worker processes on this machine."""

    name: Literal["local"]
    workers: Count | None  # None: one a GPU, or one a core where there is none


StageKind = Literal["data", "sft", "sample", "label", "logps", "train", "generate", "judge", "score", "audit", "tasks"]


class Resources(Settings):
    """What a stage is given on a cluster."""

    gpus: int = Field(ge=0)
    cpus: Count
    mem_gb: Positive | None  # None: the cluster's default
    time_min: Count


class ResourceChanges(Settings):
    """What differs for a kind of stage."""

    gpus: int | None = Field(None, ge=0)
    cpus: Count | None = None
    mem_gb: Positive | None = None
    time_min: Count | None = None


class SlurmResources(Resources):
    partition: str | None
    account: str | None


class SlurmChanges(ResourceChanges):
    partition: str | None = None
    account: str | None = None


class ClusterLauncher(AnyLauncher):
    """Stages that load a model are jobs on other machines; those that need the network run where the command was typed."""

    max_jobs: Count  # in the queue at once, waiting ones included
    queue_cpu: bool  # whether stages that load no model are jobs too; else they run where the command was typed
    here_workers: Count  # processes for the stages that do
    env: dict[str, str]  # variables that the workers on the nodes get
    gpu: Resources  # of a stage that loads a model
    cpu: Resources
    stages: Mapping[StageKind, ResourceChanges]

    def resources(self, kind: str, needs: Literal["cpu", "gpu"]) -> Resources:
        """What a stage of a kind is given."""
        changes = self.stages.get(kind)  # type: ignore[call-overload]  # kinds of tests are none of ours
        return (self.gpu if needs == "gpu" else self.cpu).model_copy(update=changes.model_dump(exclude_unset=True) if changes else {})


class SlurmLauncher(ClusterLauncher):
    name: Literal["slurm"]
    gpu: SlurmResources
    cpu: SlurmResources
    stages: Mapping[StageKind, SlurmChanges]
    requeues: int = Field(ge=0)  # of a job that has reached its time limit
    signal_delay_s: Count  # so long before the limit a job is told
    poll_s: Positive  # how often squeue is asked about jobs that have not answered
    setup: Annotated[tuple[str, ...], AsList]  # shell lines that a job begins with
    sbatch: dict[str, str | int | bool]  # further parameters of sbatch


class RayLauncher(ClusterLauncher):
    name: Literal["ray"]
    address: str | None  # of a running cluster; None: one is started on this machine
    runtime_env: dict[str, Any]  # Ray's own; `env` is added


class Accelerate(Settings):
    """How one training is spread over devices, and how often it leaves a checkpoint. `config` is accelerate's own, and checked by it."""

    name: Name
    devices: Count
    sharding: Literal["none", "zero2", "zero3"]  # how much of a training each device holds a part of: what do=plan reckons with
    checkpoint_s: Positive
    config: dict[str, Any]

    @property
    def gpus(self) -> int:
        """GPUs that a worker is given."""
        return 1 if self.config.get("use_cpu") else self.devices


class Hardware(Settings):
    """The GPU that do=plan reckons with, and how a training is spread over several."""

    name: Name
    peak_tflops: Positive  # dense bfloat16
    memory_gb: Positive
    bandwidth_gbs: Positive
    price_per_hour: Annotated[float, Field(ge=0)] | None
    mfu: Annotated[float, Field(gt=0, le=1)]  # share of the peak that training and log-probs reach
    mbu: Annotated[float, Field(gt=0, le=1)]  # share of the bandwidth that writing reaches
    devices: Count
    sharding: Literal["none", "zero2", "zero3"]


MAX_CELLS = 10_000  # as conf/config.yaml has it; composing as many takes ten minutes

Keep = Literal["weights", "adapters", "numbers"]  # what stays of a trained model once its numbers are in


def user_path(path: str | Path) -> Path:
    """A path as a person writes it, `~` read as a shell reads it: of a user who is not known here it stays as written, and is not there."""
    return Path(os.path.expanduser(path)).absolute()


class Bounds(Settings):
    """What a model's files may ask for: sizes in its config.json, and seconds for a first look at its chat template."""

    layers: Count
    width: Count
    heads: Count
    experts: Count
    vocabulary: Count
    positions: Count
    template_s: Positive


class Session(Settings):
    do: Verb | PlanVerb | Rescore | Why | Audit | Export | Bundle = Field(discriminator="name")
    tracker: WandbTracker | NoTracker = Field(discriminator="name")
    launcher: LocalLauncher | SlurmLauncher | RayLauncher = Field(discriminator="name")
    accelerate: Accelerate
    results: str | None
    keep: Keep
    bounds: Bounds
    hardware: Hardware
    max_cells: Count  # of a command; what asks for more is refused before any is made

    @property
    def results_dir(self) -> Path:
        return user_path(self._results)

    @property
    def _results(self) -> str:
        return self.results or os.environ.get("BENCH_RESULTS") or "results"

    @property
    def results_problem(self) -> str | None:
        """Why there can be no results folder, or None."""
        if os.path.expanduser(self._results).startswith("~"):
            return f"results={self._results} is in the home of a user who is not known here: set results=DIR or BENCH_RESULTS"
        return f"results holds a NUL character, got {self._results!r}" if "\0" in self._results else None


class Expectation(Settings):
    """An order by win rate of two groups of a sweep's cells, named before it ran; each side is written as axes are."""

    better: dict[str, Any]
    worse: dict[str, Any]
