"""Runs stages as jobs of a cluster's queue: the job on the node, and the launcher that submits
it and reads its report.

On a node, a job is a pool of one worker. It writes its report to a sidecar file of the stage, in the store
that all machines share. The command reads the report there, and asks the scheduler only about jobs without
one. A job that has left the queue without a report is lost.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from bench import output_files
from bench.config import ClusterLauncher, LocalLauncher
from bench.records import grouped
from bench.runner.launcher import Outcome, StageReport
from bench.runner.local_pool import Pool
from bench.runner.node_job import NodeJob, _on_node
from bench.store.keys import Stage
from bench.store.stage_settings import Need
from bench.store.store import Store
from bench.text_files import BadFile, read_object

# Seconds to wait for the report of a job that has ended: a shared file system may show the file late.
REPORT_WAIT_S = 15.0


# On the node ------------------------------------------------------------------------------------------------


# Where the command was typed --------------------------------------------------------------------------------


class Refused(RuntimeError):
    """The scheduler rejected a job."""


@dataclass(frozen=True)
class Ending:
    """The end of a job, in the scheduler's words. `again`: whether another attempt may succeed."""

    how: str
    again: bool = True


class Queue(Protocol):
    """The scheduler of a cluster."""

    name: str

    def submit(self, jobs: Sequence[NodeJob]) -> Sequence[str]:
        """Submit jobs. Returns their ids. Raises Refused."""
        ...

    def ended(self, ids: Collection[str]) -> Mapping[str, Ending]:
        """The jobs of `ids` that have ended, by id. An ended job may be reported late."""
        ...

    def is_alive(self, job_id: str) -> bool:
        """Whether a job that an earlier command submitted still waits or runs."""
        ...

    def cancel(self, ids: Sequence[str]) -> None: ...

    def remove_files(self, job_id: str) -> None:
        """Delete the scheduler's files about a job, after its stage is done."""
        ...

    def close(self) -> None: ...


@dataclass
class _InQueue:
    """A job that was submitted and has not reported."""

    id: str
    attempt: str
    log: Path
    silent_since: float | None = None  # when the scheduler first listed it as ended

    @property
    def note(self) -> Path:
        """The file that tells a later command, and `do=status`, about the job."""
        return self.log.with_suffix(".job.json")


