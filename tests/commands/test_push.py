"""`do=export push=...`: the real client of the hub uploads to a stand-in on loopback what it should, and nothing unasked."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard
from tiny import smoke, smoke_cell

from bench.commands import push
from bench.commands.export import export
from bench.config import Export
from bench.store.store import Store, Unsound


@dataclass
class Hub:
    """What was made and committed, by repository; `refuses` answers every call with 403."""

    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refuses: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, HfApi]]:
    state = Hub()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            state.asked.append(self.path)
            known = {"id": "org/base", "cardData": {"license": "apache-2.0"}, "siblings": [], "tags": []}
            self._say(*((200, known) if self.path.startswith("/api/models/org/base") else (404, {})))

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else b"".join(self._chunks())
            state.asked.append(self.path)
            if state.refuses:
                return self._say(403, {"error": "You have no write access. hf_abcdefghijklmnopqrst"})
            _, _, kind, *rest = self.path.split("?")[0].split("/")
            if rest == ["create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or asked['name'].split('/')[0]}/{asked['name'].split('/')[-1]}"
                state.made[f"{asked.get('type', 'model')}s/{name}"] = asked
                return self._say(200, {"url": f"http://127.0.0.1/{name}", "name": name})
            repo = f"{kind}/{'/'.join(rest[:2])}"
            if "preupload" in rest:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self._say(200, {"files": files})
            if "commit" in rest:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        state.files.setdefault(repo, {})[line["value"]["path"]] = content
                oid = "a" * 40
                return self._say(
                    200,
                    {"commitOid": oid, "commitUrl": f"http://127.0.0.1/{repo}/commit/{oid}", "success": True},
                )
            return self._say(200, {"errors": [], "warnings": []})  # validate-yaml

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _say(self, code: int, answer: Any) -> None:
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield state, HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_of_a_test")
    server.shutdown()


def asked(out: Path, **more: Any) -> Export:
    none = dict.fromkeys(("push", "push_data", "push_page"))
    return Export(
        **{
            "name": "export",
            "cell": smoke_cell("kto", 0.1).key,
            "out": str(out),
            "private": True,
            **none,
            **more,
        }
    )


def give(do: Export, api: HfApi) -> list[str]:
    return export(do, smoke().results, Store(smoke().results / "store"), api)


def test_nothing_is_asked_of_the_hub_unless_a_push_is_wanted(hub: tuple[Hub, HfApi], tmp_path: Path) -> None:
    state, api = hub
    assert len(give(asked(tmp_path / "out"), api)) == 3 and not state.asked


def test_a_push_uploads_the_folder_with_its_card(hub: tuple[Hub, HfApi], tmp_path: Path) -> None:
    state, api = hub
    out = tmp_path / "out"
    lines = give(asked(out, push="me/kto", push_data="me/kto-data", push_page="me/kto-page"), api)
    assert [line.split()[:3] for line in lines[3:]] == [
        ["pushed", kind, f"me/kto{end}"]
        for kind, end in (("model", ""), ("dataset", "-data"), ("space", "-page"))
    ]
    assert all(made["visibility"] == "private" for made in state.made.values()) and len(state.made) == 3
    files = state.files["models/me/kto"]
    assert files == {path.name: path.read_bytes() for path in out.iterdir()}
    card = ModelCard(files["README.md"].decode())
    assert card.data.license is None and card.data.eval_results and "+sweep=smoke" in card.text
    data = state.files["datasets/me/kto-data"]
    configs = DatasetCard(data.pop("README.md").decode()).data.to_dict()["configs"]
    assert {one["data_files"] for one in configs} == set(data)
    assert {name.partition("-")[0] for name in data} == {"label", "generate", "judge"}
    for content in data.values():
        assert all(isinstance(json.loads(line), dict) for line in content.decode().splitlines())
    page = state.files["spaces/me/kto-page"]
    assert page["index.html"] == (smoke().results / "sweeps/smoke/report.html").read_bytes()
    assert b"sdk: static" in page["README.md"] and state.made["spaces/me/kto-page"]["sdk"] == "static"


def test_the_licence_is_the_base_models(hub: tuple[Hub, HfApi]) -> None:
    _, api = hub
    assert push.licence_of("org/base", api) == "apache-2.0"
    assert push.licence_of("org/gone", api) is None and push.licence_of(None, api) is None


def test_a_refused_push_says_why_and_keeps_the_folder(hub: tuple[Hub, HfApi], tmp_path: Path) -> None:
    state, api = hub
    state.refuses = True
    with pytest.raises(Unsound, match=r"not pushed to model me/kto: .*403.*HF_TOKEN") as error:
        give(asked(tmp_path / "out", push="me/kto"), api)
    assert "hf_abcdef" not in str(error.value)
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("name", ["kto", "a/b/c", "/kto", "me/", "../kto", "me/k to"])
def test_a_repository_is_named_owner_and_name(name: str) -> None:
    with pytest.raises(ValueError, match="push"):
        asked(Path("out"), push=name)
