"""What a worker does with one stage."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fake_stages"))

import fake_stage
from fake_stage import Fake, fake

from bench.runner import worker
from bench.runner.worker import describe, environment, run_stage
from bench.store import stage_settings
from bench.store.keys import Stage
from bench.store.stage_run import Progress, reason
from bench.store.store import Store


@pytest.fixture(autouse=True)
def _known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_settings.SETTINGS, "fake", (Fake,))
    monkeypatch.setitem(stage_settings.VERSIONS, "fake", 1)
    monkeypatch.setitem(sys.modules, "bench.stages.fake", fake_stage)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "fake").mkdir()
    return Store(tmp_path)


def run(stage: Stage, store: Store) -> None:
    run_stage(json.loads(json.dumps(describe(stage, store))))


def test_a_stage_leaves_a_folder_with_the_digests_of_what_it_read(store: Store) -> None:
    first = fake("first")
    run(first, store)
    second = fake("second", first)
    run(second, store)
    manifest = Store(store.root).manifest(second)
    assert manifest.inputs == {"input0": {"key": first.key, "digest": store.digest(first)}}
    assert manifest.settings["name"] == "second"
    assert manifest.timings["wall_s"] >= 0
    assert set(manifest.recorded) == {"revision", "packages", "python", "machine", "threads", "device"}
    assert manifest.recorded["packages"]["torch"].startswith("2.")


def test_a_stage_that_raises_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="no luck"):
        run(fake("bad", fail="no luck"), store)
    assert [path.name for path in (store.root / "fake").iterdir() if path.is_dir()] == []


def test_a_worker_of_another_version_refuses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = describe(fake("a"), store)
    monkeypatch.setitem(stage_settings.VERSIONS, "fake", 2)
    with pytest.raises(RuntimeError, match=f"for stage fake/{job['key']}: it runs another version of bench"):
        run_stage(job)


def test_reasons_are_one_line_of_bearable_length() -> None:
    assert reason(ValueError("expected\n  this")) == "ValueError: expected this"
    long = reason(RuntimeError("x" * 10_000))
    assert long.endswith("x...")
    assert len(long) < 500
    assert reason(KeyError("column")) == "KeyError: 'column'"


def test_progress_begins_anew_and_each_row_is_a_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text("left by somebody\n")
    progress = Progress(path)
    progress(1, 4, loss=0.5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "total": 4, "loss": 0.5}
    ]
    progress.close()


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key.log")
    with pytest.raises(OSError, match="expected a file, got a pipe: move it away"):
        worker._log_to(str(tmp_path / "key.log"))


def test_the_device_is_asked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's first stage has not loaded torch; later ones may run on a GPU."""

    class Cuda:
        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def get_device_name() -> str:
            return "NVIDIA H200"

    class Torch:
        cuda = Cuda

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert environment()["device"] == "cpu"
    monkeypatch.setitem(sys.modules, "torch", Torch)  # type: ignore[arg-type]
    assert environment()["device"] == "NVIDIA H200"


def test_every_kind_that_loads_models_has_its_imports_named() -> None:
    import importlib

    assert set(worker.HEAVY_IMPORTS) == {"sft", "sample", "logps", "generate", "tasks", "train"}
    for modules in worker.HEAVY_IMPORTS.values():
        for module in modules:
            assert importlib.util.find_spec(module) is not None
