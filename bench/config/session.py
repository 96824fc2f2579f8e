"""Settings of how a command runs (command, launcher, tracker, folders); no key has any of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.config.base import AsList, Count, Name, Positive, Probability, Settings


class Verb(Settings):
    """A command on cells that has no settings of its own."""

    name: Literal["run", "report", "status", "verify", "conformance", "scoreboard"]


class PlanVerb(Settings):
    """Shows the stages that would run. Its key needs no `do.` on the command line: `do=plan size=cells`."""

    name: Literal["plan"]
    size: Literal["auto", "stages", "cells"]
    """Size of the plan (tokens, FLOPs, memory, GPU-hours, disk on the GPU of hardware=): auto (pretrained
    models, by kind of stage), stages (the controlled world's too), cells (cell by cell)."""


class View(Settings):
    """Serves the page of a sweep on this machine. Its key needs no `do.` on the command line: `do=view
    port=8765`."""

    name: Literal["view"]
    port: Annotated[int, Field(ge=0, le=65535)]
    """Port on 127.0.0.1; 0 takes a free one. Name one to reach it through `ssh -L PORT:127.0.0.1:PORT`."""


class Why(Settings):
    """Tells how a cell was made. Its key needs no `do.` on the command line: `do=why cell=KEY`."""

    name: Literal["why"]
    cell: str | None
    """Key or name of the cell, as in table.csv."""


# OWNER/NAME, as the hub allows it.
Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96)]


class Export(Settings):
    """Writes a cell's model as a folder with a model card. Its keys need no `do.`: `do=export cell=KEY
    out=DIR`."""

    name: Literal["export"]
    cell: str | None
    """Key or name of the cell, as in table.csv."""
    out: str | None
    """New or empty folder for the model."""
    push: Repository | None
    """Repository of the Hugging Face hub for the model, OWNER/NAME; null: nothing is uploaded."""
    push_data: Repository | None
    """Repository for a dataset of the cell's labels, completions and verdicts, OWNER/NAME; null: none."""
    push_page: Repository | None
    """Repository for a static Space with the page of the cell's sweep, OWNER/NAME; null: none."""
    private: bool
    """Whether repositories that a push makes are private."""


class Bundle(Settings):
    """Packs a sweep into one archive that its tables can be made from: `do=bundle +sweep=...
    out=FILE.tar.gz`."""

    name: Literal["bundle"]
    out: str | None
    """Path of the archive, FILE.tar.gz."""


class Rescore(Settings):
    """Computes tables again from stored verdicts, with no judge. Its keys need no `do.` on the command line:
    `do=rescore judgements=DIR`."""

    name: Literal["rescore"]
    judgements: str | None
    """Verdicts to read: a folder in AlpacaEval's layout, or a file of FastChat's judgements (.jsonl); null:
    the sweep's own in the store. The folder holds MODEL/ANNOTATOR/annotations.json and
    MODEL/model_outputs.json; the judgements are single or pairwise; each file may be gzipped."""
    reference_outputs: str | None
    """File of the items in evaluation order with the baseline's outputs, as AlpacaEval has them; null: none.
    """
    calibration: str | None
    """Length control's prior knowledge: AlpacaEval's df_gamed.csv or a file with its columns; fitted: item
    difficulties from the other rows of the table; null: neither, and no official length-controlled win rate.
    """
    out: str | None
    """CSV file for the rows; for recorded models, comparisons between them go beside it, to NAME_pairs.csv.
    null: the table is only printed."""
    max_unscored: Probability
    """Largest share of unreadable or failed verdicts of a model, 0 to 1; a model with more is refused.
    FastChat's own retries leave at most 1 %, and a tenth missing can move an average by more than most
    published differences."""


