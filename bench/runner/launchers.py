"""Launchers beyond one machine: jobs of SLURM and tasks of Ray behind the interface of bench/runner/launcher.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.cli.compose import BadConfig
from bench.config import ClusterLauncher, LocalLauncher, RayLauncher, SlurmLauncher
from bench.runner.cluster_queue import QueueLauncher, node_need
from bench.runner.launcher import Launcher
from bench.runner.local_pool import Pool
from bench.runner.ray_tasks import RayQueue
from bench.runner.ray_tasks import check as check_ray
from bench.runner.slurm import SlurmQueue
from bench.runner.slurm import check as check_slurm
from bench.store.keys import Stage

AnyLauncher = LocalLauncher | SlurmLauncher | RayLauncher


def make_launcher(settings: AnyLauncher, imports: Sequence[str], folder: Path, say: Callable[[str], None], devices: int = 1) -> Launcher:
    """The launcher of a command. `folder`: what a scheduler writes about jobs; `say`: a line for whoever watches; `devices`: GPUs of a
    worker here, a job on a cluster has those that its resources say."""
    match settings:
        case LocalLauncher():
            return Pool(settings, imports, devices)
        case SlurmLauncher():
            return QueueLauncher(settings, SlurmQueue(settings, folder, say), imports, say)
        case RayLauncher():
            return QueueLauncher(settings, RayQueue(settings), imports, say)


def check(settings: AnyLauncher, stages: Sequence[Stage]) -> None:
    """Raises BadConfig where the launcher cannot run these stages: no package, no scheduler, resources that no node has."""
    if not isinstance(settings, ClusterLauncher) or not stages:
        return
    package = "submitit" if isinstance(settings, SlurmLauncher) else "ray"
    if importlib.util.find_spec(package) is None:
        way_out = f"pip install -c constraints.txt -e '.[{settings.name}]'"
        raise BadConfig([f"hydra/launcher={settings.name} needs the package {package}, which is not installed: {way_out}"])
    kinds = {(stage.kind, need) for stage in stages if (need := node_need(settings, stage))}
    wanted = list(dict.fromkeys(settings.resources(kind, need) for kind, need in sorted(kinds)))
    if problems := check_slurm(settings, wanted) if isinstance(settings, SlurmLauncher) else check_ray(settings, wanted):
        raise BadConfig(problems)
