"""Requests to a judging model, and its replies.

The model is behind an endpoint (endpoint.py) or runs in this process (in_process.py).
"""

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
    """A request for a chat completion. `body`: model, decoding and all other fields except the messages."""

    messages: Sequence[Message]
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """Identifies the request in journals; equal requests have equal digests."""
        return hash_long({"messages": self.messages, "body": self.body})

    @property
    def whole_body(self) -> dict[str, Any]:
        """All fields of the request as sent, messages included."""
        return {**self.body, "messages": [dict(message) for message in self.messages]}

    @property
    def max_cost_tokens(self) -> tuple[int, int]:
        """Upper bounds (prompt tokens, completion tokens). A token has at least one byte."""
        prompt = sum(len(message["content"].encode()) + 16 for message in self.messages)
        prompt += len(json.dumps(self.body["tools"])) if "tools" in self.body else 0
        limit = self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 4096
        return prompt, int(limit)


@dataclass(frozen=True)
class Reply(Record):
    """The reply to one request.

    `tokens`: text, log-prob and likeliest alternatives of each token, as OpenAI lists them.
    """

    text: str
    served: str | None = None
    thinking: str | None = None  # If the endpoint sends it apart from the text.
    tokens: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    dollars: float | None = None
    error: str | None = None  # The endpoint refused this request for good.
    refusal: str | None = None  # The model's own reason for refusing.


class Asker(Protocol):
    """Sends requests to a language model."""

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        """A reply to each request, in their order."""
        ...


Ask = Callable[[Sequence[Request]], Sequence[Reply]]


def refuse_to_ask(_: Sequence[Request]) -> Sequence[Reply]:
    """Raises RuntimeError. Given to a judge that only lists its requests."""
    raise RuntimeError("This judge only lists its requests and cannot send them.")


def request_body(settings: LanguageJudgeSettings, model: str, decoding: Any) -> dict[str, Any]:
    """All fields of a request except its messages.

    The manner's `decoding` comes first, then the decoding in `settings`, then the fields of
    `settings.request`.
    """
    own = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_tokens", "top_logprobs")}
    body = {**decoding, **{name: value for name, value in own.items() if value is not None}}
    if body.get("top_logprobs"):
        body["logprobs"] = True
    else:
        body.pop("logprobs", None)
        body.pop("top_logprobs", None)
    extra_fields = json.loads(settings.request)
    return {"model": model} | {
        name: value for name, value in (body | extra_fields).items() if value is not None
    }
