"""Times of whole commands beside the floor and the usual way, medians of interleaved pairs, as one table.

    python -m pytest -n 0 -m performance -s tests/performance

BENCH_PAIRS: pairs of each comparison (default 3; a pair of all takes about ten minutes on two idle cores).
`-k` chooses rows: nothing, grid, usual, commands. Nothing is asserted of times, which a busy machine spoils;
the floor must have the sweep's losses and log-probs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from prepared import prepare

pytestmark = [pytest.mark.performance, pytest.mark.timeout(7200)]
HERE = Path(__file__).parent
PAIRS = int(os.environ.get("BENCH_PAIRS", "3"))
SWEEP = ("+sweep=kto_beta", "tracker=none")
EARLIER = ("data", "sft", "sample", "label")  # what the grid finds in the store
BETAS = ",".join(str(n / 100) for n in range(1, 86))


@dataclass(frozen=True)
class Spent:
    """Seconds of a whole command with its processes, and the JSON that it printed last."""

    wall_s: float
    cpu_s: float
    said: Any = None


def spend(*line: str | Path, code: int = 0) -> Spent:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    last = (done.stdout.splitlines() or [""])[-1]
    return Spent(time.perf_counter() - began, cpu, json.loads(last) if last.startswith("{") else None)


def bench(results: Path, *words: str, code: int = 0) -> Spent:
    return spend("-m", "bench", *words, f"results={results}", code=code)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spent]:
    """A finished sweep, and its time; BENCH_FINISHED names one that stands already."""
    if given := os.environ.get("BENCH_FINISHED"):
        return Path(given), Spent(0, 0)
    results = tmp_path_factory.mktemp("first")
    return results, bench(results, *SWEEP)


@pytest.fixture(scope="module")
def work(first: tuple[Path, Spent], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    prepare(first[0], folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    import torch
    import transformers
    import trl

    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpus.read_text(encoding="utf-8")) if cpus.exists() else None
    versions = ", ".join(f"{one.__name__} {one.__version__}" for one in (torch, transformers, trl))
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(
        f"\n{cores} cores ({model[1] if model else platform.machine()}), load {load:.1f} before; {platform.system()}"
    )
    print(f"Python {platform.python_version()}, {versions}; medians of {PAIRS}\n")
    print("| | wall s | CPU s | beside it: wall s | CPU s | ratio of walls | of CPU |\n" + "|---" * 7 + "|")
    yield


def row(name: str, ours: list[Spent], others: list[Spent], share: float = 1) -> None:
    """Print medians, and the medians of the pairs' ratios; `others` do a `share` of the work."""

    def middle(values: Iterator[float] | list[float], digits: int = 1) -> str:
        return f"{statistics.median(values):.{digits}f}"

    times = [middle([one.wall_s for one in ours]), middle([one.cpu_s for one in ours])]
    if others:
        times += [
            middle([one.wall_s / share for one in others]),
            middle([one.cpu_s / share for one in others]),
        ]
        pairs = list(zip(ours, others, strict=True))
        # Against the usual way, how many times longer that takes.
        up = -1 if share < 1 else 1
        times += [middle([(a.wall_s / b.wall_s * share) ** up for a, b in pairs], 2)]
        times += [middle([(a.cpu_s / b.cpu_s * share) ** up for a, b in pairs], 2)]
    print(f"| {name} | {' | '.join(times + [''] * (6 - len(times)))} |")


def floor(work: Path, *parts: str) -> Spent:
    spent = spend(HERE / "floor.py", work, "--parts", ",".join(parts))
    assert spent.said["apart"]["losses"] < 1e-3 and spent.said["apart"]["logps"] < 1e-3, spent.said
    return spent


def grid(first: tuple[Path, Spent], to: Path) -> Spent:
    """The sweep in a store that has data, start model, samples and labels."""
    for kind in EARLIER:
        shutil.copytree(first[0] / "store" / kind, to / "store" / kind, symlinks=True)
    return bench(to, *SWEEP)


def test_from_nothing(first: tuple[Path, Spent], work: Path, tmp_path: Path) -> None:
    ours, floors = [], []
    for pair in range(PAIRS):
        ours.append(bench(tmp_path / str(pair), *SWEEP))
        floors.append(floor(work, "base", "start", "samples", "reference", "cells"))
    row("from nothing / floor", ours, floors)


def test_grid(first: tuple[Path, Spent], work: Path, tmp_path: Path) -> None:
    ours, floors = [], []
    for pair in range(PAIRS):
        ours.append(grid(first, tmp_path / str(pair)))
        floors.append(floor(work, "reference", "cells"))
    row("grid / floor", ours, floors)


def test_usual_way(first: tuple[Path, Spent], work: Path, tmp_path: Path) -> None:
    """One KTO and one DPO cell the usual way are at most a quarter of the sweep's five and three."""
    ours, usual = [], []
    for pair in range(PAIRS):
        ours.append(grid(first, tmp_path / str(pair)))
        usual.append(spend(HERE / "usual.py", work, "--cells", "kto:0.1,dpo:0.1"))
    row("grid; the usual way (4 pairs of cells) / grid", ours, usual, share=0.25)


def test_commands(first: tuple[Path, Spent], tmp_path: Path) -> None:
    """Commands that train nothing, each in a process of its own."""
    cells = (
        f"method=dpo,kto method.beta={BETAS} seed=0,1,2",
        "method=dpo,kto,ipo method.beta=" + ",".join(BETAS.split(",")[:35]),
    )
    lines: dict[str, tuple[Path, tuple[str, ...], int]] = {
        "second run, nothing to do": (first[0], SWEEP, 0),
        "do=plan, 9 cells": (first[0], (*SWEEP, "do=plan"), 0),
        "do=plan, 105 cells": (tmp_path, (*cells[1].split(), "do=plan"), 0),
        "do=plan, 510 cells": (tmp_path, (*cells[0].split(), "do=plan"), 0),
        "do=report, 9 cells": (first[0], (*SWEEP, "do=report"), 0),
        "--help": (tmp_path, ("--help",), 0),
        "an unknown key": (tmp_path, (*SWEEP, "metod=kto"), 2),
    }
    for name, (results, words, code) in lines.items():
        row(name, [bench(results, *words, code=code) for _ in range(PAIRS)], [])
    row("import bench", [spend("-c", "import bench") for _ in range(PAIRS)], [])
