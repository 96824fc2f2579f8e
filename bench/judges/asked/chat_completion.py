"""Checks chat completions and turns them into replies, before a reply is stored and when a journal is read.

Anything else is not a chat completion, and its request is sent again; the same holds for a reply that its
provider broke off. Other providers' words for "length" and "content_filter" are translated. A log-prob that
is null or not finite means a probability of 0: that token is left out of the alternatives. A usage that is
not a count is unknown. Function arguments sent as an object become their JSON text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from bench import secrets
from bench.judges.asked.request import Reply
from bench.text_files import HALF_CHARACTER, BadFile, describe, number, parse_json, printable

MOST_TOKENS = 10**9  # Of one request; a larger number is not a count.
MOST_LOGPROB = 0.01  # Allows rounding; a larger log-prob is not one.
NAME_LENGTH = 200
# Finish reasons of providers and servers with other words than OpenAI's (Mistral, Gemini, Anthropic,
# DeepSeek, OpenRouter, vLLM).
CUT = ("length", "model_length", "max_tokens", "max_output_tokens", "model_context_window_exceeded")
FILTERED = (
    "content_filter",
    "content_filtered",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
)
BROKEN_OFF = ("error", "abort", "aborted", "cancelled", "insufficient_system_resource")


class NotACompletion(ValueError):
    """The body is not a chat completion."""


def read_body(body: str | bytes, where: str = "the reply") -> Any:
    """Parsed JSON. Half a surrogate pair, as in a reply cut inside a character, becomes a question mark.

    Raises NotACompletion.
    """
    try:
        try:
            return parse_json(body, where)
        except BadFile as error:
            if HALF_CHARACTER not in str(error):
                raise
        return parse_json(json.dumps(json.loads(body), ensure_ascii=False).encode(errors="replace"), where)
    except BadFile as error:
        raise NotACompletion(str(error)) from error


def reply_of(body: Any) -> Reply:
    """The reply in a chat completion. Raises NotACompletion for anything else."""
    chat = _object(body, "the body")
    choices = chat.get("choices")
    if not isinstance(choices, list) or not choices:
        raise NotACompletion(f"choices must be a list of one or more, got {describe(choices)}")
    # Choices may come in any order.
    first = next((one for one in choices if isinstance(one, dict) and one.get("index") == 0), choices[0])
    choice = _object(first, "choices[0]")
    if error := choice.get("error"):
        words = error.get("message") if isinstance(error, Mapping) else error
        why = secrets.excerpt(words, NAME_LENGTH) if isinstance(words, str) else describe(error)
        raise NotACompletion(f"choices[0] holds an error: {why}")
    message = _object(choice.get("message"), "message")
    final, thinking, refusal = _content(message.get("content"))
    separate_thinking = [message.get(name) for name in ("reasoning_content", "reasoning", "thinking")]
    usage = chat["usage"] if isinstance(chat.get("usage"), Mapping) else {}
    return Reply(
        _arguments(message.get("tool_calls")) or final,
        served=_name(chat.get("model")),
        thinking=next((text for text in separate_thinking if isinstance(text, str) and text), thinking),
        tokens=_listed(choice.get("logprobs")),
        finish_reason=_finish_reason(choice.get("finish_reason")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        refusal=_optional_text(message.get("refusal"), "refusal") or refusal,
    )


def reply_from_row(row: Any) -> Reply:
    """The reply in a row of a journal. Raises NotACompletion for anything else."""
    fields = _object(row, "the reply")
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(Reply)}:
        raise NotACompletion(f"unknown fields {printable(', '.join(sorted(unknown)))}")
    if not isinstance(fields.get("text"), str):
        raise NotACompletion(f"text must be text, got {describe(fields.get('text'))}")
    checked: dict[str, Any] = {"text": fields["text"], "served": _name(fields.get("served"))}
    checked["tokens"] = None if fields.get("tokens") is None else _tokens(fields["tokens"])
    checked |= {
        name: _optional_text(fields.get(name), name)
        for name in ("thinking", "finish_reason", "error", "refusal")
    }
    checked |= {name: _count(fields.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    checked |= {name: _amount(fields.get(name), name) for name in ("latency_s", "dollars")}
    return Reply(**checked)


# Parts ------------------------------------------------------------------------------------------------------


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise NotACompletion(f"{what} must be an object, got {describe(value)}")
    return value


def _optional_text(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise NotACompletion(f"{what} must be text, got {describe(value)}")
    return value or None


def _finish_reason(value: Any) -> str | None:
    """The finish reason in OpenAI's words.

    Raises NotACompletion for a broken-off reply, which may end in a draft.
    """
    reason = _optional_text(value, "finish_reason")
    if (word := (reason or "").lower()) in BROKEN_OFF:
        raise NotACompletion(f"the reply was broken off (finish_reason {word})")
    return "length" if word in CUT else "content_filter" if word in FILTERED else reason


def _name(value: Any) -> str | None:
    """The served model's name, made printable."""
    name = _optional_text(value, "model")
    return printable(name)[:NAME_LENGTH] if name else None


