"""Stages as jobs of a queue: what runs on a node, and the launcher that hands them in and reads what became of them.

On a node a job is a pool of one worker. It writes its report beside the stage, in the store that all machines share; the command
reads it there and asks the scheduler only about jobs that are silent. A job that has left the queue without a report is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from bench import output_files, secrets
from bench.config import ClusterLauncher, LocalLauncher, Resources
from bench.records import grouped
from bench.runner.launcher import Outcome, StageReport
from bench.runner.local_pool import Pool
from bench.store.keys import Stage
from bench.store.stage_run import reason
from bench.store.stage_settings import Need, needs
from bench.store.store import Store
from bench.text_files import BadFile, read_object

ANSWER_S = 15.0  # a shared file system may show a file so much later than the scheduler says that its job has ended


def node_need(settings: ClusterLauncher, stage: Stage) -> Literal["cpu", "gpu"] | None:
    """What a stage needs of a node; None where it runs where the command was typed."""
    return _on_node(settings, needs(stage))


def _on_node(settings: ClusterLauncher, need: Need) -> Literal["cpu", "gpu"] | None:
    return None if need == "network" or (need == "cpu" and not settings.queue_cpu) else need


# On the node ----------------------------------------------------------------------------------------------------------


@dataclass
class NodeJob:
    """One attempt at a stage, to be pickled and called on a node."""

    job: Mapping[str, Any]  # as `describe` puts it
    log: str
    attempt: str  # so that an answer to an earlier attempt is not taken for one to this
    threads: int
    limit_s: float | None  # None: the scheduler ends it
    resources: Resources
    restarts: int = 0  # at time limits

    @property
    def answer(self) -> Path:
        return Path(self.log).with_suffix(".answer.json")

    def __call__(self) -> None:
        secrets.guard_streams()
        if not Path(self.job["store"]).is_dir():
            raise RuntimeError(f"{self.job['store']} is not there on {socket.gethostname()}: results must be on a file system of all nodes")
        limit_s = self.limit_s or float("1e12")
        settings = LocalLauncher(name="local", workers=1, threads=self.threads, stage_timeout_s=limit_s, retries=0)
        report = StageReport(self.job["key"], "lost", "its job ended without a word")
        with contextlib.closing(self.open_pool(settings)) as pool:
            try:
                pool.start(self.job, Path(self.log))
                while not (reports := pool.reports(1.0)):
                    pass
                report = reports[0]
                if report.outcome == "late":
                    report = StageReport(report.key, "late", f"ran longer than {self.resources.time_min} min (time_min) and was ended")
            except Exception as error:
                report = StageReport(self.job["key"], *self.stopped(error))
        self.write(report.outcome, report.error)

    def open_pool(self, settings: LocalLauncher) -> Pool:
        return Pool(settings, share_gpus=True)

    def stopped(self, error: Exception) -> tuple[Literal["lost", "late"], str]:
        """What became of a stage when waiting for it was broken off."""
        return "lost", reason(error)

    def write(self, outcome: str, error: str = "") -> None:
        """The answer, whole or not at all."""
        text = json.dumps({"attempt": self.attempt, "outcome": outcome, "error": error, "node": socket.gethostname()})
        part = self.answer.with_name(f"{self.answer.name}.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(self.answer)


# Where the command was typed ------------------------------------------------------------------------------------------


class Refused(RuntimeError):
    """The scheduler does not take a job."""


@dataclass(frozen=True)
class Ending:
    """A job that will do no more, in the scheduler's words; `again`: whether another try makes sense."""

    how: str
    again: bool = True


class Queue(Protocol):
    """A scheduler."""

    name: str

    def submit(self, jobs: Sequence[NodeJob]) -> Sequence[str]:
        """The id of each job. Raises Refused."""
        ...

    def ended(self, ids: Collection[str]) -> Mapping[str, Ending]:
        """Those of the jobs that will do no more. May lag behind."""
        ...

    def is_alive(self, job_id: str) -> bool:
        """Whether a job that an earlier command handed in is still there."""
        ...

    def cancel(self, ids: Sequence[str]) -> None: ...

    def remove_files(self, job_id: str) -> None:
        """A job has done its stage: what lies about of it can go."""
        ...

    def close(self) -> None: ...


@dataclass
class _InQueue:
    id: str
    attempt: str
    log: Path
    silent_since: float | None = None  # when the scheduler first said that it has ended

    @property
    def note(self) -> Path:
        """What a later command, and one that asks for the status, find."""
        return self.log.with_suffix(".job.json")


