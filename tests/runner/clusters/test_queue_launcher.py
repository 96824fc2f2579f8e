"""What the launcher of a queue does with stages: which are jobs, in which waves, and what it makes of silence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Desk, cluster_settings
from fake_stage import fake
from test_launchers import beside, start, wait

from bench.cli.compose import BadConfig, open_command
from bench.config import ResourceChanges, Resources
from bench.runner import launchers
from bench.runner.cluster_queue import QueueLauncher
from bench.runner.launcher import StageReport
from bench.runner.node_job import NodeJob
from bench.runner.worker import describe
from bench.store.stage_settings import GoldPreferenceSettings, LanguageJudgeSettings, needs
from bench.store.store import Store

RunBench = Callable[..., object]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("bench.runner.cluster_queue.REPORT_WAIT_S", 0.5)
    return Desk(tmp_path)


def test_what_becomes_ready_together_is_one_wave_by_resources(desk: Desk, store: Store) -> None:
    launcher = QueueLauncher(cluster_settings(), desk, [], print)
    try:
        start(launcher, store, fake("a"), fake("b"))
        launcher.start(describe(fake("c"), store) | {"needs": "gpu"}, store.sidecar(fake("c"), "log"))
        assert desk.waves == []
        wait(launcher, 3)
        start(launcher, store, fake("d"))
        wait(launcher)
    finally:
        launcher.close()
    assert desk.waves == [["a", "b", "c"], ["d"]]  # a GPU's share is the same here


def test_kinds_with_other_resources_are_other_waves(desk: Desk, store: Store) -> None:
    more = Resources(gpus=2, cpus=1, mem_gb=None, time_min=5)
    launcher = QueueLauncher(cluster_settings(gpu=more), desk, [], print)
    try:
        start(launcher, store, fake("a"))
        launcher.start(describe(fake("c"), store) | {"needs": "gpu"}, store.sidecar(fake("c"), "log"))
        wait(launcher, 2)
    finally:
        launcher.close()
    assert sorted(desk.waves) == [["a"], ["c"]]


def test_stages_without_a_model_run_where_the_command_was_typed_unless_they_are_queued_too(
    desk: Desk, store: Store
) -> None:
    launcher = QueueLauncher(cluster_settings(queue_cpu=False, here_workers=1), desk, [], print)
    try:
        start(launcher, store, fake("a"))
        assert not launcher.can_take("cpu") and not launcher.can_take(
            "network"
        )  # its one process here is at work
        assert launcher.can_take("gpu")
        assert wait(launcher) == [StageReport(fake("a").key, "done")]
    finally:
        launcher.close()
    assert desk.waves == []


def test_no_more_jobs_than_may_be_in_the_queue(desk: Desk, store: Store) -> None:
    launcher = QueueLauncher(cluster_settings(max_jobs=2), desk, [], print)
    try:
        start(launcher, store, fake("a", seconds=1.0), fake("b"))
        assert not launcher.can_take("gpu")
        wait(launcher)
        assert launcher.can_take("gpu")
        wait(launcher)
    finally:
        launcher.close()


def test_a_job_that_is_refused_is_a_failure_with_the_schedulers_words(desk: Desk, store: Store) -> None:
    desk.most = 0
    launcher = QueueLauncher(cluster_settings(), desk, [], print)
    try:
        start(launcher, store, fake("a"))
        assert wait(launcher) == [StageReport(fake("a").key, "failed", "the desk is full")]
        assert launcher.can_take("gpu") and beside(store) == []
    finally:
        launcher.close()


def test_an_answer_to_an_earlier_attempt_is_not_taken(desk: Desk, store: Store) -> None:
    stage = fake("slow", seconds=1.0)
    launcher = QueueLauncher(cluster_settings(), desk, [], print)
    try:
        start(launcher, store, stage)
        launcher.reports(0.0)
        old = json.dumps({"attempt": "earlier", "outcome": "failed", "error": "long ago", "node": "x"})
        store.sidecar(stage, "answer.json").write_text(old)
        assert wait(launcher) == [StageReport(stage.key, "done")]
    finally:
        launcher.close()


def test_a_job_that_is_queued_again_is_said_and_waited_for(desk: Desk, store: Store) -> None:
    stage, said = fake("slow", seconds=1.5), []
    launcher = QueueLauncher(cluster_settings(), desk, [], said.append)
    try:
        start(launcher, store, stage)
        launcher.reports(0.0)
        again = {
            "attempt": launcher.jobs[stage.key].attempt,
            "outcome": "requeued",
            "error": "is queued again",
            "node": "x",
        }
        store.sidecar(stage, "answer.json").write_text(json.dumps(again))
        assert wait(launcher) == [StageReport(stage.key, "done")]
    finally:
        launcher.close()
    (line,) = said
    assert line.endswith(f"({stage.key[:6]}) is queued again")


def test_a_store_that_a_node_does_not_see_is_said(store: Store, tmp_path: Path) -> None:
    given = Resources(gpus=0, cpus=1, mem_gb=None, time_min=5)
    job = NodeJob(
        {**describe(fake("a"), store), "store": "/nowhere/store"},
        str(tmp_path / "a.log"),
        "1",
        1,
        None,
        given,
    )
    with pytest.raises(
        RuntimeError,
        match=r"/nowhere/store does not exist on node .*: set results= to a folder that all nodes share",
    ):
        job()


def test_a_stage_beyond_its_time_is_ended_on_the_node(store: Store) -> None:
    stage = fake("hangs", hang=1)
    given = Resources(gpus=0, cpus=1, mem_gb=None, time_min=5)
    NodeJob(describe(stage, store), str(store.sidecar(stage, "log")), "1", 1, 2.0, given)()
    answer = json.loads(store.sidecar(stage, "answer.json").read_text())
    assert (answer["outcome"], answer["error"]) == (
        "late",
        "took longer than 5 min and was stopped: raise time_min",
    )


# What a stage needs ---------------------------------------------------------------------------------------------------


def test_judges_that_are_asked_over_the_network_stay_where_the_key_is() -> None:
    """Of the judges that are language models one runs in the worker and wants its GPU; the gold judge needs neither."""
    from types import SimpleNamespace

    def kind_of(settings: object, kind: str = "judge") -> str:
        return needs(SimpleNamespace(kind=kind, settings=settings))  # type: ignore[arg-type]

    asked = [
        LanguageJudgeSettings.model_construct(asking=SimpleNamespace(server=server))
        for server in ("endpoint", "vllm", "in_process")
    ]
    assert [kind_of(settings) for settings in asked] == ["network", "network", "gpu"]
    assert kind_of(GoldPreferenceSettings.model_construct()) == "cpu"
    assert {kind: kind_of(None, kind) for kind in ("data", "sft", "train", "score")} == {
        "data": "cpu", "sft": "gpu", "train": "gpu", "score": "cpu",
    }  # fmt: skip


# Settings -------------------------------------------------------------------------------------------------------------


def test_resources_are_those_of_the_need_with_the_changes_of_the_kind() -> None:
    words = [
        "hydra/launcher=slurm",
        "hydra.launcher.gpu.partition=a100",
        "hydra.launcher.stages={train: {gpus: 4, time_min: 1440}}",
    ]
    settings = open_command(words).session.launcher
    train, generate, label = (
        settings.resources(*of) for of in (("train", "gpu"), ("generate", "gpu"), ("label", "cpu"))
    )  # type: ignore[union-attr]
    assert (train.partition, train.gpus, train.time_min) == ("a100", 4, 1440)  # type: ignore[attr-defined]
    assert (generate.partition, generate.gpus) == ("a100", 1)  # type: ignore[attr-defined]
    assert (label.partition, label.gpus) == (None, 0)  # type: ignore[attr-defined]
    assert (
        cluster_settings(stages={"train": ResourceChanges(mem_gb=64.0)}).resources("train", "gpu").mem_gb
        == 64.0
    )


def test_what_is_wrong_with_a_clusters_settings_is_refused_before_a_run(
    problems: Callable[..., list[str]],
) -> None:
    found = problems(
        "hydra/launcher=slurm", "hydra.launcher.gpu.gpus=-1", "hydra.launcher.stages={train: {gpu: 3}}"
    )
    assert found[0].startswith("hydra.launcher.gpu.gpus must be >= 0, got -1")
    assert "did you mean hydra.launcher.stages.train.gpus?" in found[1]
    (unknown,) = problems("hydra/launcher=ray", "hydra.launcher.gpu.partition=x")
    assert unknown.startswith("unknown key 'hydra.launcher.gpu.partition'")


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_package_that_is_not_there_is_named_with_the_way_to_get_it(
    launcher: str, package: str, run_bench: RunBench, tmp_path: Path
) -> None:
    code = (
        f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_module('bench', run_name='__main__')"
    )
    done = run_bench("+sweep=smoke", f"hydra/launcher={launcher}", "tracker=none", python=("-c", code))
    assert done.returncode == 2  # type: ignore[attr-defined]
    way_out = f"install it with pip install -c constraints.txt -e '.[{launcher}]'"
    assert (
        done.stderr
        == f"hydra/launcher={launcher} needs the package {package}, which is not installed: {way_out}\n"
    )  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("results/store/*"))


def test_a_machine_without_slurm_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "submitit.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(
        BadConfig,
        match="needs SLURM's sbatch, squeue, scontrol, scancel on the PATH: run the command on a machine",
    ):
        launchers.check(open_command(["hydra/launcher=slurm"]).session.launcher, [fake("a")])
    launchers.check(open_command(["hydra/launcher=slurm"]).session.launcher, [])  # nothing is to do