class QueueLauncher:
    """Submits stages to a scheduler; stages that became ready together are submitted together.

    Stages that need no node run in a pool on the machine of the command.
    """

    def __init__(
        self, settings: ClusterLauncher, queue: Queue, imports: Sequence[str], say: Callable[[str], None]
    ):
        own = {
            "threads": settings.threads,
            "stage_timeout_s": settings.stage_timeout_s,
            "retries": settings.retries,
        }
        here = LocalLauncher(name="local", workers=settings.here_workers, **own)  # type: ignore[arg-type]
        self.settings, self.queue, self.say = settings, queue, say
        self.here = Pool(here, imports)
        self.wave: list[NodeJob] = []  # started since the last submission
        self.jobs: dict[str, _InQueue] = {}  # by stage key

    def can_take(self, needs: Need) -> bool:
        if _on_node(self.settings, needs):
            return len(self.jobs) + len(self.wave) < self.settings.max_jobs
        return self.here.can_take(needs)

    def start(self, job: Mapping[str, Any], log: Path) -> None:
        if (need := _on_node(self.settings, job["needs"])) is None:
            self.here.start(job, log)
        elif (
            (note := _read_note(log)) and note["queue"] == self.queue.name and self.queue.is_alive(note["id"])
        ):
            self.jobs[job["key"]] = _InQueue(note["id"], note["attempt"], log)
            self.say(
                f"job {note['id']} of an earlier command still runs {job['kind']} {job['key'][:6]}; waiting for it"
            )
        else:
            resources = self.settings.resources(job["kind"], need)
            limit_s = resources.time_min * 60.0
            self.wave.append(
                NodeJob(job, str(log), uuid.uuid4().hex, self.settings.threads, limit_s, resources)
            )

    def reports(self, timeout_s: float) -> list[StageReport]:
        reports = self._submit() + self.here.reports(timeout_s)
        for key, job in list(self.jobs.items()):
            if (report := self._read_report(key, job)) is not None:
                reports.append(self._remove_job(key, report))
        endings = self.queue.ended([job.id for job in self.jobs.values()])
        for key, job in list(self.jobs.items()):
            if (ending := endings.get(job.id)) is None:
                job.silent_since = None
                continue
            job.silent_since = job.silent_since or time.monotonic()
            if time.monotonic() - job.silent_since > REPORT_WAIT_S:
                outcome: Literal["lost", "failed"] = "lost" if ending.again else "failed"
                reports.append(
                    self._remove_job(
                        key,
                        self._read_report(key, job)
                        or StageReport(key, outcome, f"job {job.id} {ending.how}"),
                    )
                )
        return reports

    def _submit(self) -> list[StageReport]:
        """Submit the jobs in `wave`. Returns a failure for each stage that the scheduler rejects."""
        refused: list[StageReport] = []
        wave, self.wave = self.wave, []
        for jobs in grouped((job.resources, job) for job in wave).values():
            for job in jobs:
                job.report_path.unlink(missing_ok=True)
            try:
                ids = self.queue.submit(jobs)
            except Refused as error:
                refused += [StageReport(job.job["key"], "failed", str(error)) for job in jobs]
                continue
            for job_id, job in zip(ids, jobs, strict=True):
                self.jobs[job.job["key"]] = submitted = _InQueue(job_id, job.attempt, Path(job.log))
                note = json.dumps({"queue": self.queue.name, "id": job_id, "attempt": job.attempt})
                with contextlib.suppress(OSError):  # A later command then does not find the job.
                    output_files.write(submitted.note.parent, submitted.note, note)
        return refused

    def _read_report(self, key: str, job: _InQueue) -> StageReport | None:
        report = _read_texts(job.log.with_suffix(".answer.json"), ("attempt", "outcome", "error", "node"))
        if (
            report is None
            or report["attempt"] != job.attempt
            or report["outcome"] not in (*get_args(Outcome), "requeued")
        ):
            return None
        if report["outcome"] == "requeued":
            job.log.with_suffix(".answer.json").unlink(missing_ok=True)
            self.say(f"job {job.id} ({key[:6]}) {report['error']}")
            return None
        error = report["error"] and f"{report['error']} (job {job.id} on {report['node']})"
        return StageReport(key, cast(Outcome, report["outcome"]), error)

    def _remove_job(self, key: str, report: StageReport) -> StageReport:
        """Drop a job that has reported or ended, and delete its files. Returns the report."""
        job = self.jobs.pop(key)
        job.note.unlink(missing_ok=True)
        job.log.with_suffix(".answer.json").unlink(missing_ok=True)
        if report.outcome == "done":
            self.queue.remove_files(job.id)
        return report

    def close(self) -> None:
        """Kill the workers of this machine and cancel every job that is still in the queue."""
        self.here.close()
        if self.jobs:
            self.queue.cancel([job.id for job in self.jobs.values()])
        for job in self.jobs.values():
            job.note.unlink(missing_ok=True)
        self.queue.close()


def _read_note(log: Path) -> dict[str, str] | None:
    return _read_texts(log.with_suffix(".job.json"), ("queue", "id", "attempt"))


def _read_texts(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """A JSON object from a file; None unless every field in `names` is text."""
    try:
        fields = read_object(path)
    except BadFile:
        return None
    return fields if all(isinstance(fields.get(name), str) for name in names) else None


def submitted_job(stage: Stage, store: Store) -> dict[str, str] | None:
    """The job that was submitted for a stage: `{"queue", "id", "attempt"}`. None where there is none."""
    return _read_note(store.sidecar(stage, "log"))