class QueueLauncher:
    """Hands stages to a scheduler, those that became ready together at once; the others run in a pool where the command was typed."""

    def __init__(self, settings: ClusterLauncher, queue: Queue, imports: Sequence[str], say: Callable[[str], None]):
        own = {"threads": settings.threads, "stage_timeout_s": settings.stage_timeout_s, "retries": settings.retries}
        here = LocalLauncher(name="local", workers=settings.here_workers, **own)  # type: ignore[arg-type]
        self.settings, self.queue, self.say = settings, queue, say
        self.here = Pool(here, imports)
        self.wave: list[NodeJob] = []  # handed in since the last look
        self.jobs: dict[str, _InQueue] = {}  # by key of the stage

    def can_take(self, needs: Need) -> bool:
        if _on_node(self.settings, needs):
            return len(self.jobs) + len(self.wave) < self.settings.max_jobs
        return self.here.can_take(needs)

    def start(self, job: Mapping[str, Any], log: Path) -> None:
        if (need := _on_node(self.settings, job["needs"])) is None:
            self.here.start(job, log)
        elif (left := _read_note(log)) and left["queue"] == self.queue.name and self.queue.is_alive(left["id"]):
            self.jobs[job["key"]] = _InQueue(left["id"], left["attempt"], log)
            self.say(f"job {left['id']} of an earlier command is still at {job['kind']} {job['key'][:6]}: waiting for it")
        else:
            given = self.settings.resources(job["kind"], need)
            self.wave.append(NodeJob(job, str(log), uuid.uuid4().hex, self.settings.threads, given.time_min * 60.0, given))

    def reports(self, timeout_s: float) -> list[StageReport]:
        found = self._submit() + self.here.reports(timeout_s)
        for key, job in list(self.jobs.items()):
            if (report := self._answer(key, job)) is not None:
                found.append(self._remove_job(key, report))
        endings = self.queue.ended([job.id for job in self.jobs.values()])
        for key, job in list(self.jobs.items()):
            if (ending := endings.get(job.id)) is None:
                job.silent_since = None
                continue
            job.silent_since = job.silent_since or time.monotonic()
            if time.monotonic() - job.silent_since > ANSWER_S:
                outcome: Literal["lost", "failed"] = "lost" if ending.again else "failed"
                found.append(self._remove_job(key, self._answer(key, job) or StageReport(key, outcome, f"job {job.id} {ending.how}")))
        return found

    def _submit(self) -> list[StageReport]:
        """Hand in the wave. Stages that the scheduler refuses have failed, with its words."""
        refused: list[StageReport] = []
        wave, self.wave = self.wave, []
        for jobs in grouped((job.resources, job) for job in wave).values():
            for job in jobs:
                job.answer.unlink(missing_ok=True)
            try:
                ids = self.queue.submit(jobs)
            except Refused as error:
                refused += [StageReport(job.job["key"], "failed", str(error)) for job in jobs]
                continue
            for job_id, job in zip(ids, jobs, strict=True):
                self.jobs[job.job["key"]] = left = _InQueue(job_id, job.attempt, Path(job.log))
                told = json.dumps({"queue": self.queue.name, "id": job_id, "attempt": job.attempt})
                with contextlib.suppress(OSError):  # then a later command does not find the job
                    output_files.write(left.note.parent, left.note, told)
        return refused

    def _answer(self, key: str, job: _InQueue) -> StageReport | None:
        answer = _read_texts(job.log.with_suffix(".answer.json"), ("attempt", "outcome", "error", "node"))
        if answer is None or answer["attempt"] != job.attempt or answer["outcome"] not in (*get_args(Outcome), "requeued"):
            return None
        if answer["outcome"] == "requeued":
            job.log.with_suffix(".answer.json").unlink(missing_ok=True)
            self.say(f"job {job.id} ({key[:6]}) {answer['error']}")
            return None
        error = answer["error"] and f"{answer['error']} (job {job.id} on {answer['node']})"
        return StageReport(key, cast(Outcome, answer["outcome"]), error)

    def _remove_job(self, key: str, report: StageReport) -> StageReport:
        """A job is out of the queue."""
        job = self.jobs.pop(key)
        job.note.unlink(missing_ok=True)
        job.log.with_suffix(".answer.json").unlink(missing_ok=True)
        if report.outcome == "done":
            self.queue.remove_files(job.id)
        return report

    def close(self) -> None:
        """End the workers here and cancel every job that is still in the queue."""
        self.here.close()
        if self.jobs:
            self.queue.cancel([job.id for job in self.jobs.values()])
        for job in self.jobs.values():
            job.note.unlink(missing_ok=True)
        self.queue.close()


def _read_note(log: Path) -> dict[str, str] | None:
    return _read_texts(log.with_suffix(".job.json"), ("queue", "id", "attempt"))


def _read_texts(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """An object with these texts; None where there is none, or another thing."""
    try:
        told = read_object(path)
    except BadFile:
        return None
    return told if all(isinstance(told.get(name), str) for name in names) else None


def submitted_job(stage: Stage, store: Store) -> dict[str, str] | None:
    """`{"queue", "id", "attempt"}` of the job that was handed in for a stage; None when there is none."""
    return _read_note(store.sidecar(stage, "log"))
