"""`keep=weights|adapters|numbers`: what stays of a trained model once all numbers that need it are in.

A sixty-cell sweep of 7B models is about a terabyte of weights; its numbers are megabytes. Weights of a stage go when every cell of the
command that it serves has its numbers. A cell that failed keeps its weights, for the next command goes on from them. Nothing of it
reaches a key: a table is the same with any of the three.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bench.config import Keep
from bench.planning.inputs import CellPlan, all_stages
from bench.records import size_words
from bench.store.store import Manifest, Store

WEIGHTS = ".safetensors"
ADAPTER = "adapter_model"  # begins PEFT's files of an adapter's weights


@dataclass
class Evicted:
    """What was given up: stages, and bytes of their weights."""

    stages: int = 0
    size: int = 0

    def words(self) -> str:
        """Nothing where nothing was."""
        return f"weights of {self.stages} stages evicted, {size_words(self.size)} of disk freed" if self.stages else ""


def weight_files(manifest: Manifest) -> Iterator[str]:
    return (name for name in manifest.files if name.endswith(WEIGHTS))


def evict(keep: Keep, cells: Sequence[CellPlan], store: Store) -> Evicted:
    """Give up what `keep` lets go of the stages that no unfinished cell needs. What cannot be deleted stays, and is tried again."""
    found = Evicted()
    if keep == "weights":
        return found
    needed = {stage for cell in cells if not _has_numbers(cell, store) for stage in cell.stages}
    for stage in all_stages(cells):
        manifest = store.status(stage).manifest if stage not in needed else None
        if manifest is None or not store.is_done(stage):
            continue
        names = [name for name in weight_files(manifest) if keep == "numbers" or not PurePosixPath(name).name.startswith(ADAPTER)]
        names = [name for name in names if name not in manifest.evicted or (store.folder(stage) / name).exists()]
        with contextlib.suppress(OSError):
            if names and (freed := store.evict(stage, names)):
                found.stages, found.size = found.stages + 1, found.size + freed
    return found


def evicted(cells: Sequence[CellPlan], store: Store) -> Evicted:
    """What commands have given up of these cells and nobody has made again."""
    found = Evicted()
    for stage in all_stages(cells):
        manifest = store.status(stage).manifest
        if manifest and (gone := [name for name in weight_files(manifest) if name in manifest.evicted]):
            found.stages += 1
            found.size += sum(manifest.files[name].size for name in gone)
    return found


def _has_numbers(cell: CellPlan, store: Store) -> bool:
    """Whether nothing of a cell is still to be made."""
    return all(store.is_done(stage) for stage in [cell.score, *cell.roles.values()])
