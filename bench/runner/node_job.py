"""A job of a cluster: runs one stage on a node, and says where each kind of stage runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import secrets
from bench.config import ClusterLauncher, LocalLauncher, Resources
from bench.runner.launcher import StageReport
from bench.runner.local_pool import Pool
from bench.store.keys import Stage
from bench.store.stage_run import reason
from bench.store.stage_settings import Need, needs


def node_need(settings: ClusterLauncher, stage: Stage) -> Literal["cpu", "gpu"] | None:
    """The resource that a stage needs on a node; None for a stage that runs on the machine of the command."""
    return _on_node(settings, needs(stage))


def _on_node(settings: ClusterLauncher, need: Need) -> Literal["cpu", "gpu"] | None:
    return None if need == "network" or (need == "cpu" and not settings.queue_cpu) else need


@dataclass
class NodeJob:
    """One attempt at a stage. It is pickled, and called on a node."""

    job: Mapping[str, Any]  # made by worker.describe
    log: str
    attempt: str  # A random id: the report of an earlier attempt has another one.
    threads: int
    limit_s: float | None  # None: the scheduler enforces the time limit.
    resources: Resources
    restarts: int = 0  # how often it reached its time limit and was queued again

    @property
    def report_path(self) -> Path:
        return Path(self.log).with_suffix(".answer.json")

    def __call__(self) -> None:
        secrets.guard_streams()
        if not Path(self.job["store"]).is_dir():
            problem = f"the results folder {self.job['store']} does not exist on node {socket.gethostname()}"
            raise RuntimeError(f"{problem}: set results= to a folder that all nodes share")
        limit_s = self.limit_s or float("1e12")
        settings = LocalLauncher(
            name="local", workers=1, threads=self.threads, stage_timeout_s=limit_s, retries=0
        )
        report = StageReport(self.job["key"], "lost", "its job ended without a report")
        with contextlib.closing(self.open_pool(settings)) as pool:
            try:
                pool.start(self.job, Path(self.log))
                while not (reports := pool.reports(1.0)):
                    pass
                report = reports[0]
                if report.outcome == "late":
                    report = StageReport(
                        report.key,
                        "late",
                        f"took longer than {self.resources.time_min} min and was stopped: raise time_min",
                    )
            except Exception as error:
                report = StageReport(self.job["key"], *self.stopped(error))
        self.write(report.outcome, report.error)

    def open_pool(self, settings: LocalLauncher) -> Pool:
        return Pool(settings, share_gpus=True)

    def stopped(self, error: Exception) -> tuple[Literal["lost", "late"], str]:
        """The outcome and error of a stage when waiting for it was interrupted by `error`."""
        return "lost", reason(error)

    def write(self, outcome: str, error: str = "") -> None:
        """Write the report file, whole or not at all."""
        report = json.dumps(
            {"attempt": self.attempt, "outcome": outcome, "error": error, "node": socket.gethostname()}
        )
        part = self.report_path.with_name(f"{self.report_path.name}.{os.getpid()}")
        part.write_text(report, encoding="utf-8")
        part.replace(self.report_path)
