"""Deletes trained weights once every number that needs them is stored (`keep=weights|adapters|numbers`).

`weights` keeps all of them, `adapters` keeps those of adapters, `numbers` keeps none. A sixty-cell sweep of
7B models holds about a terabyte of weights; its numbers are megabytes. The weights of a stage are deleted
when every cell of the command that needs them has its numbers. A failed cell keeps its weights, because the
next command continues from them. `keep` is in no key: the table is the same with all three.
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
ADAPTER = "adapter_model"  # PEFT's names of files with an adapter's weights begin with it.


@dataclass
class Evicted:
    """Evicted weights: the number of stages, and the size in bytes."""

    stages: int = 0
    size: int = 0

    def words(self) -> str:
        """A line for the screen; empty where nothing was evicted."""
        return (
            f"weights of {self.stages} stages are deleted (keep=), which frees {size_words(self.size)} of disk"
            if self.stages
            else ""
        )


def weight_files(manifest: Manifest) -> Iterator[str]:
    """The names of a stage's files that hold weights."""
    return (name for name in manifest.files if name.endswith(WEIGHTS))


def evict(keep: Keep, cells: Sequence[CellPlan], store: Store) -> Evicted:
    """Delete the weights that `keep` does not keep, of stages that no unfinished cell needs.

    A file that cannot be deleted stays; the next command tries again.
    """
    deleted = Evicted()
    if keep == "weights":
        return deleted
    needed = {stage for cell in cells if not _has_numbers(cell, store) for stage in cell.stages}
    for stage in all_stages(cells):
        manifest = store.status(stage).manifest if stage not in needed else None
        if manifest is None or not store.is_done(stage):
            continue
        names = [
            name
            for name in weight_files(manifest)
            if keep == "numbers" or not PurePosixPath(name).name.startswith(ADAPTER)
        ]
        names = [
            name for name in names if name not in manifest.evicted or (store.folder(stage) / name).exists()
        ]
        with contextlib.suppress(OSError):
            if names and (freed := store.evict(stage, names)):
                deleted.stages, deleted.size = deleted.stages + 1, deleted.size + freed
    return deleted


def evicted(cells: Sequence[CellPlan], store: Store) -> Evicted:
    """The weights of these cells that are evicted now."""
    absent = Evicted()
    for stage in all_stages(cells):
        manifest = store.status(stage).manifest
        if manifest and (gone := [name for name in weight_files(manifest) if name in manifest.evicted]):
            absent.stages += 1
            absent.size += sum(manifest.files[name].size for name in gone)
    return absent


def _has_numbers(cell: CellPlan, store: Store) -> bool:
    """Whether every stage of a cell that makes its numbers is done."""
    return all(store.is_done(stage) for stage in [cell.score, *cell.roles.values()])
