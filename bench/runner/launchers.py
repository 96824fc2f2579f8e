"""Makes and checks the launcher of a command: local workers, SLURM jobs or Ray tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.cli.compose import BadConfig
from bench.config import ClusterLauncher, LocalLauncher, RayLauncher, SlurmLauncher
from bench.runner.cluster_queue import QueueLauncher
from bench.runner.launcher import Launcher
from bench.runner.local_pool import Pool
from bench.runner.node_job import node_need
from bench.runner.ray_tasks import RayQueue
from bench.runner.ray_tasks import check as check_ray
from bench.runner.slurm import SlurmQueue
from bench.runner.slurm import check as check_slurm
from bench.store.keys import Stage

AnyLauncher = LocalLauncher | SlurmLauncher | RayLauncher


def make_launcher(
    settings: AnyLauncher, imports: Sequence[str], folder: Path, say: Callable[[str], None], devices: int = 1
) -> Launcher:
    """The launcher of a command.

    `imports`: modules that idle workers load. `folder`: the scheduler's files about jobs. `say`: prints a
    line on screen. `devices`: GPUs of a local worker; those of a cluster's job are in its resources.
    """
    match settings:
        case LocalLauncher():
            return Pool(settings, imports, devices)
        case SlurmLauncher():
            return QueueLauncher(settings, SlurmQueue(settings, folder, say), imports, say)
        case RayLauncher():
            return QueueLauncher(settings, RayQueue(settings), imports, say)


def check(settings: AnyLauncher, stages: Sequence[Stage]) -> None:
    """Check that the launcher can run these stages: its package, its scheduler, nodes with the resources.

    Raises BadConfig.
    """
    if not isinstance(settings, ClusterLauncher) or not stages:
        return
    package = "submitit" if isinstance(settings, SlurmLauncher) else "ray"
    if importlib.util.find_spec(package) is None:
        way_out = f"install it with pip install -c constraints.txt -e '.[{settings.name}]'"
        raise BadConfig(
            [f"hydra/launcher={settings.name} needs the package {package}, which is not installed: {way_out}"]
        )
    kinds = {(stage.kind, need) for stage in stages if (need := node_need(settings, stage))}
    wanted = list(dict.fromkeys(settings.resources(kind, need) for kind, need in sorted(kinds)))
    if (
        problems := check_slurm(settings, wanted)
        if isinstance(settings, SlurmLauncher)
        else check_ray(settings, wanted)
    ):
        raise BadConfig(problems)
