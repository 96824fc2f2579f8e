"""The scheduler with a real store and real workers; only what the stages do is made up."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fake_stages"))

from fake_stage import HERE, Fake, attempts, fake

from bench import methods
from bench.cli.compose import BadConfig, open_command
from bench.config import LocalLauncher
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan, all_stages
from bench.runner.launcher import StageReport
from bench.runner.local_pool import Pool
from bench.runner.preflight import check_devices
from bench.runner.scheduler import Scheduler
from bench.store import stage_settings
from bench.store.keys import Stage
from bench.store.store import Store


@pytest.fixture(autouse=True)
def _known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_settings.SETTINGS, "fake", (Fake,))
    monkeypatch.setitem(stage_settings.VERSIONS, "fake", 1)
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@dataclass
class Heard:
    """A screen that remembers."""

    said: list[str] = field(default_factory=list)
    ended: list[tuple[str, str, str]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)

    def stage_started(self, stage: Stage) -> None:
        self.started.append(stage.label)

    def stage_ended(
        self,
        stage: Stage,
        outcome: str,
        error: str = "",
        log: Path | None = None,
        worked_s: float | None = None,
    ) -> None:
        self.ended.append((stage.label, outcome, error))

    def progress(self, stage: Stage, row: Mapping[str, float]) -> None: ...

    def cell_ended(self, cell: CellPlan, reason: str | None) -> None: ...

    def summary(self) -> str:
        return ""


@dataclass
class Command:
    """What one command has: its view of the store, its pool, its screen."""

    root: Path
    workers: int = 1
    screen: Heard = field(default_factory=Heard)
    failures: dict[Stage, str] = field(default_factory=dict)
    rows: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def run(self, *scores: Stage) -> Self:
        cells = [CellPlan(None, stage.key, stage.label, stage, {}) for stage in scores]  # type: ignore[arg-type]
        pool = Pool(
            LocalLauncher(name="local", workers=self.workers, threads=1, stage_timeout_s=60.0, retries=1)
        )
        seconds = {stage: self.seconds.get(stage.label, 1.0) for stage in all_stages(cells)}
        try:
            Scheduler(
                Store(self.root),
                pool,
                self.screen,
                1,
                self.failures,
                seconds,
                lambda: None,
                self.progressed,
                self.workers,
            ).run(cells)
        finally:
            pool.close()
        return self

    def progressed(self, stage: Stage, rows: Sequence[dict[str, float]]) -> None:
        self.rows += [(stage.label, row) for row in rows]

    def outcomes(self) -> dict[str, str]:
        return {label: outcome for label, outcome, _ in self.screen.ended}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "fake").mkdir()
    return tmp_path


def test_inputs_come_first_and_a_shared_stage_runs_once(root: Path) -> None:
    shared = fake("shared")
    command = Command(root).run(fake("a", shared), fake("b", shared))
    assert command.outcomes() == {"shared": "done", "a": "done", "b": "done"}
    assert command.screen.started[0] == "shared"
    assert len(attempts(shared, root)) == 1
    assert (Store(root).folder(fake("a", shared)) / "text").read_text() == "ashared"


def test_a_second_command_runs_nothing(root: Path) -> None:
    Command(root).run(fake("a", fake("b")))
    assert Command(root).run(fake("a", fake("b"))).screen.started == []


def test_the_cell_with_the_least_work_left_comes_first(root: Path) -> None:
    """One worker, whose time is the same in any order: rows end one by one."""
    early, late = fake("early"), fake("late")
    scores = [fake("long", early), fake("short", late), fake("last")]
    command = Command(root, seconds={"early": 1, "late": 1, "long": 3, "short": 1, "last": 0.5}).run(*scores)
    assert command.screen.started == ["last", "late", "short", "early", "long"]


def test_a_chain_that_no_worker_may_wait_with_comes_before_all_cells(root: Path) -> None:
    """Two workers: 4 s behind `early` are more than half of the 6.5 s of all, so it must not wait for the short cells."""
    early = fake("early")
    scores = [fake("a"), fake("b"), fake("long", early)]
    seconds = {"early": 1, "long": 3, "a": 1, "b": 1.5}
    command = Command(root, workers=2, seconds=seconds).run(*scores)
    assert command.screen.started[:2] == ["early", "a"]


def test_a_lost_stage_is_tried_once_more(root: Path) -> None:
    stage = fake("dies", die=1)
    command = Command(root).run(stage)
    assert command.screen.ended == [
        ("dies", "retried", "its worker process died (signal SIGKILL)"),
        ("dies", "done", ""),
    ]
    assert command.failures == {}
    assert len(attempts(stage, root)) == 2
    assert not list(root.glob("fake/*.build-*"))  # what the first attempt left


def test_a_stage_lost_twice_fails_and_only_what_needs_it_is_left_out(root: Path) -> None:
    dies = fake("dies", die=2)
    needs, other = fake("needs", dies), fake("other")
    command = Command(root).run(needs, other)
    assert command.failures == {dies: "its worker process died (signal SIGKILL)"}
    assert command.outcomes() == {"dies": "lost", "other": "done"}
    assert Store(root).failure(dies) == "its worker process died (signal SIGKILL)"
    assert attempts(needs, root) == []


def test_a_failure_is_kept_and_the_next_command_tries_again(root: Path, tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    stage = fake("reads", tape=str(tape))
    first = Command(root).run(stage, fake("other"))
    assert "No such file" in first.failures[stage]
    assert Store(root).failure(stage) == first.failures[stage]
    assert first.outcomes() == {"reads": "failed", "other": "done"}
    tape.write_text("now it is there")
    second = Command(root).run(stage, fake("other"))
    assert second.outcomes() == {"reads": "done"}
    assert Store(root).failure(stage) is None


def test_what_was_computed_from_other_bytes_is_said_and_computed_again(root: Path, tmp_path: Path) -> None:
    """`top` read `middle`, which read `source`; `new` makes it necessary to make `source` again."""
    tape = tmp_path / "tape"
    tape.write_text("one")
    source = fake("source", tape=str(tape))
    middle, new = fake("middle", source), fake("new", source)
    top = fake("top", middle)
    Command(root).run(top)
    shutil.rmtree(Store(root).folder(source))
    tape.write_text("two")
    command = Command(root).run(top, new)
    assert [
        line for line in command.screen.said if "made again with other bytes" in line
    ] == command.screen.said
    assert len(command.screen.said) == 2  # of middle, and then of top
    assert command.outcomes() == {"source": "done", "middle": "done", "top": "done", "new": "done"}
    assert (Store(root).folder(top) / "text").read_text() == "topmiddletwo"
    assert Command(root).run(top, new).screen.started == []


def test_an_input_made_again_with_the_same_bytes_leaves_its_readers_alone(root: Path) -> None:
    source = fake("source")
    Command(root).run(fake("old", source))
    shutil.rmtree(Store(root).folder(source))
    command = Command(root).run(fake("old", source), fake("new", source))
    assert command.outcomes() == {"source": "done", "new": "done"}


def test_progress_arrives_whole_and_what_a_killed_command_left_is_not_read(root: Path) -> None:
    stage = fake("steps", steps=50)
    left = Store(root).sidecar(stage, "progress.jsonl")
    left.write_text('{"step": 999, "total": 999}\n' * 200 + '{"step": ')
    command = Command(root).run(stage)
    assert [row["step"] for _, row in command.rows] == list(range(1, 51))
    assert command.rows[1][1] == {"step": 2, "total": 50, "loss": 0.5}
    assert not left.exists()


def test_a_stage_that_another_command_computes_is_waited_for(root: Path) -> None:
    shared = fake("shared")
    store = Store(root)
    lock = store.try_lock(shared)
    assert lock is not None
    command = Command(root)
    thread = threading.Thread(target=command.run, args=[fake("mine", shared)])
    thread.start()
    time.sleep(1.0)
    assert command.screen.started == []
    assert command.screen.said == ["waiting for stages that another command computes"]
    lock.release()
    thread.join(30)
    assert command.outcomes() == {"shared": "done", "mine": "done"}


def test_two_commands_at_once_share_the_work(root: Path) -> None:
    shared = [fake(f"shared{i}", seconds=0.3) for i in range(4)]
    both = [fake("both", *shared), fake("one", shared[0]), fake("two", shared[1])]
    commands = [Command(root), Command(root)]
    threads = [threading.Thread(target=commands[i].run, args=[both[0], both[1 + i]]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(Store(root).status(stage).state == "done" for stage in both)
    assert [len(attempts(stage, root)) for stage in [*shared, *both]] == [1] * 7
    assert sum(outcome == "elsewhere" for command in commands for _, outcome, _ in command.screen.ended) >= 1
    assert all(command.failures == {} for command in commands)


def test_a_stage_whose_folder_is_damaged_on_arrival_has_failed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what was written: the check after a stage finds it."""
    stage = fake("a")

    class Losing(Store):
        def invalidate(self, stage: Stage) -> None:
            super().invalidate(stage)
            (self.folder(stage) / "text").unlink(missing_ok=True)

    cells = [CellPlan(None, stage.key, "a", stage, {})]  # type: ignore[arg-type]
    pool = Pool(LocalLauncher(name="local", workers=1, threads=1, stage_timeout_s=60.0, retries=1))
    failures: dict[Stage, str] = {}
    try:
        Scheduler(Losing(root), pool, Heard(), 1, failures, {}, lambda: None, lambda stage, rows: None).run(
            cells
        )
    finally:
        pool.close()
    assert "text is missing: the stage counts as absent" in failures[stage]


