"""Generated replies of every kind: each gives the right value or a named reason, and what is no chat completion is said to be none.

`BENCH_GENERATED=5000 pytest tests/judges/test_generated_replies.py` tries more of them.
"""

from __future__ import annotations

import json
import math
import os
import string
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from bench.judges.asked.chat_completion import NotACompletion, read_body, reply_from_row, reply_of
from bench.judges.asked.journal import Journal, Ledger, Misfit, decode, encode
from bench.judges.asked.replies import (
    REASONS,
    UNREADABLE,
    WINNERS,
    Reading,
    count_reasons,
    read_game,
    read_pairwise,
    read_preference,
    read_rating,
)
from bench.judges.asked.request import Reply
from bench.judges.asked.thinking import after_thinking
from bench.judges.self_judge import read_reply
from bench.records import Call, Verdict
from bench.text_files import BadFile

generated = settings(
    max_examples=int(os.environ.get("BENCH_GENERATED", "60")),
    deadline=None,
    derandomize="BENCH_GENERATED" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
WEIGHTED: dict[str, Any] = {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False}

# A bare `[`, `<` or `◁` would be a mark; words of marks stand in MARKS.
PLAIN = st.text(
    st.sampled_from(string.ascii_letters + string.digits + " .,:;!?\n\t()*_-/éß中😀\u2028\x00"), max_size=60
).filter(
    lambda text: (
        not any(
            word in text.lower()
            for word in ("analysis", "final", "thought process", "response:", "rating", "score")
        )
    )
)
MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisX", "assistantfinal"),
    ("", "</think>"),
]
VERDICTS = [f"[[{n}]]" for n in range(1, 11)] + ["[[A]]", "[[B]]", "[[C]]", "[[A>B]]", "[[B>>A]]", "[[A=B]]"]


@st.composite
def deliberation(draw: st.DrawFn) -> str:
    """Words among which verdicts are drafted."""
    parts = draw(st.lists(st.one_of(PLAIN, st.sampled_from(VERDICTS)), max_size=4))
    return " ".join(parts)