def _content(content: Any) -> tuple[str, str | None, str | None]:
    """(final text, thinking, refusal) of a message's content. Some endpoints send the content in parts."""
    if content is None or isinstance(content, str):
        return content or "", None, None
    if not isinstance(content, list):
        raise NotACompletion(f"content must be text or a list of parts, got {describe(content)}")
    texts: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": []}
    for part in (_object(part, "a part of the content") for part in content):
        if (kind := part.get("type")) in texts:
            inner = part.get(kind)
            texts[kind].append(
                _content(inner)[0] if kind == "thinking" else _optional_text(inner, f"{kind} of a part") or ""
            )
    final, thinking, refusal = ("".join(parts) for parts in texts.values())
    return final, thinking or None, refusal or None


def _arguments(calls: Any) -> str:
    """The arguments of the first function call, as JSON text; empty without a call."""
    if not calls:
        return ""
    if not isinstance(calls, list):
        raise NotACompletion(f"tool_calls must be a list, got {describe(calls)}")
    arguments = _object(_object(calls[0], "tool_calls[0]").get("function"), "function").get("arguments")
    if isinstance(arguments, Mapping):
        return json.dumps(arguments, ensure_ascii=False)
    return _optional_text(arguments, "arguments") or ""


def _listed(logprobs: Any) -> list[dict[str, Any]] | None:
    """Text, log-prob and likeliest alternatives of each token; None if no log-probs are listed."""
    if not logprobs or not (content := _object(logprobs, "logprobs").get("content")):
        return None
    tokens = _tokens(content)
    # A reply that repeats a secret key spreads it over several tokens. Each part is removed, with its
    # alternatives.
    cleaned = zip(tokens, secrets.clean_pieces([token["token"] for token in tokens]), strict=True)
    return thin(
        [
            token if text == token["token"] else {**token, "token": text, "top_logprobs": []}
            for token, text in cleaned
        ]
    )


def _tokens(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise NotACompletion(f"log-probs must be a list of tokens, got {describe(value)}")
    return [_token(_object(token, "a token")) for token in value]


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    tops = token.get("top_logprobs") or []
    if not isinstance(tops, list):
        raise NotACompletion(f"top_logprobs must be a list, got {describe(tops)}")
    listed = [_spelt(_object(top, "one of top_logprobs")) for top in tops]
    return {**_spelt(token), "top_logprobs": [top for top in listed if top["logprob"] is not None]}


def _spelt(token: Mapping[str, Any]) -> dict[str, Any]:
    text, logprob = token.get("token"), token.get("logprob")
    if not isinstance(text, str):
        raise NotACompletion(f"a token must be text, got {describe(text)}")
    value = number(logprob)
    if isinstance(logprob, float) and value is None:  # Not finite.
        logprob = None
    if logprob is not None and (value is None or value > MOST_LOGPROB):
        raise NotACompletion(f"a log-prob must be a number up to 0, got {describe(logprob)}")
    return {"token": text, "logprob": value}


def thin(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens, with alternatives only where a verdict can be.

    That is near either end, at digits and just after them.
    """
    last = len(tokens) - 32

    def kept(i: int) -> bool:
        return i < 8 or i >= last or any(c.isdigit() for c in tokens[i]["token"] + tokens[i - 1]["token"])

    return [token if kept(i) else {**token, "top_logprobs": []} for i, token in enumerate(tokens)]


def _count(value: Any) -> int | None:
    """A whole number of tokens; None for anything else."""
    count = number(value)
    return int(count) if count is not None and 0 <= count <= MOST_TOKENS and count.is_integer() else None


def _amount(value: Any, what: str) -> float | None:
    amount = number(value)
    if value is not None and (amount is None or amount < 0):
        raise NotACompletion(f"{what} must be a number from 0, got {describe(value)}")
    return amount