class Audit(Settings):
    """Measures a judge and writes its passport. Its keys need no `do.`: `do=audit judge=... n_items=50`."""

    name: Literal["audit"]
    n_items: Annotated[int, Field(ge=4)]
    """Number of items to judge, 4 or more. A pair takes four requests (two orders, twice); an item that is
    rated takes two for each turn."""
    n_canaries: Annotated[int, Field(ge=2)]
    """Number of items for each of the six canaries, 2 or more. A canary (bench/judges/canaries.py) must lose
    in both orders, or be rated below the honest completion."""
    n_labelled: Annotated[int, Field(ge=2)]
    """Number of the world's items whose truth corrects the win rate or rating, 2 or more."""
    human: str | None
    """JSONL file of human labels of a random part of the items; null: none. A line has item_id and preference
    (for the policy, in [0, 1]) or, for a judge that rates, item_id, turn (0 or 1) and rating (1 to 10)."""
    recorded: str | None
    """Recorded verdicts to judge again and compare: a folder in AlpacaEval's layout, or a file of FastChat's
    judgements; null: none. The folder holds MODEL/ANNOTATOR/annotations.json with both texts; the file
    (.jsonl, .gz) has single judgements for a judge that rates, or pairwise ones."""
    plan: bool
    """Whether to only show the requests and their cost, and send none."""
    out: str | None
    """Folder for passports, where reports look for them; null: results/judges."""


FITTED = "fitted"  # A calibration: item difficulties from the other rows of the table.

# Keys of a command that are typed without `do.`.
VERB_KEYS = frozenset(
    Rescore.model_fields
    | Why.model_fields
    | Audit.model_fields
    | PlanVerb.model_fields
    | View.model_fields
    | Export.model_fields
) - {"name"}


class WandbTracker(Settings):
    name: Literal["wandb"]
    project: str | None = Field(min_length=1)
    """Project on Weights & Biases; null: WANDB_PROJECT, else bench."""
    entity: str | None
    """Account or team on Weights & Biases; null: WANDB_ENTITY, else the account's own."""
    mode: Literal["auto", "online", "offline"]
    """Mode of W&B: online, offline, or auto (WANDB_MODE, else online if a key is configured, else offline
    under results/wandb)."""
    timeout_s: Positive
    """Longest time that the tracker may hold up a sweep, in seconds. After it the tracker is given up, never
    a cell."""


class NoTracker(Settings):
    name: Literal["none"]


class AnyLauncher(Settings):
    threads: Annotated[int, Field(ge=1, le=1024)]
    """Threads of a worker, 1 to 1024; they are recorded in results and in no key."""
    stage_timeout_s: Positive
    """Time limit of a stage that runs on this machine, in seconds. Jobs of a cluster have time_min."""
    retries: int = Field(ge=0)
    """Further attempts at a stage whose worker died (killed, out of memory, node down)."""
    workers_per_core: Count = 4
    """Largest number of workers for each core of this machine; more are refused."""


class LocalLauncher(AnyLauncher):
    """Long-lived worker processes on this machine."""

    name: Literal["local"]
    workers: Count | None
    """Number of workers; null: one for each GPU, or one for each core where there is no GPU."""


StageKind = Literal[
    "data", "sft", "sample", "label", "logps", "train", "generate", "judge", "score", "audit", "tasks"
]


class Resources(Settings):
    """Resources of a stage on a cluster."""

    gpus: int = Field(ge=0)
    """Number of GPUs."""
    cpus: Count
    """Number of CPU cores."""
    mem_gb: Positive | None
    """Memory in GB; null: the cluster's default (Ray reserves none)."""
    time_min: Count
    """Time limit in minutes."""


class ResourceChanges(Settings):
    """Resources of one kind of stage that differ from the others'."""

    gpus: int | None = Field(None, ge=0)
    """Number of GPUs."""
    cpus: Count | None = None
    """Number of CPU cores."""
    mem_gb: Positive | None = None
    """Memory in GB; null: the cluster's default."""
    time_min: Count | None = None
    """Time limit in minutes."""


class SlurmResources(Resources):
    partition: str | None
    """Partition; null: the cluster's default."""
    account: str | None
    """Account; null: the cluster's default."""


class SlurmChanges(ResourceChanges):
    partition: str | None = None
    """Partition; null: the cluster's default."""
    account: str | None = None
    """Account; null: the cluster's default."""