# What is kept ---------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-5, 5), st.floats(allow_nan=True), st.sampled_from([10**400, 1e308, -0.0, 1e-300])
)
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["m", "[[9]]", "text"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["content", "text", "type", "token", "logprob", "top_logprobs", "function", "arguments", "x"]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


def well() -> dict[str, Any]:
    tokens = [
        {
            "token": "m",
            "logprob": -0.2,
            "top_logprobs": [{"token": "m", "logprob": -0.2}, {"token": "M", "logprob": -1.7}],
        }
    ]
    function = {"name": "f", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": "m",
        "refusal": None,
        "reasoning_content": None,
        "tool_calls": [{"function": function}],
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return {"model": "x", "choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """A whole completion of which up to three parts are something else, or absent."""
    body = well()
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places(body)))
        if not place:
            return draw(JSON)
        holder = body
        for key in place[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[place[-1]] = draw(JSON)
        else:
            holder.pop(place[-1])
    return body


def read_all(reply: Reply) -> list[Reading]:
    weighted = read_preference(reply, "logprob_parser", WEIGHTED)
    last = read_preference(reply, "logprob_parser", WEIGHTED | {"log_prob_index": -1})
    return [weighted, last, read_rating(reply), read_pairwise(reply), read_game(reply)]


def check_readings(readings: list[Reading]) -> None:
    for reading, (low, high) in zip(readings, [(0, 1), (0, 1), (1, 10), (0, 1), (0, 1)], strict=True):
        assert (reading.value is None) == bool(reading.why)
        assert reading.value is None or low <= reading.value <= high
        assert reading.expected is None or 1 - 1e-9 <= reading.expected <= 10 + 1e-9
        assert all(math.isfinite(logprob) for logprob in (reading.top_logprobs or {}).values())
        verdict = Verdict(
            "i",
            "j",
            unscored=reading.why,
            rating=None if reading.why else 5.0,
            calls=[Call("j", None, "", "", {})],
        )
        assert sum(count_reasons([verdict]).values()) == bool(reading.why) and count_reasons(
            [verdict]
        ).keys() <= {*REASONS, UNREADABLE}
        assert not (reading.why or "").startswith(UNREADABLE), reading.why  # a reader that raised


@generated
@given(bodies())
def test_whatever_comes_is_a_reply_that_is_kept_and_read_or_none(body: Any) -> None:
    """What is kept comes back from the journal as it is; log-probs are finite, counts are counts, the usual reply weighs m."""
    text = json.dumps(body)
    try:
        reply = reply_of(read_body(text))
    except NotACompletion as error:
        assert str(error)
        return
    assert (
        reply_from_row(reply.to_json()) == reply
        and reply_of(json.loads(json.dumps(read_body(text)))) == reply
    )
    for token in reply.tokens or ():
        assert all(top["logprob"] <= 0.01 and math.isfinite(top["logprob"]) for top in token["top_logprobs"])
    counts = [count for count in (reply.prompt_tokens, reply.completion_tokens) if count is not None]
    assert all(isinstance(count, int) and 0 <= count <= 10**9 for count in counts)
    assert isinstance(reply.text, str) and (reply.served is None or isinstance(reply.served, str))
    with tempfile.TemporaryDirectory() as folder:
        Journal(Path(folder)).add("r", reply)
        assert Journal(Path(folder)).replies == {"r": reply}
    check_readings(read_all(reply))


@generated
@given(
    st.one_of(
        st.binary(max_size=80),
        st.text(max_size=80).map(lambda text: text.encode(errors="replace")),
        JSON.map(lambda v: json.dumps(v).encode()),
    )
)
def test_bytes_that_are_no_completion_are_said_to_be_none(body: bytes) -> None:
    with pytest.raises(NotACompletion):
        reply_of(read_body(body))


# What is read ---------------------------------------------------------------------------------------------------------


@generated
@given(
    marks=st.sampled_from([None, *MARKS]),
    thought=deliberation(),
    before=deliberation(),
    verdict=st.sampled_from(VERDICTS),
    after=PLAIN.filter(lambda text: "[" not in text),
    cut=st.booleans(),
    parts=st.integers(1, 5),
)
def test_the_last_verdict_behind_the_thinking_is_read(
    marks: tuple[str, str] | None, thought: str, before: str, verdict: str, after: str, cut: bool, parts: int
) -> None:
    """The verdict at the end and nothing else, whatever was drafted; none where words follow it in a reply that was cut."""
    opened, closed = marks or ("", "")
    text = f"{opened}{thought if marks else ''}{closed}{before} {verdict}{after}"
    pieces = [text[i : i + parts] for i in range(0, len(text), parts)]
    tokens = [
        {"token": piece, "logprob": -0.1, "top_logprobs": [{"token": piece, "logprob": -0.1}]}
        for piece in pieces
    ]
    reply = Reply(text, tokens=tokens, finish_reason="length" if cut else "stop")
    readings = read_all(reply)
    check_readings(readings)
    if cut and any(c.isalnum() for c in after):
        assert all(reading.why for reading in readings[2:])
        return
    said = verdict.strip("[]")
    rating, pair, game = readings[2:]
    assert rating.value == (float(said) if said.isdigit() else None)
    assert pair.value == WINNERS.get(said)
    if said in ("A>B", "B>>A", "A=B"):
        assert (game.value, game.margin) == {"A>B": (0.0, -1), "B>>A": (1.0, 2), "A=B": (0.5, 0)}[said]


@generated
@given(
    marks=st.sampled_from([marks for marks in MARKS if marks[0]]), thought=deliberation(), cut=st.booleans()
)
def test_thinking_without_an_end_is_never_read(marks: tuple[str, str], thought: str, cut: bool) -> None:
    text = f"{marks[0]}{thought}"
    readings = read_all(Reply(text, finish_reason="length" if cut else "stop"))
    check_readings(readings)
    assert all(
        reading.why and reading.why.startswith(("its thinking", "the reply was cut")) for reading in readings
    )
    assert after_thinking(text) is None
    assert all(
        read_reply(prompt, text) is None for prompt in ("additive", "criteria", "multiple_choice", "pairwise")
    )


@generated
@given(
    m=st.floats(-50, 0),
    other=st.one_of(st.none(), st.floats(-50, 0), st.just(-math.inf), st.just(math.nan)),
    space=st.sampled_from(["", " ", "▁"]),
)
def test_a_vote_is_the_share_of_its_letter(m: float, other: float | None, space: str) -> None:
    """A log-prob that is none is a probability of 0."""
    tops = [
        {"token": f"{space}m", "logprob": m},
        {"token": f"{space}M", "logprob": other},
        {"token": "x", "logprob": -1.0},
    ]
    body = well() | {
        "choices": [
            {"message": {"content": "m"}, "logprobs": {"content": [{**tops[0], "top_logprobs": tops}]}}
        ]
    }
    reading = read_preference(reply_of(read_body(json.dumps(body))), "logprob_parser", WEIGHTED)
    odds = 0.0 if other is None or not math.isfinite(other) else math.exp(other - m)
    assert reading.value == pytest.approx(odds / (1 + odds), abs=1e-12) and not reading.from_text


# Journals -------------------------------------------------------------------------------------------------------------

ROWS = st.fixed_dictionaries(
    {
        "request": st.text(string.hexdigits, min_size=1, max_size=6),
        "reply": st.fixed_dictionaries({"text": st.text(max_size=20).filter(str.isprintable)}),
    }
)


@generated
@given(
    rows=st.lists(ROWS, min_size=1, max_size=4),
    place=st.integers(0),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
def test_a_journal_holds_what_was_written_or_nothing_of_it(
    rows: list[dict[str, Any]], place: int, bit: int, cut: bool
) -> None:
    """A bit flips anywhere, or the rest is lost: no reply is another than it was."""
    whole = b"".join(map(encode, rows))
    known: dict[str, set[str]] = {}
    for row in rows:
        known.setdefault(row["request"], set()).add(row["reply"]["text"])
    place %= len(whole)
    broken = bytearray(whole[:place] if cut else whole)
    if not cut:
        broken[place] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(broken)
        for request, reply in Journal(Path(folder)).replies.items():
            assert reply.text in known[request]


@generated
@given(
    amounts=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    place=st.integers(0),
    bit=st.integers(0, 7),
)
def test_a_damaged_ledger_never_counts_less(amounts: list[float], place: int, bit: int) -> None:
    """Amounts that differ by no more than the largest: a line that is lost counts as that one. (A line that stands alone has no other.)"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spending.jsonl"
        broken = bytearray(b"".join(encode({"stage": "s", "dollars": amount}) for amount in amounts))
        broken[place % len(broken)] ^= 1 << bit
        path.write_bytes(broken)
        ledger = Ledger(path)
        found = ledger.total(["s"], unread_dollars=max(amounts))
        assert found >= sum(amounts) - 1e-9
        assert ledger.n_unread <= 2


@generated
@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_a_line_is_a_row_or_a_misfit(line: bytes) -> None:
    try:
        assert isinstance(decode(line).row, dict)
    except Misfit as error:
        assert str(error) and not isinstance(error, BadFile)
