"""The tracker writes what W&B's own reader finds, leaks nothing, and never costs a cell."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb_server import FakeWandb
from outer import outer

from bench.config import NoTracker, WandbTracker
from bench.tracking.tracker import Tracker, open_tracker
from bench.tracking.values import cleaned
from bench.tracking.wandb_mirror import configured_account

HISTORY = [{"step": step, "loss": 1 / step, "rewards/margins": 0.1 * step} for step in range(1, 31)]
TABLE = [
    {"cell": "dpo", "win_rate": 0.625, "kl": 1.5, "n_scored": 64},
    {"cell": "none", "win_rate": 0.5, "kl": None, "n_scored": 64},
]
KEY = "local-" + "a1b2" * 10


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    fake = FakeWandb()
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield fake
    fake.close()


def opened(tmp_path: Path, timeout_s: float = 30.0, mode: Any = "auto") -> Tracker:
    settings = WandbTracker(name="wandb", project="bench-tests", entity=None, mode=mode, timeout_s=timeout_s)
    return open_tracker(settings, tmp_path / "results" / "wandb")


def named(key: str = "k0") -> dict[str, Any]:
    return {
        "sweep": "kto_beta",
        "key": key,
        "name": f"dpo-{key}",
        "config": {"method": {"name": "dpo", "beta": 0.1}},
        "tags": ["dpo", "tiny"],
    }


def ended(key: str = "k0", **changes: Any) -> dict[str, Any]:
    return {
        **named(key),
        "history": HISTORY,
        "summary": {"win_rate": 0.625, "lc_win_rate": None},
        "status": "done",
        **changes,
    }


def runs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "results" / "wandb").glob("offline-run-*"))


def inspect(*arguments: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def summaries(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """By W&B's own reader: what lies in each run folder, by the run's name."""
    read = [json.loads(inspect("--summary", "--json", str(folder))) for folder in runs(tmp_path)]
    return {run["name"]: run for run in read}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in inspect("--json", str(folder)).splitlines()]
    return [line[kind] for line in lines if line["type"] == kind]


def test_importing_loads_neither_wandb_nor_torch() -> None:
    code = "import sys, bench.tracking.wandb_mirror; assert not {'wandb', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_no_tracker_does_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(NoTracker(name="none"), tmp_path / "wandb")
    tracker.follow(**named(), rows=HISTORY)
    tracker.cell(**ended())
    tracker.sweep(sweep="kto_beta", rows=TABLE, files=[])
    tracker.close()
    assert tracker.notes == []
    assert not (tmp_path / "wandb").exists()


def test_offline_runs_hold_what_was_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table_file = tmp_path / "table.csv"
    table_file.write_text("cell,win_rate\n")
    tracker = opened(tmp_path)
    tracker.follow(**named(), rows=HISTORY[5:20])  # from its middle on, as after a resumed training
    tracker.follow(**named(), rows=[])
    tracker.cell(**ended())
    tracker.cell(
        **ended(
            "k1",
            history=[{"step": 1, "loss": float("nan")}],
            summary={},
            status="failed",
            reason="out of memory",
        )
    )
    tracker.sweep(sweep="kto_beta", rows=TABLE, files=[table_file, tmp_path / "absent.csv"])
    tracker.close()

    read = summaries(tmp_path)
    assert set(read) == {"dpo-k0", "dpo-k1", "kto_beta"}
    cell = read["dpo-k0"]
    assert cell["project"] == "bench-tests"
    assert cell["tags"] == ["dpo", "tiny"]
    assert cell["config"] == {"method": {"name": "dpo", "beta": 0.1}, "sweep": "kto_beta", "key": "k0"}
    assert cell["summary"]["eval/win_rate"] == 0.625
    assert "eval/lc_win_rate" not in cell["summary"]
    assert (cell["summary"]["train/step"], cell["summary"]["train/loss"]) == (30, 1 / 30)
    assert (cell["summary"]["status"], cell["exit_code"]) == ("done", 0)

    folders = {folder.name.rsplit("-", 1)[1]: folder for folder in runs(tmp_path)}
    folder = folders[cell["run_id"]]
    run = records(folder, "run")[0]
    assert (run["run_group"], run["job_type"]) == ("kto_beta", "cell")
    metrics = records(folder, "metric")
    assert any(
        metric.get("glob_name") == "train/*" and metric["step_metric"] == "train/step" for metric in metrics
    )
    items = [history["item"] for history in records(folder, "history")]
    assert sorted((item["train/step"], item["train/loss"]) for item in items) == [
        (row["step"], row["loss"]) for row in HISTORY
    ]

    failed = read["dpo-k1"]
    assert (failed["summary"]["status"], failed["summary"]["reason"], failed["exit_code"]) == (
        "failed",
        "out of memory",
        1,
    )
    assert "train/loss" not in failed["summary"]

    table = folders[read["kto_beta"]["run_id"]]
    assert records(table, "run")[0]["job_type"] == "table"
    [written] = (table / "files" / "media" / "table").glob("comparison*.json")
    content = json.loads(written.read_text())
    assert content["columns"] == ["cell", "win_rate", "kl", "n_scored"]
    assert content["data"] == [["dpo", 0.625, 1.5, 64], ["none", 0.5, None, 64]]
    assert "table-kto_beta" in [artifact["name"] for artifact in records(table, "artifact")]

    assert any("offline" in note and "no key is configured" in note for note in tracker.notes)
    assert any("wandb sync results/wandb/offline-run-*" in note for note in tracker.notes)
    assert any("1 of 2 files" in note for note in tracker.notes)
    assert {path.name for path in tmp_path.iterdir()} <= {"results", "table.csv", "home"}


@pytest.mark.parametrize(("project", "expected"), [(None, "of-the-shell"), ("given", "given")])
def test_project_and_entity_of_the_environment_hold_where_none_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str | None, expected: str
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of-the-shell")
    monkeypatch.setenv("WANDB_ENTITY", "my-team")
    settings = WandbTracker(name="wandb", project=project, entity=None, mode="offline", timeout_s=30.0)
    tracker = open_tracker(settings, tmp_path / "results" / "wandb")
    tracker.cell(**ended())
    tracker.close()
    assert summaries(tmp_path)["dpo-k0"]["project"] == expected
    assert configured_account().entity == "my-team"


@outer
def test_what_was_written_is_not_written_again(tmp_path: Path) -> None:
    def report(**changes: Any) -> tuple[list[str], list[str]]:
        tracker = opened(tmp_path)
        tracker.cell(**ended("k0"))
        tracker.cell(**ended("k1", **changes))
        tracker.sweep(sweep="kto_beta", rows=TABLE, files=[])
        tracker.close()
        return [folder.name for folder in runs(tmp_path)], tracker.notes

    first, _ = report(status="failed", reason="lost")
    assert len(first) == 3
    again, notes = report(status="failed", reason="lost")
    assert again == first
    assert any("nothing new to write, all 3 runs" in note for note in notes)
    with (tmp_path / "results" / "wandb" / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"id": "cut of')
    time.sleep(1.1)  # W&B names folders by the second
    changed, _ = report()
    assert len(changed) == 3
    assert len(set(changed) & set(first)) == 2
    assert "reason" not in summaries(tmp_path)["dpo-k1"]["summary"]


@outer
def test_nothing_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = ["planted-environment-value", "planted-argument-value", "planted-config-value", KEY]
    monkeypatch.setenv("SOME_API_KEY", planted[0])
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", [*sys.argv, planted[1]])
    tracker = opened(tmp_path, mode="offline")
    config = {"judge": {"api_key": planted[2], "max_new_tokens": 7}, "plain": "findable-value"}
    tracker.cell(
        **ended(config=config, status="failed", reason=f"401 for {planted[0]}", tags=[f"tag {planted[0]}"])
    )
    tracker.sweep(sweep="kto_beta", rows=[{"cell": planted[0]}], files=[])
    tracker.close()
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"findable-value" in content
    assert b"max_new_tokens" in content
    assert [secret for secret in planted if secret.encode() in content] == []
    written = [value for folder in runs(tmp_path) for run in records(folder, "run") for value in run.values()]
    assert "dpo-k0" in written
    assert (
        socket.gethostname() not in written
    )  # as a field: a name of two letters lies in the bytes of any file


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (
            {"hf_token": "x", "tokenizer": "y", "max_new_tokens": 3},
            {"hf_token": "[redacted]", "tokenizer": "y", "max_new_tokens": 3},
        ),
        ({"eos_token": "</s>", "judgeApiKey": "x"}, {"eos_token": "</s>", "judgeApiKey": "[redacted]"}),
        ({"secrets": {"a": ["x"], "b": None}}, {"secrets": {"a": ["[redacted]"], "b": None}}),
        ({"url": "https://me:pw@host/x"}, {"url": "https://[redacted]@host/x"}),
        ({"a": "key sk-abcdefghijklmnopqrstuv"}, {"a": "key [redacted]"}),
        ({"beta": float("inf"), "path": Path("a")}, {"beta": None, "path": "a"}),
    ],
)
def test_redaction(given: dict[str, Any], written: dict[str, Any]) -> None:
    assert cleaned(given) == written


def test_malformed_input_costs_a_note(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    bad: Any = [
        {"step": 1, "loss": "low"},
        {"loss": 2.0},
        None,
        {"step": float("nan")},
        {"step": 2, "loss": 0.5},
    ]
    tracker.cell(**ended(history=bad))
    tracker.cell(**ended("k1", config=None))
    tracker.close()
    [folder] = runs(tmp_path)
    items = [history["item"] for history in records(folder, "history")]
    assert [(item["train/step"], item.get("train/loss")) for item in items] == [(1, None), (2, 0.5)]
    assert any("3 of 5 history rows" in note for note in tracker.notes)
    assert any("dpo-k1 was not written" in note for note in tracker.notes)


def test_a_killed_tracker_costs_a_note(tmp_path: Path) -> None:
    tracker: Any = opened(tmp_path)
    tracker.cell(**ended())
    os.kill(tracker._process.pid, signal.SIGKILL)
    for index in range(200):
        tracker.cell(**ended(f"k{index}"))
    began = time.monotonic()
    tracker.close()
    tracker.close()
    assert time.monotonic() - began < 2
    assert any("ended early, so 201 of 201 runs may be missing" in note for note in tracker.notes)


def test_a_stuck_tracker_is_stopped_in_time(tmp_path: Path) -> None:
    tracker: Any = opened(tmp_path, timeout_s=1.0)
    os.kill(tracker._process.pid, signal.SIGSTOP)
    for index in range(200):  # more than the pipe holds
        tracker.cell(**ended(f"k{index}"))
    began = time.monotonic()
    tracker.close()
    assert time.monotonic() - began < 1.5
    assert any("did not finish within 1 s" in note for note in tracker.notes)
    assert tracker._process.poll() is not None


@outer
def test_a_server_that_never_answers_sends_the_sweep_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracker = opened(tmp_path, timeout_s=6.0)
        tracker.follow(**named("k0"), rows=HISTORY[:5])
        tracker.follow(**named("k0"), rows=HISTORY[5:10])
        tracker.cell(**ended("k0"))
        tracker.cell(**ended("k1"))
        began = time.monotonic()
        tracker.close()
        assert time.monotonic() - began < 6.5
    assert any("so runs are written offline from here on" in note for note in tracker.notes)
    read = summaries(tmp_path)
    assert [read[f"dpo-{key}"]["summary"]["eval/win_rate"] for key in ("k0", "k1")] == [0.625, 0.625]
    assert all(len(records(folder, "history")) == 30 for folder in runs(tmp_path))


@outer
def test_a_server_that_falls_silent_holds_up_no_longer_than_agreed(tmp_path: Path, server: FakeWandb) -> None:
    tracker: Any = opened(tmp_path, timeout_s=6.0)
    tracker.follow(**named(), rows=HISTORY[:10])
    wait_for(lambda: server.runs)
    server.answering.clear()
    tracker.cell(**ended())
    tracker.cell(**ended("k1"))
    began = time.monotonic()
    tracker.close()
    assert time.monotonic() - began < 6.5
    assert any("offline from here on" in note for note in tracker.notes)
    assert any("wandb sync" in note and "/run-" in note for note in tracker.notes)


def test_online_runs_arrive_and_are_completed_after_an_interruption(
    tmp_path: Path, server: FakeWandb
) -> None:
    table_file = tmp_path / "table.csv"
    table_file.write_text("cell,win_rate\n")
    tracker = opened(tmp_path)
    tracker.follow(**named(), rows=HISTORY[:10])
    tracker.close()
    [run] = server.runs.values()
    assert len(run.history) == 10
    assert run.summary["status"] == "interrupted"

    tracker = opened(tmp_path)
    tracker.cell(**ended())
    tracker.sweep(sweep="kto_beta", rows=TABLE, files=[table_file])
    tracker.close()
    assert server.unknown == []
    assert [row["train/step"] for row in run.history] == [row["step"] for row in HISTORY]
    assert (run.summary["eval/win_rate"], run.summary["status"], run.exit_code) == (0.625, "done", 0)
    assert (run.first("groupName"), run.first("jobType"), run.first("tags")) == (
        "kto_beta",
        "cell",
        ["dpo", "tiny"],
    )
    assert json.loads(run.first("config"))["method"]["value"]["beta"] == 0.1
    assert any(f"runs written: 2, see {server.url}" in note for note in tracker.notes)
    assert "table-kto_beta" in server.artifacts
    tables = [
        json.loads(content)
        for url, content in server.uploads.items()
        if url.endswith("comparison.table.json")
    ]
    assert tables[0]["data"] == [["dpo", 0.625, 1.5, 64], ["none", 0.5, None, 64]]
    assert any(url.endswith("/table.csv") and content for url, content in server.uploads.items())

    upserts = len(run.upserts)
    tracker = opened(tmp_path)
    tracker.cell(**ended())
    tracker.close()
    assert len(run.upserts) == upserts
    assert any("nothing new" in note for note in tracker.notes)


@outer
def test_a_table_that_the_server_refuses_is_written_offline(tmp_path: Path, server: FakeWandb) -> None:
    server.artifact_type = "of another kind"
    tracker = opened(tmp_path)
    tracker.sweep(sweep="kto_beta", rows=TABLE, files=[])
    tracker.close()
    assert any("so runs are written offline from here on" in note for note in tracker.notes), tracker.notes
    [folder] = runs(tmp_path)
    assert list((folder / "files" / "media" / "table").glob("comparison*.json"))


@pytest.mark.parametrize(
    ("where", "mode"),
    [
        ("netrc", "online"),
        ("settings", "online"),
        ("key", "online"),
        ("none", "offline"),
        ("offline", "offline"),
    ],
)
def test_a_configured_key_means_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, mode: str
) -> None:
    home = tmp_path / "home"
    (home / "wandb").mkdir(parents=True)
    if where == "netrc":
        (home / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    if where == "settings":
        (home / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
        (home / ".netrc").write_text(f"machine wandb.example login user password {KEY}\n")
    if where in ("key", "offline"):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    if where == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = opened(tmp_path)
    tracker.close()  # nothing was reported, so nobody is asked
    assert ("offline" if any("offline" in note for note in tracker.notes) else "online") == mode


def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
