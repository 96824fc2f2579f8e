"""A request to a judging model, its reply, and who can be asked: an endpoint (endpoint.py) or a model in this process (in_process.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.records import Message, Record
from bench.store.keys import hash_long
from bench.store.stage_settings import LanguageJudgeSettings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """A chat completion to ask for. `body`: model, decoding and whatever else is sent beside the messages."""

    messages: Sequence[Message]
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        return hash_long({"messages": self.messages, "body": self.body})

    @property
    def whole_body(self) -> dict[str, Any]:
        return {**self.body, "messages": [dict(message) for message in self.messages]}

    @property
    def max_cost_tokens(self) -> tuple[int, int]:
        """(prompt tokens, completion tokens) at most: a token is a byte or more."""
        prompt = sum(len(message["content"].encode()) + 16 for message in self.messages)
        prompt += len(json.dumps(self.body["tools"])) if "tools" in self.body else 0
        limit = self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 4096
        return prompt, int(limit)


@dataclass(frozen=True)
class Reply(Record):
    """What came back for one request. `tokens`: of each token its text, log-prob and the likeliest in its place, as OpenAI lists them."""

    text: str
    served: str | None = None
    thinking: str | None = None  # where the endpoint keeps it apart
    tokens: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    dollars: float | None = None
    error: str | None = None  # the endpoint refused this request for good
    refusal: str | None = None  # why the model would not answer, in its own words


class Asker(Protocol):
    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        """A reply to each request, in their order."""
        ...


Ask = Callable[[Sequence[Request]], Sequence[Reply]]


def ask_nobody(_: Sequence[Request]) -> Sequence[Reply]:
    raise RuntimeError("this judge was made to say what it would ask")


def request_body(settings: LanguageJudgeSettings, model: str, decoding: Any) -> dict[str, Any]:
    """What a request holds beside its messages: the manner's decoding, what the settings set, further fields."""
    own = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_tokens", "top_logprobs")}
    body = {**decoding, **{name: value for name, value in own.items() if value is not None}}
    if body.get("top_logprobs"):
        body["logprobs"] = True
    else:
        body.pop("logprobs", None)
        body.pop("top_logprobs", None)
    further = json.loads(settings.request)
    return {"model": model} | {name: value for name, value in (body | further).items() if value is not None}
