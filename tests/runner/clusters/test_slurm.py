"""What is made of SLURM's words, from commands that print what SLURM prints; and (slow) time limits of a real one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from conftest import slurm_settings
from fake_stage import attempts, fake
from test_launchers import start

from bench.cli.compose import BadConfig
from bench.config import SlurmResources
from bench.runner.launcher import StageReport
from bench.runner.launchers import check, make_launcher
from bench.runner.slurm import JobState, SlurmQueue, describe_end, run_squeue, without_slurm_variables
from bench.store.store import Store

SHOWN = (
    "JobId=17 ArrayJobId=17 ArrayTaskId=3 JobName=bench UserId=me(1000) JobState=NODE_FAIL Reason=NodeDown Dependency=(null) "
    "ExitCode=0:9 RunTime=00:01:02 Partition=main AllocNode:Sid=login:77 ReqNodeList=(null) ExcNodeList=(null) NodeList=node3"
)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the PATH; `command` writes what a command prints."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def command(folder: Path, name: str, prints: str = "", code: int = 0) -> None:
    (folder / f"{name}.out").write_text(prints)
    (folder / name).write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\ncat {folder}/{name}.out\nexit {code}\n'
    )
    (folder / name).chmod(0o755)


def queue(folder: Path, said: list[str]) -> SlurmQueue:
    return SlurmQueue(slurm_settings(poll_s=1e-9), folder, said.append)


def test_squeue_is_read(commands: Path) -> None:
    command(
        commands,
        "squeue",
        "17_3|RUNNING|None|node3\n18|PENDING|Resources|\n19|PENDING|ReqNodeNotAvail, UnavailableNodes:a|\n",
    )
    assert run_squeue().jobs == {
        "17_3": JobState("RUNNING", "None", "node3"),
        "18": JobState("PENDING", "Resources", ""),
        "19": JobState("PENDING", "ReqNodeNotAvail, UnavailableNodes:a", ""),
    }
    assert [JobState(state, "", "").waits for state in ("PENDING", "REQUEUED", "RUNNING", "COMPLETING")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_line_that_names_a_cluster_is_no_job(commands: Path, tmp_path: Path) -> None:
    """squeue prints it where SLURM_CLUSTERS is set, --noheader or not."""
    command(
        commands, "squeue", "CLUSTER: main\n4242_0|PENDING|Resources|\n\nCLUSTER: other\n7|RUNNING|None|a\n"
    )
    found = run_squeue()
    assert (sorted(found.jobs), found.unread) == (["4242_0", "7"], [])
    said: list[str] = []
    command(commands, "scontrol", SHOWN)
    assert list(queue(tmp_path, said).ended(["4242_0", "7", "8"])) == ["8"] and said == []


@pytest.mark.parametrize("line", ["4", "4|RUNNING", "4|", "4|a line of another form|x|y", "4_[0-3]|RUNNING"])
def test_a_job_whose_line_cannot_be_read_is_unknown_and_waited_for(
    commands: Path, tmp_path: Path, line: str
) -> None:
    command(commands, "squeue", f"{line}\n5|RUNNING|None|a\n")
    job = line.partition("|")[0]
    assert run_squeue().jobs[job].state == "UNKNOWN" and run_squeue().jobs[job].waits
    waiting = queue(tmp_path, [])
    assert waiting.ended([job, "5"]) == {} and waiting.is_alive(job) and waiting.is_alive("5")


def test_a_line_that_names_no_job_makes_every_other_job_one_that_may_still_be_there(
    commands: Path, tmp_path: Path
) -> None:
    command(commands, "squeue", "\x1b[31mslurm_load_jobs error: \xff\n5|COMPLETED|None|a\n")
    (commands / "squeue.out").write_bytes((commands / "squeue.out").read_bytes() + b"\xff\xfe\n")
    command(commands, "scontrol", SHOWN)
    said: list[str] = []
    waiting = queue(tmp_path, said)
    assert list(waiting.ended(["4", "5"])) == ["5"] and waiting.is_alive("4")
    assert len(said) == 1 and "\x1b" not in said[0] and r"\x1b[31mslurm_load_jobs error" in said[0]


def test_only_jobs_that_are_over_or_gone_have_ended(commands: Path, tmp_path: Path) -> None:
    command(
        commands,
        "squeue",
        "1|RUNNING|None|a\n2|PENDING|BeginTime|\n3|COMPLETED|None|a\n4|NODE_FAIL|None|a\n5|COMPLETING|None|a\n",
    )
    command(commands, "scontrol", SHOWN)
    found = queue(tmp_path, []).ended(["1", "2", "3", "4", "5", "6"])
    assert sorted(found) == ["3", "4", "6"]
    assert found["4"].how.startswith("ended as NODE_FAIL (NodeDown, exit code 0:9) on node3 without a report")
    assert found["4"].again


def test_a_job_that_was_queued_again_has_not_ended(commands: Path, tmp_path: Path) -> None:
    command(commands, "scontrol", SHOWN)
    waiting = queue(tmp_path, [])
    command(commands, "squeue", "4|NODE_FAIL|None|a\n")
    assert list(waiting.ended(["4"])) == ["4"]
    command(commands, "squeue", "4|PENDING|BeginTime|\n")
    assert waiting.ended(["4"]) == {}


@pytest.mark.parametrize(
    "why", ["PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "InvalidAccount"]
)
def test_a_job_that_would_wait_for_ever_is_cancelled_and_not_tried_again(
    commands: Path, tmp_path: Path, why: str
) -> None:
    command(commands, "squeue", f"4|PENDING|{why}|\n")
    command(commands, "scancel")
    waiting = queue(tmp_path, [])
    (ending,) = waiting.ended(["4"]).values()
    assert why in ending.how and not ending.again
    assert (commands / "scancel.asked").read_text() == "4\n"
    command(commands, "squeue", "4|CANCELLED|None|\n")
    assert waiting.ended(["4"]) == {"4": ending}


def test_unusual_reasons_to_wait_are_said_once(commands: Path, tmp_path: Path) -> None:
    command(commands, "squeue", "1|PENDING|Priority|\n2|PENDING|AssocGrpGRES|\n3|PENDING|AssocGrpGRES|\n")
    said: list[str] = []
    waiting = queue(tmp_path, said)
    assert waiting.ended(["1", "2", "3"]) == waiting.ended(["1", "2", "3"]) == {}
    assert said == ["jobs wait in the queue; squeue gives the reason AssocGrpGRES"]


def test_a_scheduler_that_does_not_answer_loses_no_job(commands: Path, tmp_path: Path) -> None:
    command(commands, "squeue", code=1)
    said: list[str] = []
    waiting = queue(tmp_path, said)
    assert waiting.ended(["1"]) == waiting.ended(["1"]) == {}
    assert len(said) == 1 and said[0].startswith("squeue failed; still waiting for the jobs")


def test_a_cluster_that_is_not_there_is_said_to_be_not_there(commands: Path) -> None:
    pytest.importorskip("submitit")  # it writes the job that sbatch is asked about
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        command(commands, name)
    for words, found in (
        ("sbatch: error: Unable to contact slurm controller (connect failure)", "sbatch finds no cluster"),
        ("sbatch: error: Invalid account", "sbatch rejects a job with gpus=0"),
    ):
        (commands / "sbatch").write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 1\n')
        with pytest.raises(BadConfig, match=found):
            check(slurm_settings(), [fake("a")])


def test_how_a_job_ended_comes_from_scontrol_else_from_accounting_else_is_unknown(commands: Path) -> None:
    command(commands, "scontrol", SHOWN)
    assert describe_end("17_3") == "ended as NODE_FAIL (NodeDown, exit code 0:9) on node3"
    command(commands, "scontrol", code=1)
    command(commands, "sacct", "CLUSTER: main\nOUT_OF_MEMORY|None|0:125|node4\n")
    assert describe_end("17_3") == "ended as OUT_OF_MEMORY (exit code 0:125) on node4"
    command(commands, "sacct", code=1)
    assert describe_end("17_3") == "left the queue"


def test_a_command_typed_within_a_job_passes_nothing_of_that_job_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with without_slurm_variables():
        assert os.environ["SLURM_MEM_PER_NODE"] == "100"  # a wish of the user's shell
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with without_slurm_variables():
        assert [name for name in os.environ if name.startswith("SLURM_")] == ["SLURM_CONF"]
    assert os.environ["SLURM_MEM_PER_NODE"] == "100"


# A real one -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_cluster_does_not_have_is_refused_before_anything_runs(slurm: Path) -> None:
    check(slurm_settings(), [fake("a")])
    for changes, words in (
        ({"gpus": 3}, "Requested node configuration is not available"),
        ({"partition": "nope"}, "invalid partition"),
    ):
        given = slurm_settings().cpu.model_copy(update=changes)
        with pytest.raises(
            BadConfig,
            match=rf"sbatch rejects a job with gpus=.*{words}.*: change hydra.launcher.gpu, .cpu, .stages or",
        ):
            check(slurm_settings(cpu=given), [fake("a")])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_at_its_time_limit_a_job_is_queued_again_as_often_as_was_said(
    slurm: Path, store: Store, tmp_path: Path
) -> None:
    """A minute is SLURM's shortest limit. One stage hangs once and is done at its second start, the other hangs for good."""
    given = SlurmResources(gpus=0, cpus=1, mem_gb=None, time_min=1, partition=None, account=None)
    said: list[str] = []
    launcher = make_launcher(slurm_settings(cpu=given), [], tmp_path / "jobs", said.append)
    once, ever = fake("once", hang=1), fake("ever", hang=9)
    found: list[StageReport] = []
    try:
        start(launcher, store, once, ever)
        end = time.monotonic() + 900
        while len(found) < 2 and time.monotonic() < end:
            found += launcher.reports(1.0)
    finally:
        launcher.close()
    by_key = {report.key: report for report in found}
    assert by_key[once.key] == StageReport(once.key, "done")
    assert by_key[ever.key].outcome == "late"
    assert by_key[ever.key].error.startswith(
        "reached its time limit of 1 min 2 times: raise time_min or hydra.launcher.requeues"
    )
    assert [len(attempts(stage, store.root)) for stage in (once, ever)] == [2, 2]
    assert len(said) == 2 and all(
        "was stopped at its time limit or preempted, and is queued again" in line for line in said
    )
    assert not list((store.root / "fake").glob("*.build-*"))
