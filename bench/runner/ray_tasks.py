"""The `ray` launcher: each stage is a Ray task with its resources.

Only the command retries a stage; Ray never does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from typing import Any

from bench.config import RayLauncher, Resources
from bench.machine import python_path
from bench.runner.cluster_queue import Ending
from bench.runner.node_job import NodeJob
from bench.store.stage_run import reason

# Size of Ray's object store in a cluster that we start. No stage uses it; by default it takes
# a third of the memory.
OBJECTS_BYTES = 100 * 2**20


def check(settings: RayLauncher, wanted: Sequence[Resources]) -> list[str]:
    """Connect to a Ray cluster, or start one here.

    Returns its problems, such as resources that no node has.
    """
    try:
        _connect(settings)
    except Exception as error:  # Ray's own classes, and ConnectionError
        way_out = "start one with `ray start --head`, or set hydra.launcher.address=null to start one on this machine"
        return [
            f"hydra/launcher=ray: cannot connect to a cluster at hydra.launcher.address={settings.address} ({reason(error)}): {way_out}"
        ]
    import ray

    nodes = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
    for given in wanted:
        needed = {"CPU": given.cpus, "GPU": given.gpus, "memory": (given.mem_gb or 0) * 2**30}
        if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
            best = ", ".join(
                f"{max((node.get(name, 0) for node in nodes), default=0):g} {name}" for name in ("CPU", "GPU")
            )
            words = f"a stage needs {given.cpus} CPU, {given.gpus} GPU" + (
                f", {given.mem_gb:g} GB" if given.mem_gb else ""
            )
            close()
            way_out = "set hydra.launcher.gpu, e.g. hydra.launcher.gpu.gpus=0"
            return [
                f"hydra/launcher=ray: {words}, but no node of the cluster has so much (at most {best}): {way_out}"
            ]
    return []


def _connect(settings: RayLauncher) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A task without GPUs keeps its machine's setting.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    own = {"PYTHONPATH": python_path(), **settings.env}
    given = {**settings.runtime_env, "env_vars": {**own, **settings.runtime_env.get("env_vars", {})}}
    local: dict[str, Any] = (
        {} if settings.address else {"include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
    )
    if not ray.is_initialized():
        ray.init(
            address=settings.address or "local",
            runtime_env=given,
            log_to_driver=False,
            logging_level="error",
            **local,
        )


def close() -> None:
    import ray

    ray.shutdown()


def _run(job: NodeJob) -> None:
    job()


class RayQueue:
    """Tasks on a Ray cluster, as a queue of jobs."""

    name = "ray"

    def __init__(self, settings: RayLauncher):
        _connect(settings)
        self.tasks: dict[str, Any] = {}  # Ray's handles by id
        self.over: dict[str, Ending] = {}

    def submit(self, jobs: Sequence[NodeJob]) -> list[str]:
        import ray

        ids = []
        for job in jobs:
            given = job.resources
            options: dict[str, Any] = {
                "num_cpus": given.cpus,
                "num_gpus": given.gpus,
                "max_retries": 0,
                "name": job.job["kind"],
            }
            options |= {"memory": given.mem_gb * 2**30} if given.mem_gb else {}
            task = ray.remote(_run).options(**options).remote(job)
            ids.append(task.task_id().hex()[:12])
            self.tasks[ids[-1]] = task
        return ids

    def ended(self, ids: Collection[str]) -> dict[str, Ending]:
        import ray

        waiting = {task: job_id for job_id, task in self.tasks.items() if job_id not in self.over}
        for task in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0] if waiting else []:
            try:
                ray.get(task)
                self.over[waiting[task]] = Ending("ended without a report")
            except Exception as error:  # The task, its worker or its node failed.
                self.over[waiting[task]] = Ending(
                    f"ended by {reason(getattr(error, 'cause', None) or error)}"
                )
        return {job_id: how for job_id, how in self.over.items() if job_id in ids}

    def is_alive(self, job_id: str) -> bool:
        return False  # Tasks end with the command that submitted them.

    def cancel(self, ids: Sequence[str]) -> None:
        import ray

        for job_id in ids:
            with contextlib.suppress(Exception):  # The task has just ended.
                ray.cancel(self.tasks[job_id], force=True)

    def remove_files(self, job_id: str) -> None:
        self.tasks.pop(job_id, None)
        self.over.pop(job_id, None)

    def close(self) -> None:
        close()
