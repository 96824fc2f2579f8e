"""A real OpenAI-shaped HTTP server on loopback, in the test's own process, whose replies the test decides.

It keeps every request. `say` makes the reply of a request: a text, a Said, or an Answer for anything else that HTTP can say.
Batch files are answered in the same way, one upload at a time.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """A chat completion: its text, and the log-probs of its first token's likeliest."""

    text: str
    tops: Mapping[str, float] | None = None
    tokens: list[dict[str, Any]] | None = None  # all of them, in place of `tops`
    model: str = "served-model"
    finish: str = "stop"
    thinking: str | None = None
    message: Mapping[str, Any] = field(default_factory=dict)  # further fields of it


@dataclass(frozen=True)
class Answer:
    """Any other answer."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


def tops(**probabilities: float) -> dict[str, float]:
    """Log-probs of tokens by their probabilities."""
    return {token: math.log(p) for token, p in probabilities.items()}


def listed(text: str, probabilities: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A token as OpenAI lists it."""
    found = probabilities or {text: 1.0}
    likeliest = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in found.items()]
    return {
        "token": text,
        "logprob": math.log(found.get(text, 1.0)),
        "bytes": None,
        "top_logprobs": likeliest,
    }


def fair(body: Mapping[str, Any]) -> Said:
    """Prefers the longer answer of alpaca-eval's prompt, a little: a judge whose verdicts can be told from the request."""
    first, second = (len(text) for text in shown(body))
    p = 1 / (1 + math.exp(-(first - second) / 20))
    return Said("m" if p >= 0.5 else "M", {"m": math.log(p), "M": math.log(1 - p)})


def shown(body: Mapping[str, Any]) -> tuple[str, str]:
    """The two answers in alpaca-eval's prompt, in the order shown."""
    found = re.findall(r'"output": """(.*?)"""\n    }', body["messages"][-1]["content"], re.DOTALL)
    return found[0], found[1]


class Endpoint:
    def __init__(self, say: Callable[[Mapping[str, Any]], str | Said | Answer] = fair):
        self.say = say
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = self.at_once = 0
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_status = "completed"
        self.output: Callable[[list[dict[str, Any]]], str] = lambda rows: "\n".join(
            json.dumps(row, ensure_ascii=False) for row in rows
        )
        self.lists_batches = True
        self.on_batch: Callable[[], None] = lambda: None  # when one was made, before it is answered
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": self}))
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def completion(self, said: Said, body: Mapping[str, Any]) -> dict[str, Any]:
        tokens = said.tokens
        if tokens is None and said.tops is not None:
            likeliest = [
                {"token": token, "logprob": logprob, "bytes": None} for token, logprob in said.tops.items()
            ]
            tokens = [
                {
                    "token": said.text,
                    "logprob": said.tops.get(said.text, -9.0),
                    "bytes": None,
                    "top_logprobs": likeliest,
                }
            ]
        message: dict[str, Any] = {"role": "assistant", "content": said.text, **said.message}
        if said.thinking:
            message["reasoning_content"] = said.thinking
        n = sum(len(m["content"].split()) for m in body["messages"])
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": said.model,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": said.finish,
                    "logprobs": tokens and {"content": tokens},
                }
            ],
            "usage": {"prompt_tokens": n, "completion_tokens": 1, "total_tokens": n + 1},
        }

    def answer(self, body: dict[str, Any]) -> Answer:
        with self.lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            said = self.say(body)
            if isinstance(said, Answer):
                time.sleep(said.delay_s)
                return said
            return Answer(
                body=json.dumps(self.completion(said if isinstance(said, Said) else Said(said), body))
            )
        finally:
            with self.lock:
                self.at_once -= 1

    # Batch files

    def upload(self, raw: bytes) -> dict[str, Any]:
        """The JSON lines of a multipart upload."""
        lines = [line for line in raw.decode().splitlines() if line.startswith("{")]
        name = f"file-{len(self.files)}"
        self.files[name] = "\n".join(lines)
        return {
            "id": name,
            "object": "file",
            "bytes": 1,
            "created_at": 0,
            "filename": "f",
            "purpose": "batch",
            "status": "processed",
        }

    def batch(self, name: str) -> dict[str, Any]:
        facts = self.batches[name]
        done = self.batch_status == "completed"
        if done and "output_file_id" not in facts:
            rows = [json.loads(line) for line in self.files[facts["input_file_id"]].splitlines()]
            out = []
            for row in rows:
                said = self.say(row["body"])
                if isinstance(said, Answer):
                    out.append(
                        {
                            "custom_id": row["custom_id"],
                            "response": {"status_code": said.status, "body": said.body},
                        }
                    )
                else:
                    made = self.completion(said if isinstance(said, Said) else Said(said), row["body"])
                    out.append(
                        {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": made}}
                    )
            facts["output_file_id"] = f"{name}-out"
            self.files[f"{name}-out"] = self.output(out)
        fixed = {
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "created_at": 0,
        }
        return {"id": name, "status": self.batch_status, **fixed, **facts}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # judges ask many things at once

    def handle_error(self, request: Any, client_address: Any) -> None: ...  # a client that has left


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint

    def send(self, answer: Answer) -> None:
        data = answer.body.encode()
        self.send_response(answer.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path.endswith("/files"):
            self.send(Answer(body=json.dumps(self.endpoint.upload(raw))))
        elif self.path.endswith("/batches"):
            name = f"batch-{len(self.endpoint.batches)}"
            asked = json.loads(raw)
            self.endpoint.batches[name] = {
                "input_file_id": asked["input_file_id"],
                "metadata": asked.get("metadata"),
            }
            self.endpoint.on_batch()
            self.send(Answer(body=json.dumps(self.endpoint.batch(name))))
        else:
            self.send(self.endpoint.answer(json.loads(raw)))

    def do_GET(self) -> None:
        last = self.path.split("/")
        if "files" in last:
            self.send(
                Answer(
                    body=self.endpoint.files[last[last.index("files") + 1]],
                    headers={"Content-Type": "application/octet-stream"},
                )
            )
        elif self.path.partition("?")[0].endswith("/batches"):
            found = [self.endpoint.batch(name) for name in reversed(self.endpoint.batches)]
            listed = Answer(body=json.dumps({"object": "list", "data": found, "has_more": False}))
            self.send(listed if self.endpoint.lists_batches else Answer(404, "no such path"))
        elif "batches" in last and last[-1] not in self.endpoint.batches:
            self.send(Answer(404, "no such batch"))
        elif "batches" in last:
            self.send(Answer(body=json.dumps(self.endpoint.batch(last[-1]))))
        else:
            self.send(Answer(body=json.dumps({"object": "list", "data": []})))

    def log_message(self, *_: object) -> None: ...