class ClusterLauncher(AnyLauncher):
    """Stages that load a model are jobs on other machines; stages that need the network run on this one."""

    max_jobs: Count
    """Largest number of stages in the cluster's queue at once, waiting ones included."""
    queue_cpu: bool
    """Whether stages that load no model (rows, labels, scores: seconds) also run on the cluster; false: here,
    in here_workers processes."""
    here_workers: Count
    """Number of worker processes on this machine."""
    env: dict[str, str]
    """Environment variables of the workers on the nodes, as in {HF_HUB_OFFLINE: "1"}. sbatch also passes on
    those of the command's shell."""
    gpu: Resources
    """Resources of a stage that loads a model; set gpus to 0 on a cluster without GPUs."""
    cpu: Resources
    """Resources of any other stage, where queue_cpu is true."""
    stages: Mapping[StageKind, ResourceChanges]
    """Changes of the resources by kind of stage, as in {train: {gpus: 2, time_min: 1440}, generate:
    {time_min: 60}}."""

    def resources(self, kind: str, needs: Literal["cpu", "gpu"]) -> Resources:
        """The resources of a stage of this kind."""
        changes = self.stages.get(kind)  # type: ignore[call-overload]  # tests have kinds of their own
        return (self.gpu if needs == "gpu" else self.cpu).model_copy(
            update=changes.model_dump(exclude_unset=True) if changes else {}
        )


class SlurmLauncher(ClusterLauncher):
    name: Literal["slurm"]
    max_jobs: Count
    """Largest number of stages in the cluster's queue at once, waiting ones included. Stages that become
    ready together are submitted as one array."""
    gpu: SlurmResources
    """Resources of a stage that loads a model; set gpus to 0 on a cluster without GPUs."""
    cpu: SlurmResources
    """Resources of any other stage, where queue_cpu is true."""
    stages: Mapping[StageKind, SlurmChanges]
    """Changes of the resources by kind of stage, as in {train: {gpus: 2, time_min: 1440}, generate:
    {time_min: 60}}."""
    requeues: int = Field(ge=0)
    """Times that a job at its time limit is queued again."""
    signal_delay_s: Count
    """Warning that a job gets before its time limit, in seconds."""
    poll_s: Positive
    """Interval of squeue calls about jobs that have not reported, in seconds."""
    setup: Annotated[tuple[str, ...], AsList]
    """Shell lines at the start of a job, as in ["module load cuda"]."""
    sbatch: dict[str, str | int | bool]
    """Further parameters of sbatch, as in {qos: long, exclude: node7}."""


class RayLauncher(ClusterLauncher):
    name: Literal["ray"]
    address: str | None
    """Address of a Ray cluster, host:port; auto: the one that runs here; null: one is started here for the
    length of the command."""
    runtime_env: dict[str, Any]
    """Ray's runtime environment, as in {pip: [...]}, {working_dir: ...}, {container: ...}; `env` is added to
    it."""


class Accelerate(Settings):
    """How one training is spread over devices, and how often it saves a checkpoint. `config` is accelerate's
    own, which checks it."""

    name: Name
    devices: Count
    """Number of devices that one training is spread over. The rows of a step stay what the method says; each
    device takes its share."""
    sharding: Literal["none", "zero2", "zero3"]
    """How much of a training each device holds only a part of, for do=plan: none, zero2 (gradients,
    optimizer), zero3 (weights too)."""
    checkpoint_s: Positive
    """Time between two checkpoints of a training, in seconds. After a crash or a time limit the same command
    goes on from the last one."""
    config: dict[str, Any]
    """Settings of `accelerate launch`, in its own words."""

    @property
    def gpus(self) -> int:
        """GPUs that a worker is given."""
        return 1 if self.config.get("use_cpu") else self.devices


