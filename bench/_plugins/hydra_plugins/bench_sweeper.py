"""Hydra's way in: it wants sweepers under `hydra_plugins.`. A thin adapter; bench/door.py and bench/run.py do the work."""

from __future__ import annotations

import sys
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BenchSweeper(Sweeper):
    """Hands the command line to the door, which has composed and checked every cell by the time Hydra gets here."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        from bench.__main__ import carry_out

        sys.exit(carry_out())
