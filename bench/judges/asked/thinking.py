"""Separates a reply's final text from the model's thinking, for every marking in use.

The final text follows the last mark that ends thinking. Some templates open the thinking themselves, so a
reply may only close it. A reply whose thinking is opened and never closed has no final text. A mark inside
quotation marks or backticks is only mentioned, and marks nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

UNENDED = "its thinking did not end"
UNMARKED = "its thinking is not marked off from what it says"

_UNQUOTED = r"(?<![\"'`“‘«])"
_NAME = r"(?:[a-z0-9]+[:_-])?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad)"
_OPEN = re.compile(
    rf"{_UNQUOTED}(?:<{_NAME}(?:\s[^<>]{{0,80}})?>|◁{_NAME}▷|(?-i:\[(?:THINK|THINKING|REASONING)\])"
    r"|<\|(?:begin_of_thought|start_thinking|inner_prefix)\|>|<\|channel>\s*thought)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"{_UNQUOTED}(?:</{_NAME}\s*>|◁/{_NAME}▷|(?-i:\[/(?:THINK|THINKING|REASONING)\])"
    r"|<\|(?:end_of_thought|end_thinking|inner_suffix)\|>|<channel\|>)",
    re.IGNORECASE,
)

# OpenAI's harmony format has channels; the channel `final` holds the final text.
_HARMONY = re.compile(rf"{_UNQUOTED}<\|(?:channel|message)\|>")
_FINAL = re.compile(r"(?:<\|channel\|>|^)\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|call|start)\|>")
# Harmony when the server drops special tokens: `analysisThe first ...assistantfinalThe second`.
_DROPPED = re.compile(r"\s*analysis(?=[^\s,.:;!?)\-'\"]|\n)")
_DROPPED_FINAL, _DROPPED_FINAL_APART = re.compile(r"assistantfinal"), re.compile(r"assistant\s{0,2}final\b")
# Granite's marks are sentences.
_PROSE = re.compile(r"\s*here(?:'s| is) my thought process:", re.IGNORECASE)
_PROSE_END = re.compile(r"here(?:'s| is) my response:", re.IGNORECASE)


class Span(NamedTuple):
    start: int
    end: int


def final_span(text: str) -> Span | str:
    """The position of the final text in a reply; UNENDED or UNMARKED if it cannot be found."""
    if _HARMONY.search(text):
        finals = list(_FINAL.finditer(text))
        if not finals:
            return UNENDED
        start = finals[-1].end()
        closed = _HARMONY_END.search(text, start)
        return Span(start, closed.start() if closed else len(text))
    ends = [mark.end() for mark in _CLOSE.finditer(text)]
    ends += [mark.end() for mark in _DROPPED_FINAL.finditer(text)]
    if _DROPPED.match(text):
        ends += [mark.end() for mark in _DROPPED_FINAL_APART.finditer(text)]
        if not ends:
            return UNMARKED
    if _PROSE.match(text):
        ends += [mark.end() for mark in _PROSE_END.finditer(text)]
        if not ends:
            return UNENDED
    start = max(ends, default=0)
    return UNENDED if _OPEN.search(text, start) else Span(start, len(text))


def after_thinking(text: str) -> str | None:
    """The final text of a reply, without its thinking; None if it cannot be found."""
    span = final_span(text)
    return None if isinstance(span, str) else text[span.start : span.end].strip()
