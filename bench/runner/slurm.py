"""The `slurm` launcher: submitit submits the jobs and requeues them at their time limit; we read their state.

submitit learns of a job's end from its result file or from `sacct`, and waits for ever on a cluster without
accounting. We use `squeue` and `scontrol`, because every cluster has them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.config import LocalLauncher, Resources, SlurmLauncher, SlurmResources
from bench.machine import python_path
from bench.runner.cluster_queue import Ending, Refused
from bench.runner.local_pool import FOREIGN, Pool
from bench.runner.node_job import NodeJob
from bench.store.store import Store
from bench.terminal import shown
from bench.text_files import printable

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel")
COMMAND_WAIT_S = 60.0  # longest wait for one of SLURM's commands
OVER = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
UNKNOWN = "UNKNOWN"  # state of a job whose line in squeue cannot be read
# Reasons to wait that pass by themselves
USUAL = frozenset(["", "None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency"])
STUCK = frozenset(["launch_failed_requeued_held", "launch failed requeued held"])
# Reasons that never pass: the command's settings do not fit the cluster.
HOPELESS = re.compile(
    r"Partition(Time|Node)Limit|BadConstraints|Invalid(Account|QOS)|(Account|QOS)NotAllowed|(Assoc|QOS)\w*(Wall|PerJob)\w*"
)
# Errors of sbatch where there is no cluster. Any other error is a cluster's rejection of a job.
NO_CLUSTER = re.compile(
    r"configuration source|Unable to contact|not responding|Protocol authentication error"
)


@dataclass
class SlurmStage(NodeJob):
    """A job that is queued again at its time limit: submitit then calls `checkpoint`."""

    requeues: int = 0
    pool: Pool | None = field(default=None, init=False, repr=False)

    def open_pool(self, settings: LocalLauncher) -> Pool:
        self.pool = super().open_pool(settings)
        return self.pool

    def checkpoint(self) -> Any:
        """End the worker, report `requeued`, and return the job that submitit queues again."""
        import submitit

        if self.pool:
            self.pool.close()  # Its build folder can then be removed.
        Store(Path(self.job["store"])).remove_build_folders(self.job["kind"], self.job["key"])
        if self.restarts < self.requeues:
            self.write("requeued", "was stopped at its time limit or preempted, and is queued again")
        return submitit.helpers.DelayedSubmission(dataclasses.replace(self, restarts=self.restarts + 1))

    def stopped(self, error: Exception) -> tuple[Literal["lost", "late"], str]:
        if (
            self.pool is None
            or self.restarts < self.requeues
            or type(error).__name__ != "UncompletedJobError"
        ):
            return super().stopped(error)
        limit = f"its time limit of {self.resources.time_min} min"
        return "late", f"reached {limit} {self.requeues + 1} times: raise time_min or hydra.launcher.requeues"


def make_executor(settings: SlurmLauncher, given: Resources, folder: Path) -> Any:
    """A submitit executor for jobs with these resources."""
    from submitit import SlurmExecutor

    assert isinstance(given, SlurmResources)
    environment = {**settings.env, "PYTHONSAFEPATH": "1", "PYTHONPATH": python_path()}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    unsets = [f"unset {name}" for name in os.environ if name.startswith(FOREIGN)]
    parameters: dict[str, Any] = {
        "job_name": "bench",
        "partition": given.partition,
        "account": given.account,
        "time": given.time_min,
        "cpus_per_task": given.cpus,
        "gpus_per_node": given.gpus or None,
        "mem": None if given.mem_gb is None else f"{round(given.mem_gb * 1024)}MB",
        "signal_delay_s": settings.signal_delay_s,
        "array_parallelism": settings.max_jobs,
        "setup": [*unsets, *settings.setup, *exports],
        "srun_args": [f"--cpus-per-task={given.cpus}"],  # srun no longer inherits it from sbatch.
        "additional_parameters": {"requeue": True, **settings.sbatch},
    }
    executor = SlurmExecutor(folder=folder, max_num_timeout=settings.requeues)
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    return executor


def check(settings: SlurmLauncher, wanted: Sequence[Resources]) -> list[str]:
    """The problems of SLURM on this machine, or of the resources.

    `sbatch --test-only` checks each kind of job without submitting it.
    """
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        way_out = "run the command on a machine that submits jobs to the cluster"
        return [f"hydra/launcher=slurm needs SLURM's {', '.join(missing)} on the PATH: {way_out}"]
    for given in wanted:
        text = make_executor(settings, given, Path("jobs"))._make_submission_file_text("true", "check")
        with without_slurm_variables():
            command = ["sbatch", "--test-only"]
            try:
                done = subprocess.run(
                    command,
                    input=text,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    timeout=COMMAND_WAIT_S,
                )
            except subprocess.TimeoutExpired:
                return [
                    f"hydra/launcher=slurm: sbatch did not finish within {COMMAND_WAIT_S:g} s: check with sinfo that the cluster is up"
                ]
        if done.returncode:
            resources = ", ".join(
                f"{name}={value}" for name, value in given.model_dump().items() if value is not None
            )
            words = "; ".join(
                line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()
            )
            if NO_CLUSTER.search(words):
                way_out = (
                    "check with sinfo that it is up, and run the command on a machine that submits jobs to it"
                )
                return [f"hydra/launcher=slurm: sbatch finds no cluster ({words}): {way_out}"]
            way_out = "change hydra.launcher.gpu, .cpu, .stages or .sbatch"
            return [f"hydra/launcher=slurm: sbatch rejects a job with {resources} ({words}): {way_out}"]
    return []


@contextlib.contextmanager
def without_slurm_variables() -> Iterator[None]:
    """Hide the SLURM_ variables of a job that this command runs in.

    Its own jobs would inherit them, and srun obey them.
    """
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: value
        for name, value in os.environ.items()
        if inside and name.startswith("SLURM_") and name != "SLURM_CONF"
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(frozen=True)
class JobState:
    """A job's state, reason and node, as squeue prints them."""

    state: str
    reason: str
    node: str

    @property
    def waits(self) -> bool:
        """Whether the job has not begun."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", UNKNOWN)


JOB = re.compile(r"\s*(?P<id>\d+(_(\d+|\[[^]]*\]))?)\s*(\||$)")
# It precedes the rows where SLURM_CLUSTERS or several clusters are set.
HEADING = re.compile(r"\s*CLUSTER: \S*\s*")


@dataclass(frozen=True)
class Listing:
    """The output of squeue: jobs by id, and lines without a readable job."""

    jobs: Mapping[str, JobState]
    unread: Sequence[str] = ()


def read_squeue(text: str) -> Listing:
    """Read rows of `%i|%T|%r|%N`.

    A job with an unreadable row is in the state UNKNOWN; it never counts as gone.
    """
    jobs, unread = {}, []
    for line in text.splitlines():
        fields = line.split("|", 3)
        job = JOB.match(line)
        if job and len(fields) == 4 and re.fullmatch(r"[A-Z_]+", fields[1].strip()):
            jobs[job["id"]] = JobState(fields[1].strip(), fields[2].strip(), fields[3].strip())
        elif job:
            jobs[job["id"]] = JobState(UNKNOWN, "its line in squeue's output cannot be read", "")
        elif line.strip() and not HEADING.fullmatch(line):
            unread.append(line)
    return Listing(jobs, unread)


def run_squeue() -> Listing:
    """This user's jobs, also those that have just ended. Raises OSError or subprocess.SubprocessError."""
    words = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--user={os.getuid()}",
        "--format=%i|%T|%r|%N",
    ]
    done = subprocess.run(words, capture_output=True, check=True, timeout=COMMAND_WAIT_S)
    return read_squeue(done.stdout.decode(errors="replace"))


