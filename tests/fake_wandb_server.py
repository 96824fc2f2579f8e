"""A stand-in for W&B's server on loopback: just enough for the real client, wandb 0.31, to work online.

It keeps what the client sends, and the names of the operations that it does not know, so that a client that asks for more
fails a test by name. W&B's real server is a container image, which the tests cannot have.
"""

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Run:
    upserts: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def first(self, name: str) -> Any:
        """A field of the run, from the first request that set it; the client leaves it out of later ones."""
        return next((upsert[name] for upsert in self.upserts if upsert.get(name)), None)


class FakeWandb:
    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.artifact_type: str | None = None  # what every artifact's name is taken by
        self.answering = threading.Event()  # clear it, and every request waits
        self.answering.set()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.answering.set()
        self.server.shutdown()
        self.server.server_close()

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of an answer; None for an operation that we do not know."""
        given = variables.get("input", variables)
        if operation == "RunResumeStatus":
            return {
                "model": {
                    "id": "p",
                    "name": "p",
                    "entity": {"id": "e", "name": "e"},
                    "bucket": self._resumable(variables["name"]),
                }
            }
        if operation == "UpsertBucket":
            run_id = given["name"]
            inserted = run_id not in self.runs
            self.runs.setdefault(run_id, Run()).upserts.append(given)
            project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "e"}}
            bucket = {
                "id": run_id,
                "name": run_id,
                "displayName": given.get("displayName"),
                "config": given.get("config"),
                "project": project,
            }
            return {
                "upsertBucket": {
                    "bucket": bucket | {"sweepName": None, "historyLineCount": 0},
                    "inserted": inserted,
                }
            }
        if operation == "CreateArtifact":
            self.artifacts.append(given["artifactCollectionName"])
            artifact_id = f"artifact{len(self.artifacts)}"
            sequence = {"id": "sequence", "latestArtifact": None}
            return {
                "createArtifact": {
                    "artifact": {"id": artifact_id, "state": "PENDING", "artifactSequence": sequence}
                }
            }
        if operation == "CreateArtifactManifest":
            manifest = {"id": "manifest", "file": self._file(given["name"], variables)}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        if operation == "CreateArtifactFiles":
            nodes = [self._file(spec["name"], spec) for spec in given["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CreateRunFiles":
            files = [self._file(name, {}) for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        taken = self.artifact_type and {"artifactType": {"name": self.artifact_type}}
        return {
            "Viewer": {
                "viewer": {
                    "id": "v",
                    "entity": "e",
                    "username": "u",
                    "email": "",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            },
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": {"entity": {"organization": None}},
            "RunStoppedStatus": {"project": {"run": {"stopped": False}}},
            "ArtifactType": {"project": {"artifact": taken}},
            "CommitArtifact": {"commitArtifact": {"artifact": {"id": "artifact", "digest": "d"}}},
        }.get(operation)

    def _file(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        count = len(self.uploads)
        url = f"{self.url}/upload/{count}/{name}"
        self.uploads[url] = b""
        return {
            "id": str(count),
            "name": name,
            "displayName": name,
            "uploadUrl": url,
            "uploadHeaders": [],
            "storagePath": f"s/{count}",
            "uploadMultipartUrls": None,
            "artifact": {"id": spec.get("artifactID", "artifact1")},
        }

    def _resumable(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.runs:
            return None
        run = self.runs[run_id]
        return {
            "id": run_id,
            "name": run_id,
            "config": "{}",
            "tags": [],
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.runs.setdefault(run_id, Run())
        for name, chunk in (body.get("files") or {}).items():
            rows = [json.loads(line) for line in chunk["content"] if line.strip()]
            if name == "wandb-history.jsonl":
                run.history += rows
            elif name == "wandb-summary.json" and rows:
                run.summary = rows[-1]
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None: ...  # a client that leaves


class _Handler(BaseHTTPRequestHandler):
    fake: FakeWandb
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        if self.path == "/graphql":
            query = re.search(r"\b(?:query|mutation)\s+(\w+)", body["query"])
            operation = query.group(1) if query else body["query"]
            data = self.fake.graphql(operation, body.get("variables") or {})
            if data is None:
                self.fake.unknown.append(operation)
                return self._answer({"errors": [{"message": f"unknown operation {operation}"}]})
            return self._answer({"data": data})
        if stream := re.fullmatch(r"/files/[^/]*/[^/]*/([^/]+)/file_stream", self.path):
            self.fake.stream(stream.group(1), body)
            return self._answer({})
        self.fake.unknown.append(f"POST {self.path}")
        return self._answer({}, status=404)

    def do_PUT(self) -> None:
        self.fake.uploads[f"{self.fake.url}{self.path}"] = self._body()
        self._answer({})

    def do_GET(self) -> None:
        self.fake.unknown.append(f"GET {self.path}")
        self._answer({}, status=404)

    def _body(self) -> bytes:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        self.fake.answering.wait()
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...
