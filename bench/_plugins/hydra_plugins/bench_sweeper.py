"""Hydra's way in: it wants sweepers under `hydra_plugins.`. A thin adapter; bench/door and bench/commands/run.py do the work."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BenchSweeper(Sweeper):
    """Calls the task once: the door has composed and checked every cell by the time Hydra gets here."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.task_function, self.config = task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        return self.task_function(self.config)