def squeue_or_empty() -> Listing:
    """This user's jobs; an empty listing where there is no SLURM or squeue fails."""
    try:
        return run_squeue() if shutil.which("squeue") else Listing({})
    except (OSError, subprocess.SubprocessError):
        return Listing({})


@dataclass
class SlurmQueue:
    """SLURM jobs, submitted by submitit. Its files go to `folder`, on the shared file system."""

    settings: SlurmLauncher
    folder: Path
    say: Callable[[str], None]
    name: str = "slurm"
    last_poll: float = field(default_factory=time.monotonic)
    over: dict[str, Ending] = field(default_factory=dict)  # ended jobs by id
    printed: set[str] = field(default_factory=set)  # lines that were printed once

    def submit(self, jobs: Sequence[NodeJob]) -> list[str]:
        executor = make_executor(self.settings, jobs[0].resources, self.folder)
        own = [SlurmStage(**{**vars(job), "limit_s": None}, requeues=self.settings.requeues) for job in jobs]
        try:
            with without_slurm_variables(), contextlib.redirect_stderr(None), executor.batch():
                submitted = [executor.submit(job) for job in own]
            return [job.job_id for job in submitted]
        except Exception as error:  # submitit raises several classes of its own and of its callees.
            raise Refused(f"sbatch rejected the job: {' '.join(str(error).split())}") from error

    def ended(self, ids: Collection[str]) -> dict[str, Ending]:
        if ids and time.monotonic() - self.last_poll >= self.settings.poll_s:
            self.last_poll = time.monotonic()
            try:
                self._update_ended(ids, run_squeue())
            except (OSError, subprocess.SubprocessError) as error:
                self._say_once(f"squeue failed; still waiting for the jobs: {error}")
        return {job_id: how for job_id, how in self.over.items() if job_id in ids}

    def _update_ended(self, ids: Collection[str], listing: Listing) -> None:
        """Record the jobs that ended. Jobs that can never start are cancelled and recorded too."""
        if listing.unread:
            line = printable(listing.unread[0])[:80]
            self._say_once(
                f"cannot read a line of squeue's output ({line}); waiting also for jobs that it does not list"
            )
        # The others may have been queued again.
        self.over = {job_id: ending for job_id, ending in self.over.items() if not ending.again}
        for job_id in set(ids) - self.over.keys():
            job = listing.jobs.get(job_id)
            if job is None and listing.unread:
                continue
            if job is None or job.state in OVER:
                self.over[job_id] = Ending(
                    f"{describe_end(job_id)} without a report: see {self.folder / job_id}_0_log.err"
                )
            elif job.reason in STUCK or HOPELESS.fullmatch(job.reason):
                self.cancel([job_id])
                way_out = "change hydra.launcher.gpu, .cpu, .stages or .sbatch"
                self.over[job_id] = Ending(
                    f"could never start ({job.reason}) and was cancelled: {way_out}", again=False
                )
            elif job.state == "PENDING" and job.reason not in USUAL:
                self._say_once(f"jobs wait in the queue; squeue gives the reason {job.reason}")

    def _say_once(self, text: str) -> None:
        if text not in self.printed:
            self.printed.add(text)
            self.say(text)

    def is_alive(self, job_id: str) -> bool:
        listing = squeue_or_empty()
        job = listing.jobs.get(job_id)
        return bool(listing.unread) if job is None else job.state not in OVER

    def cancel(self, ids: Sequence[str]) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", *ids], capture_output=True, timeout=COMMAND_WAIT_S)

    def remove_files(self, job_id: str) -> None:
        for path in self.folder.glob(f"{job_id}_*"):
            path.unlink(missing_ok=True)

    def close(self) -> None: ...