def test_an_interrupted_command_lets_its_locks_go_and_says_what_it_was_at(root: Path) -> None:
    class Interrupted(Heard):
        def stage_started(self, stage: Stage) -> None:
            raise KeyboardInterrupt

    stage = fake("a")
    with pytest.raises(KeyboardInterrupt):
        Command(root, screen=Interrupted()).run(stage)
    lock = Store(root).try_lock(stage)
    assert lock is not None
    lock.release()
    assert Store(root).was_interrupted(stage)
    half = (
        Store(root).folder(stage).with_name(f"{stage.key}.build-node9-77-abcdef")
    )  # of a job that the command cancelled
    half.mkdir()
    assert Command(root).run(stage).outcomes() == {"a": "done"}
    assert not Store(root).was_interrupted(stage) and not half.exists()


def test_a_worker_that_dies_after_its_stage_was_finished_has_lost_nothing(root: Path) -> None:
    """As a node that goes down between the last write and its report."""
    stage = fake("a")
    cells = [CellPlan(None, stage.key, "a", stage, {})]  # type: ignore[arg-type]

    class Dying(Pool):
        def reports(self, timeout_s: float) -> list[StageReport]:
            return [
                StageReport(report.key, "lost", "the node is gone") for report in super().reports(timeout_s)
            ]

    pool, screen, failures = (
        Dying(LocalLauncher(name="local", workers=1, threads=1, stage_timeout_s=60.0, retries=0)),
        Heard(),
        {},
    )
    try:
        Scheduler(Store(root), pool, screen, 0, failures, {}, lambda: None, lambda stage, rows: None).run(
            cells
        )
    finally:
        pool.close()
    assert screen.ended == [("a", "done", "")]
    assert failures == {}


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (
            ["accelerate=fsdp"],
            "each training needs accelerate.devices=8 GPUs, but this machine has 1. Use fewer devices",
        ),
        (
            ["accelerate=fsdp", "hydra/launcher=slurm"],
            r"slurm gives 1 to train .*. Set 'hydra.launcher.stages=\{train: \{gpus: 8\}\}'",
        ),
        (["accelerate=fsdp", "hydra/launcher=slurm", "hydra.launcher.stages={train: {gpus: 8}}"], ""),
        (["accelerate=ddp", "accelerate.config.use_cpu=true"], ""),
        (
            ["accelerate=fsdp", "accelerate.config.use_cpu=true"],
            "accelerate=fsdp divides a model among GPUs; .* Use accelerate=ddp",
        ),
        (
            ["accelerate=fsdp", "adapter=qlora", "do=plan"],
            "adapter=qlora keeps a whole base model .* Use accelerate=ddp",
        ),
        (
            ["accelerate.devices=2", "accelerate.config.use_cpu=true"],
            "accelerate.devices=2 needs a way to spread .* Use accelerate=ddp",
        ),
        (
            ["accelerate=ddp", "accelerate.config.num_processes=4"],
            r"accelerate.config.num_processes must be 2 with .*, got 4",
        ),
        (["accelerate=zero3"], r"accelerate=zero3 needs DeepSpeed, .* pip install -e '.\[deepspeed\]'"),
        (
            ["accelerate=ddp", "accelerate.config.use_cpu=true", "accelerate.devices=3"],
            r"batch_size=\d+ x .* cannot be divided evenly",
        ),
        (
            ["accelerate=ddp", "accelerate.config.use_cpu=true", "method=spa"],
            "method=spa trains on one device, because",
        ),
        ([], ""),
    ],
)
def test_gpus_that_a_training_will_not_find_are_refused_before_anything_runs(
    words: list[str], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("bench.training.devices.find_spec", lambda package: None)
    named = [] if any(word.startswith("method=") for word in words) else ["method=dpo"]
    opened = open_command(["+sweep=smoke", *named, *words])
    stages = plan_cell(opened.cells[0], opened.sources[0], methods.chain).stages
    if not refused:
        check_devices(opened.session, stages)
        return
    with pytest.raises(BadConfig, match=refused):
        check_devices(opened.session, stages)
    check_devices(opened.session, [stage for stage in stages if stage.kind != "train"])
