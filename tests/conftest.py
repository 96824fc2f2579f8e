"""What many tests need: the real command, its checks without a process, files of a user, small stages."""

from __future__ import annotations

import contextlib
import json
import locale
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker a core
# Tests read, write and show UTF-8 whatever the locale is. test_house.py and test_door.py see to it that bench does.
os.environ["PYTHONUTF8"] = "1"  # of what they start
with contextlib.suppress(locale.Error):
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

import warm
from endpoint import Endpoint

from bench.cli.compose import BadConfig, CheckedCommand, open_command
from bench.config import Cell

ROOT = Path(__file__).parent.parent
settings.register_profile(
    "bench", deadline=None, derandomize=True, database=None
)  # the same everywhere, on busy machines too
settings.load_profile("bench")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[warm.SHARED] = tempfile.mkdtemp(prefix="bench-tests-", suffix=f"-{os.getpid()}")


LONG = {
    "test_compose",
    "test_config",
    "test_odd_replies",
    "test_readmes",
    "test_secrets",
    "test_templates",
    "test_wandb_mirror",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests carry out whole commands, and other long ones, come first: the others even out what is left at the end."""
    items.sort(
        key=lambda item: (
            not {"bench", "smoke", "smoke_cell"} & set(dir(getattr(item, "module", None)))
            and item.path.stem not in LONG
        )
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(warm.SHARED), ignore_errors=True)


EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"  # the length of its header, and the header

RunBench = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint()
    yield running
    running.close()


@pytest.fixture
def run_bench(tmp_path: Path) -> RunBench:
    """`python -m bench ...` in an empty folder, or the same forked from a warm process; results land there too."""

    def run(
        *words: str, python: Sequence[str] = ("-m", "bench"), cold: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key != "BENCH_RESULTS"}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**variables, "PYTHONPATH": path, **environment}
        if warm.POSSIBLE and not cold:
            return warm.run("bench", *words, folder=tmp_path, environ=environment, timeout_s=120)
        return subprocess.run(
            [sys.executable, *python, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def opened() -> Callable[..., CheckedCommand]:
    """The checked command of some words; asked once, composing takes 0.1 s."""
    return lru_cache(maxsize=None)(lambda *words: open_command(words))


@pytest.fixture(scope="session")
def problems() -> Callable[..., list[str]]:
    """Problems that the checks find in the words of a command."""

    def ask(*words: str) -> list[str]:
        try:
            open_command(words)
        except BadConfig as error:
            return error.problems
        return []

    return ask


@pytest.fixture(scope="session")
def cell() -> Cell:
    """The cell of a command without words: KTO in the controlled world."""
    return open_command(()).cells[0]


PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"A good answer to {i}.", "rejected": f"A bad one {i}."}
    for i in range(20)
]  # fmt: skip
UNPAIRED = [
    {"prompt": f"Question {i}?", "completion": f"Answer {i}.", "label": i % 2 == 0} for i in range(20)
]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def unpaired_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "unpaired.jsonl", UNPAIRED)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The files of a model folder that the checks read."""
    folder = tmp_path / "my_model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{} tokenizer.json")
    (folder / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder
