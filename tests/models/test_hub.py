"""What comes from the hub: the client's own code against a small server here that answers as the hub does."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from outer import outer
from published import PUBLISHED, publish, ultrafeedback, write
from tiny import make_model

from bench.models import hub

RunBench = Callable[..., "subprocess.CompletedProcess[str]"]
REPO = "HuggingFaceH4/ultrafeedback_binarized"
OLD, NEW = "a" * 40, "b" * 40


@dataclass
class Hub:
    """Serves the folder of one dataset as its newest revision; `gated` asks for an account, `asked` are the paths that were asked for."""

    folder: Path
    sha: str = OLD
    gated: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, served: Hub, *args: Any):
        self.served = served
        super().__init__(*args)

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.served.asked.append(path)
        if self.served.gated:
            return self._say(
                403,
                b'{"error": "gated"}',
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."},
            )
        if not path.removeprefix("/api").startswith(f"/datasets/{REPO}"):
            return self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = {str(file.relative_to(self.served.folder)): file for file in self.served.folder.rglob("*.*")}
        if "/resolve/" in path:
            data = files[path.split("/resolve/")[1].partition("/")[2]].read_bytes()
            return self._say(
                200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.served.sha}
            )
        if "/tree/" in path:
            listed = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in files.items()
            ]
            return self._say(200, json.dumps(listed).encode())
        info = {
            "id": REPO,
            "sha": self.served.sha,
            "siblings": [{"rfilename": name} for name in files],
            "tags": [],
        }
        return self._say(200, json.dumps(info).encode())

    def _say(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(publish(tmp_path / "served", "ultrafeedback_binarized", 12, n_heldout=6))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Answer, found))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("of_hub") / "model")


@pytest.fixture
def plan(run_bench: RunBench, model: Path, tmp_path: Path) -> Callable[..., Any]:
    """do=plan over a dataset of the hub, with a cache and a lock file of the test's own."""

    def run(url: str, *words: str, do: str = "plan", **environment: str) -> Any:
        own = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        }
        own |= {"HF_HUB_OFFLINE": "0"} | environment
        start = (
            "model=local",
            f"model.path={model}",
            "data=ultrafeedback_binarized",
            "method=dpo",
            f"do={do}",
        )
        return run_bench(*start, f"results={tmp_path / 'results'}", *words, cold=False, **own)

    return run


def keys(said: str) -> list[str]:
    return [line.split()[0] for line in said.splitlines() if line.startswith(("start-", "dpo-"))]


@outer
def test_a_revision_is_locked_at_its_first_use_and_kept(served: Hub, plan: Any, tmp_path: Path) -> None:
    first = plan(served.url)
    assert first.returncode == 0, first.stderr
    assert "ultrafeedback_binarized: 12 train rows of 12 prompts, 6 held out" in first.stdout
    lock = json.loads((tmp_path / "results" / hub.LOCK).read_text())
    assert lock[f"datasets/{REPO}"]["revision"] == OLD
    write(
        served.folder / PUBLISHED["ultrafeedback_binarized"].files["train"],
        [ultrafeedback(f"new {i}?", "a", "b") for i in range(2)],
    )
    served.sha = NEW
    served.asked.clear()
    assert plan(served.url).stdout == first.stdout
    assert served.asked == [], "what the cache holds at the locked revision is not asked for again"
    moved = plan(served.url, f"data.revision={NEW}")
    assert "2 train rows of 2 prompts" in moved.stdout and not set(keys(moved.stdout)) & set(
        keys(first.stdout)
    )


@outer
def test_a_download_that_was_cut_short_is_not_taken_for_the_dataset(
    served: Hub, plan: Any, tmp_path: Path
) -> None:
    one = served.folder / PUBLISHED["ultrafeedback_binarized"].files["train"]
    first, second = (one.with_name(f"train_prefs-0000{i}-of-00002.parquet") for i in range(2))
    one.rename(first)
    write(second, [ultrafeedback(f"more {i}?", "a", "b") for i in range(5)])
    whole = plan(served.url)
    assert "17 train rows of 17 prompts" in whole.stdout
    here = tmp_path / "hf" / "hub" / f"datasets--{REPO.replace('/', '--')}"
    (here / "snapshots" / OLD / second.relative_to(served.folder)).unlink()
    for left in here.glob("bench-*"):  # by a command that had fetched everything
        left.unlink()
    offline = plan("http://127.0.0.1:9", do="run", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "could not be fetched from the hub (HF_HUB_OFFLINE is set" in " ".join(
        offline.stderr.split()
    )
    assert plan(served.url).stdout == whole.stdout


def test_a_revision_that_another_command_has_locked_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / hub.LOCK

    class Asked:
        sha = NEW

        def __init__(self) -> None:
            lock.write_text(json.dumps({f"datasets/{REPO}": {"revision": OLD, "locked": "2026-01-01"}}))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_: Asked())
    assert hub.revision(lock, "datasets", REPO) == OLD
    assert json.loads(lock.read_text())[f"datasets/{REPO}"]["revision"] == OLD


def test_the_cache_answers_offline_and_the_lock_alone_a_verb_that_reads_no_rows(
    served: Hub, plan: Any, tmp_path: Path
) -> None:
    first = plan(served.url)
    assert plan("http://127.0.0.1:9", HF_HUB_OFFLINE="1").stdout == first.stdout
    status = plan("http://127.0.0.1:9", do="status", HF_HOME=str(tmp_path / "other"))
    assert status.returncode == 0 and keys(status.stdout) == keys(first.stdout)


def test_without_a_network_the_way_out_is_said_before_anything_runs(plan: Any, tmp_path: Path) -> None:
    planned = plan("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    said = " ".join(planned.stdout.split())
    assert (
        planned.returncode == 0 and f"{REPO} could not be fetched from the hub (HF_HUB_OFFLINE is set" in said
    )
    assert (
        f"{REPO} is not on this machine: at most 61,135 train rows and 2,000 heldout rows as recorded in conf/"
        in said
    )
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = plan("http://127.0.0.1:9", do="run", **environment)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        said = " ".join(done.stderr.split())
        assert f"{REPO} could not be fetched from the hub (" in said
        assert ("HF_HUB_OFFLINE is set" in said) == bool(environment)
        assert (
            f"run `hf download {REPO} --type dataset" in said
            and "to use a copy of its folder, set data.path" in said
        )
        assert not (tmp_path / "results").exists(), "no revision is invented"


def test_a_gated_dataset_names_licence_and_token(served: Hub, plan: Any) -> None:
    served.gated = True
    done = plan(served.url)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert (
        f"{REPO} is gated: accept its licence at {served.url}/datasets/{REPO} with your account, and set HF_TOKEN"
        in said
    )


def test_a_dataset_that_is_not_there_is_said(served: Hub, plan: Any) -> None:
    done = plan(served.url, "data.hub=no/such")
    assert done.returncode == 2 and "no/such is not on the hub, or is private" in " ".join(
        done.stderr.split()
    )


def test_a_broken_lock_file_is_not_written_over(tmp_path: Path) -> None:
    lock = tmp_path / hub.LOCK
    lock.write_text("{")
    with pytest.raises(hub.NotThere, match="cannot be read"):
        hub.revision(lock, "datasets", REPO)
    assert lock.read_text() == "{"