class Hardware(Settings):
    """The GPU that do=plan computes with, and how a training is spread over several."""

    name: Name
    peak_tflops: Positive
    """Peak compute of one GPU in TFLOP/s, dense bfloat16 with float32 sums."""
    memory_gb: Positive
    """Memory of one GPU in GB."""
    bandwidth_gbs: Positive
    """Memory bandwidth of one GPU in GB/s."""
    price_per_hour: Annotated[float, Field(ge=0)] | None
    """Price of one GPU in dollars an hour; null: the plan shows no dollars."""
    mfu: Annotated[float, Field(gt=0, le=1)]
    """Share of the peak compute that training and log-probs reach; usual 0.3 to 0.5 for models of 7B on one
    node."""
    mbu: Annotated[float, Field(gt=0, le=1)]
    """Share of the memory bandwidth that generation reaches; usual 0.25 (transformers) to 0.6 (vLLM). Each
    step of generation reads all weights."""
    devices: Count
    """Number of GPUs that one training is spread over."""
    sharding: Literal["none", "zero2", "zero3"]
    """How much of a training each device holds only a part of, for do=plan: none, zero2 (gradients,
    optimizer), zero3 (weights too)."""


MAX_CUT = 0.05  # As in conf/config.yaml. A convention: one completion in twenty.
MAX_CELLS = 10_000  # As in conf/config.yaml. Composing as many takes ten minutes.

Keep = Literal[
    "weights", "adapters", "numbers"
]  # The files that stay of a trained model once its numbers are there.


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, with `~` expanded as a shell does. `~NAME` of an unknown user stays as
    written, and does not exist."""
    return Path(os.path.expanduser(path)).absolute()


class Bounds(Settings):
    """Limits on a model's files: sizes in its config.json, and seconds for a look at its chat template."""

    layers: Count
    """Largest number of layers."""
    width: Count
    """Largest width of the hidden states."""
    heads: Count
    """Largest number of attention heads."""
    experts: Count
    """Largest number of experts."""
    vocabulary: Count
    """Largest vocabulary."""
    positions: Count
    """Largest number of positions."""
    template_s: Positive
    """Longest first look at a chat template, in seconds; it runs in a process of its own."""


class Session(Settings):
    do: Verb | PlanVerb | View | Rescore | Why | Audit | Export | Bundle = Field(discriminator="name")
    """Command: run, plan, status, ..."""
    tracker: WandbTracker | NoTracker = Field(discriminator="name")
    """Tracker that mirrors a sweep."""
    launcher: LocalLauncher | SlurmLauncher | RayLauncher = Field(discriminator="name")
    """Launcher that runs the stages."""
    accelerate: Accelerate
    """Spread of one training over devices."""
    results: str | None
    """Folder for everything that is written; null: BENCH_RESULTS, else results/ of the current folder."""
    keep: Keep
    """Files that stay of a trained model once all its numbers are there: weights (all), adapters (no full
    weights), numbers (no weights). A later command that needs deleted weights trains again."""
    bounds: Bounds
    """Largest sizes that a model's config.json may ask for, and seconds for a first look at its chat
    template; larger ones are refused as damaged or hostile."""
    hardware: Hardware
    """GPU that do=plan computes with."""
    max_cut: Probability = MAX_CUT
    """Largest share of a row's judged completions that may be cut at their longest length; a table with more
    says so above its numbers."""
    columns: Annotated[tuple[str, ...], AsList] | None = None
    """Columns of table.tex in their order, by name or its beginning, as in columns=[method,beta,win rate,KL];
    null: all."""
    max_cells: Count
    """Largest number of cells of a command; one that asks for more is refused before any cell is made."""

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
            return f"results={self._results} is in the home of a user unknown on this machine: set results=DIR or BENCH_RESULTS"
        return (
            f"results must not contain a NUL character, got {self._results!r}"
            if "\0" in self._results
            else None
        )


class Expectation(Settings):
    """An expected order of two groups of a sweep's cells by win rate, named before the sweep ran."""

    better: dict[str, Any]
    """Values of the cells expected to win, written as axes."""
    worse: dict[str, Any]
    """Values of the cells expected to lose, written as axes."""
    post_hoc: bool = False
    """Whether the order was added after results of the sweep had been seen. It is then corrected over all pairs of
    rows; the planned orders are a family of their own."""
    margin: Positive = 2.0
    """Largest difference in percentage points that counts as equal, for the test of equivalence; usual 1 to 3."""
