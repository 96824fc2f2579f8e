"""A small OpenAI-shaped server on loopback that serves a model folder through transformers: real model, real HTTP, real log-probs.

`python tests/local_server.py --model DIR --host 127.0.0.1 --port N --served-model-name NAME`; words that it does not know are passed
over, so that it can stand where vLLM's server stands. Ends with its parent, or after ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LIFE_S = 600.0


class Model:
    """Greedy completions with the log-probs of each token."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch, self.lock = torch, threading.Lock()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        torch = self.torch
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        ids, tokens, end = list(prompt), [], None
        with self.lock, torch.inference_mode():
            for _ in range(body.get("max_tokens", 16)):
                logps = self.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                chosen = int(logps.argmax())
                ids.append(chosen)
                tokens.append(
                    self._token(chosen, logps, body.get("top_logprobs", 0), body.get("logprob_token_ids", []))
                )
                if chosen == self.tokenizer.eos_token_id:
                    end = "stop"
                    break
        text = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        return {
            "text": text,
            "finish_reason": end or "length",
            "logprobs": {"content": tokens} if body.get("logprobs") else None,
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)},
        }

    def _token(self, token: int, logps: Any, n: int, more: list[int]) -> dict[str, Any]:
        listed = list(dict.fromkeys([*logps.topk(n).indices.tolist(), *more]))
        tops = [
            {"token": self.tokenizer.decode([i]), "logprob": float(logps[i]), "bytes": None} for i in listed
        ]
        return {
            "token": self.tokenizer.decode([token]),
            "logprob": float(logps[token]),
            "bytes": None,
            "top_logprobs": tops,
        }


def chat_completion(name: str, found: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": found["text"]}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": found["finish_reason"],
        "logprobs": found["logprobs"],
    }
    usage = found["usage"] | {"total_tokens": sum(found["usage"].values())}
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 0,
        "model": name,
        "choices": [choice],
        "usage": usage,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for word in ("--model", "--host", "--served-model-name"):
        parser.add_argument(word, required=True)
    parser.add_argument("--port", type=int, required=True)
    words, _ = parser.parse_known_args()
    assert words.host == "127.0.0.1"
    parent = os.getppid()
    model = Model(Path(words.model))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer({"object": "list", "data": [{"id": words.served_model_name, "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(chat_completion(words.served_model_name, model.complete(body)))

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer((words.host, words.port), Handler)

    def watch() -> None:
        deadline = time.monotonic() + LIFE_S
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