def describe_end(job_id: str) -> str:
    """A job's end in SLURM's words: `ended as NODE_FAIL (NodeDown, exit code 0:0) on node3`."""
    for command, field_pattern in (
        (["scontrol", "--oneliner", "show", "job", job_id], r"{}=(\S+)"),
        (
            [
                "sacct",
                "--noheader",
                "--parsable2",
                "--allocations",
                f"--jobs={job_id}",
                "--format=State,Reason,ExitCode,NodeList",
            ],
            "",
        ),
    ):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            output = subprocess.run(command, capture_output=True, check=True, timeout=COMMAND_WAIT_S).stdout
            text = shown(output.decode(errors="replace")).strip()
            if field_pattern:
                matches = [
                    re.search(rf"\b{field_pattern.format(name)}", text)
                    for name in ("JobState", "Reason", "ExitCode", "NodeList")
                ]
                words = [match[1] if match else "" for match in matches]
            else:
                rows = [line.split("|") for line in text.splitlines()]
                words = next((row for row in rows if len(row) >= 4), [""] * 4)
            state, reason, code, node = words[:4]
            if state:
                why = ", ".join(filter(None, ["" if reason == "None" else reason, f"exit code {code}"]))
                return f"ended as {state} ({why})" + (f" on {node}" if node else "")
    return "left the queue"
