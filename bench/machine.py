"""This machine: where the program lies, its cores and GPUs, and how a process ends with its parent."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent  # the folder `bench`
ROOT = PACKAGE.parent  # the folder that a process needs on its PYTHONPATH to import this `bench`
