"""Endpoints that answer oddly, over real HTTP: what is kept, what is asked again, how long it takes, and where nothing is sent."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from endpoint import Answer, Endpoint, Said, tops
from outer import some_outer

from bench.config import Asking
from bench.judges.asked import chat_completion
from bench.judges.asked import endpoint as client
from bench.judges.asked.endpoint import (
    JudgeRefused,
    JudgeUnfinished,
    ServedModelsDiffer,
    check_served,
    drop_other_models,
)
from bench.judges.asked.journal import Journal, Ledger, append, encode
from bench.judges.asked.prices import Price
from bench.judges.asked.prompts import annotator
from bench.judges.asked.replies import read_preference, read_rating
from bench.judges.asked.request import Request
from bench.store.stage_run import OverBudget

WEIGHTED: dict[str, Any] = {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False}
ASKING = Asking(
    server="endpoint",
    base_url=None,
    api_key_env="BENCH_TEST_KEY",
    concurrency=4,
    attempts=2,
    timeout_s=10.0,
    batch_wait_s=None,
    budget_dollars=None,
    prices=None,
    tokenizer=None,
)
PRICE = Price.model_validate(
    {
        "models": ["j"],
        "prompt": 1e6,
        "completion": 0.0,
        "date": "2026-01-01",
        "source": "made up",
        "batch": 0.5,
    },
    strict=False,
)
Serve = Callable[..., Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running = []

    def start(say: Callable[[Mapping[str, Any]], str | Said | Answer]) -> Endpoint:
        running.append(Endpoint(say))
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.close()


def asker(url: str, folder: Path, price: Price | None = None, **changes: Any) -> client.Endpoint:
    asking = ASKING.model_copy(update=changes)
    return client.Endpoint(
        asking, url, Journal(folder / "s.work"), Ledger(folder / "spending.jsonl"), "s", ("s",), price
    )


def requests(n: int) -> list[Request]:
    return [
        Request([{"role": "user", "content": f"q{i}"}], {"model": "j", "max_tokens": 1}) for i in range(n)
    ]


def silent(*_: int) -> None: ...


def content(body: Mapping[str, Any]) -> str:
    return body["messages"][-1]["content"]


def chat(message: Any = None, logprobs: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": "[[9]]"} if message is None else message, "logprobs": logprobs}
    return {"model": "x", "choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}, **more}


def listed(token: Any = "m", logprob: Any = -0.1, likeliest: Any = ()) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": logprob, "top_logprobs": likeliest}]}


def called(arguments: Any) -> dict[str, Any]:
    return {
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


# The door of the journal ----------------------------------------------------------------------------------------------

NO_COMPLETIONS: dict[str, Any] = {
    "text": "nothing",
    "a list": [],
    "null": None,
    "no choices": {"model": "x"},
    "an error": {"error": {"message": "overloaded"}},
    "choices of none": {**chat(), "choices": []},
    "choices an object": {**chat(), "choices": {"0": {}}},
    "a choice of null": {**chat(), "choices": [None]},
    "a message of null": {**chat(), "choices": [{"message": None}]},
    "a message of text": chat("m"),
    "content a number": chat({"content": 9}),
    "content an object": chat({"content": {"text": "[[9]]"}}),
    "a part of null": chat({"content": [None]}),
    "a part whose text is a number": chat({"content": [{"type": "text", "text": 9}]}),
    "a model that is a number": chat(model=5),
    "a model that is a list": chat(model=["x"]),
    "a token of null": chat(logprobs=listed(None)),
    "a token that is a number": chat(logprobs=listed(7)),
    "a top token of null": chat(logprobs=listed(likeliest=[{"token": None, "logprob": -1.0}])),
    "a top of null": chat(logprobs=listed(likeliest=[None])),
    "tops an object": chat(logprobs=listed(likeliest={"m": -0.1})),
    "a log-prob in text": chat(logprobs=listed(logprob="-0.1")),
    "a log-prob that is true": chat(logprobs=listed(logprob=True)),
    "a probability above 1": chat(logprobs=listed(likeliest=[{"token": "m", "logprob": 1e308}])),
    "log-probs in text": chat(logprobs="-0.1"),
    "log-probs of an object": chat(logprobs={"content": {"m": -0.1}}),
    "a finish that is a number": {**chat(), "choices": [{"message": {"content": "m"}, "finish_reason": 1}]},
    "a reply that was broken off": {
        **chat(),
        "choices": [{"message": {"content": "[[3]] at first"}, "finish_reason": "error"}],
    },
    "a reply of a busy provider": {
        **chat(),
        "choices": [{"message": {"content": ""}, "finish_reason": "insufficient_system_resource"}],
    },
    "an error in a choice": {
        **chat(),
        "choices": [{"message": {"content": ""}, "error": {"code": 502, "message": "upstream"}}],
    },
    "arguments that are a number": chat(called(5)),
    "a call of null": chat({"content": None, "tool_calls": [None]}),
    "a call without a function": chat({"content": None, "tool_calls": [{"id": "1"}]}),
    "calls an object": chat({"content": None, "tool_calls": {"function": {}}}),
    "a refusal that is true": chat({"content": None, "refusal": True}),
    "nested deep": '{"model": "x", "choices": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a name twice": '{"model": "x", "model": "y", "choices": [{"message": {"content": "m"}}]}',
    "cut short": json.dumps(chat())[:-9],
    "a page": "<html>busy</html>",
    "nothing at all": "",
}


@pytest.mark.parametrize("kind", some_outer(NO_COMPLETIONS, list(NO_COMPLETIONS)[::3]))
def test_what_is_no_chat_completion_is_asked_again_and_never_kept(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    odd = NO_COMPLETIONS[kind]
    body, well = odd if isinstance(odd, str) and kind != "text" else json.dumps(odd), False
    endpoint = serve(lambda asked: content(asked) if well or content(asked) == "q1" else Answer(body=body))
    with pytest.raises(
        JudgeUnfinished,
        match=r"1 of 2 requests got no reply after 2 attempts .* the body is not a chat completion",
    ):
        asker(endpoint.url, tmp_path).ask(requests(2), silent)
    assert len(endpoint.asked) == 3 and len(Journal(tmp_path / "s.work").replies) == 1
    well = True
    assert [reply.text for reply in asker(endpoint.url, tmp_path).ask(requests(2), silent)] == ["q0", "q1"]
    assert len(endpoint.asked) == 4


@pytest.mark.parametrize("word", ["length", "model_length", "MAX_TOKENS"])
def test_a_draft_is_no_verdict_whatever_word_says_that_a_reply_was_cut(
    serve: Serve, tmp_path: Path, word: str
) -> None:
    """Mistral ends a full context in model_length, Gemini a full reply in MAX_TOKENS."""
    cut = {
        **chat(),
        "choices": [{"message": {"content": "It looks like [[3]], but then"}, "finish_reason": word}],
    }
    (reply,) = asker(serve(lambda _: Answer(body=json.dumps(cut))).url, tmp_path).ask(requests(1), silent)
    reading = read_rating(reply)
    assert reading.value is None and reading.why and reading.why.startswith("the reply was cut at max_tokens")


@pytest.mark.parametrize("word", ["SAFETY", "recitation"])
def test_a_reply_that_is_filtered_under_another_word_is_filtered(
    serve: Serve, tmp_path: Path, word: str
) -> None:
    filtered = {**chat(), "choices": [{"message": {"content": "It looks like [[3]]"}, "finish_reason": word}]}
    (reply,) = asker(serve(lambda _: Answer(body=json.dumps(filtered))).url, tmp_path).ask(
        requests(1), silent
    )
    assert read_rating(reply).why == "the provider's content filter stopped the reply"


USAGES = [
    None,
    "12",
    [],
    {"prompt_tokens": "9"},
    {"prompt_tokens": 1, "completion_tokens": 1e300},
    {"prompt_tokens": -1},
    {"prompt_tokens": True},
]


@pytest.mark.parametrize("usage", USAGES, ids=str)
def test_a_usage_that_is_none_is_unknown_and_what_it_can_cost_stays_counted(
    serve: Serve, tmp_path: Path, usage: Any
) -> None:
    """A prompt of two bytes can cost 18."""
    endpoint = serve(lambda _: Answer(body=json.dumps(chat(usage=usage))))
    (reply,) = asker(endpoint.url, tmp_path, PRICE, budget_dollars=100.0).ask(requests(1), silent)
    assert (reply.text, reply.dollars) == ("[[9]]", None) and (
        reply.prompt_tokens,
        reply.completion_tokens,
    ) in ((None, None), (1, None))
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == 18.0
    assert Journal(tmp_path / "s.work").replies[requests(1)[0].digest] == reply


@pytest.mark.parametrize("nothing", ["null", "NaN", "-Infinity", "Infinity", "-1e999"])
def test_a_log_prob_that_is_none_is_a_probability_of_0(serve: Serve, tmp_path: Path, nothing: str) -> None:
    """As where the token is absent: of `m` 0.9 and of `M` none, and a rating of 9 over 8."""
    text = json.dumps(
        chat(
            {"content": "m"},
            listed("m", -0.1, [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": "X"}]),
        )
    )
    (vote,) = asker(serve(lambda _: Answer(body=text.replace('"X"', nothing))).url, tmp_path / "vote").ask(
        requests(1), silent
    )
    reading = read_preference(vote, "logprob_parser", WEIGHTED)
    assert (reading.value, reading.from_text, reading.top_logprobs) == (0.0, False, {"m": -0.1})
    tokens = [
        {"token": "[[", "logprob": 0.0, "top_logprobs": []},
        listed("9", 0.0, [{"token": "9", "logprob": -0.2}])["content"][0],
    ]
    tokens[1]["top_logprobs"].append({"token": "8", "logprob": "X"})
    text = json.dumps(
        chat(logprobs={"content": [*tokens, {"token": "]]", "logprob": "X", "top_logprobs": None}]})
    )
    (rating,) = asker(
        serve(lambda _: Answer(body=text.replace('"X"', nothing))).url, tmp_path / "rating"
    ).ask(requests(1), silent)
    assert (read_rating(rating).value, read_rating(rating).expected) == (9.0, 9.0)
    every = text.replace('"logprob": -0.2', '"logprob": "X"').replace('"X"', nothing)
    (none,) = asker(serve(lambda _: Answer(body=every)).url, tmp_path / "none").ask(requests(1), silent)
    assert (read_rating(none).value, read_rating(none).expected) == (9.0, None)


def test_arguments_that_are_an_object_are_their_text(serve: Serve, tmp_path: Path) -> None:
    found = annotator("alpaca_eval_gpt4_turbo_fn")
    ranked = {
        "concise_explanation": "b",
        "ordered_models": [{"model": "M", "rank": 1}, {"model": "m", "rank": 2}],
    }
    for name, arguments, value in (
        ("object", ranked, 1.0),
        ("text", json.dumps(ranked), 1.0),
        ("null", None, None),
    ):
        endpoint = serve(lambda _, arguments=arguments: Answer(body=json.dumps(chat(called(arguments)))))
        (reply,) = asker(endpoint.url, tmp_path / name).ask(requests(1), silent)
        reading = read_preference(reply, found.parser, found.parser_kwargs)
        assert (reading.value, reading.why) == (value, None if value else "an empty reply")


def test_refusals_and_filters_are_replies_with_their_reason(serve: Serve, tmp_path: Path) -> None:
    refused = {"q0": Said("", message={"refusal": "I cannot help."}), "q1": Said("", finish="content_filter")}
    refused["q2"] = Said("", message={"content": [{"type": "refusal", "refusal": "No."}]})
    replies = asker(serve(lambda body: refused[content(body)]).url, tmp_path).ask(requests(3), silent)
    whys = [
        "the model refused: I cannot help.",
        "the provider's content filter stopped the reply",
        "the model refused: No.",
    ]
    assert [read_rating(reply).why for reply in replies] == whys


# Deadlines, waits, redirects ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def dripping(pieces: list[bytes], every_s: float) -> Iterator[str]:
    """An endpoint that sends one piece after another, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(every_s)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


BODY = json.dumps(chat()).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.mark.parametrize(
    "whole",
    [
        [HEAD, *(bytes([c]) for c in BODY)],
        [*(bytes([c]) for c in HEAD), BODY],
        [HEAD.replace(b"200", b"500"), *[b"x"] * len(BODY)],
    ],
    ids=["body", "head", "error"],
)
def test_a_request_has_one_deadline_however_slowly_it_is_answered(tmp_path: Path, whole: list[bytes]) -> None:
    """Each piece comes well within the deadline, all of them do not."""
    began = time.monotonic()
    with (
        dripping(whole, 0.1) as url,
        pytest.raises(JudgeUnfinished, match=r"longer than 0\.5 s \(judge\.timeout_s\)"),
    ):
        asker(url, tmp_path, PRICE, timeout_s=0.5, budget_dollars=100.0, attempts=1).ask(requests(2), silent)
    assert time.monotonic() - began < 3
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == 36.0  # both may be billed


def test_a_slow_answer_within_the_deadline_is_a_reply(tmp_path: Path) -> None:
    halves = [HEAD, BODY[:20], BODY[20:]]
    with dripping(halves, 0.1) as url:
        assert asker(url, tmp_path, timeout_s=5.0).ask(requests(1), silent)[0].text == "[[9]]"


def test_a_body_without_end_is_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_MAX_ROW_MIB", "1")
    endless = [HEAD.replace(str(len(BODY)).encode(), b"9000000"), *[b" " * 65536] * 40]
    with dripping(endless, 0.0) as url, pytest.raises(JudgeUnfinished, match="longer than 1 MiB"):
        asker(url, tmp_path, attempts=1).ask(requests(1), silent)


def test_a_long_wait_ends_the_stage_for_all_at_once(serve: Serve, tmp_path: Path) -> None:
    """Others wait for their second try when it comes: they do not wait on."""

    def say(body: Mapping[str, Any]) -> str | Answer:
        if content(body) == "q0":
            return Answer(429, "come tomorrow", {"Retry-After": "86400"}, delay_s=0.3)
        return content(body) if content(body) == "q1" else Answer(429, "soon", {"Retry-After": "200"})

    endpoint, began = serve(say), time.monotonic()
    with pytest.raises(
        JudgeUnfinished,
        match=r"answered 429: come tomorrow, and asks to wait 86400 s .* The 1 replies that came are kept",
    ):
        asker(endpoint.url, tmp_path, concurrency=3).ask(requests(3), silent)
    assert time.monotonic() - began < 5


def test_waits_without_a_reply_between_add_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LONGEST_WAIT_S", 2.0)
    endpoint, began = serve(lambda _: Answer(429, "{}", {"Retry-After": "0.9"})), time.monotonic()
    with pytest.raises(JudgeUnfinished, match=r"asks to wait 2\.\d* s in all since the last reply"):
        asker(endpoint.url, tmp_path, attempts=50, concurrency=1).ask(requests(5), silent)
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("header", ["nan", "soon", "-5", "", "1e400x"])
def test_a_retry_after_that_says_nothing_is_none(serve: Serve, tmp_path: Path, header: str) -> None:
    answers = iter([Answer(429, "{}", {"Retry-After": header})])
    endpoint = serve(lambda body: next(answers, content(body)))
    assert asker(endpoint.url, tmp_path).ask(requests(1), silent)[0].text == "q0"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_to_another_host(serve: Serve, tmp_path: Path, status: int) -> None:
    other = serve(content)
    endpoint = serve(lambda _: Answer(status, "", {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(
        JudgeRefused,
        match=rf"redirects to {other.url.removesuffix('/v1')}\. Nothing was sent there\. .* judge\.base_url",
    ):
        asker(endpoint.url, tmp_path, concurrency=1).ask(requests(3), silent)
    assert not other.asked and not other.headers and len(endpoint.asked) == 1


def test_a_redirect_on_the_same_host_is_followed(serve: Serve, tmp_path: Path) -> None:
    moved: list[str] = []

    def say(body: Mapping[str, Any]) -> str | Answer:
        if not moved:
            moved.append("")
            return Answer(307, "", {"Location": "/v1/elsewhere/chat/completions"})
        return content(body)

    assert asker(serve(say).url, tmp_path).ask(requests(1), silent)[0].text == "q0"


# Served models --------------------------------------------------------------------------------------------------------


def judged(endpoint: Endpoint, folder: Path, n: int) -> list[str | None]:
    """As the stage does: the models that replies name, one in the end."""
    asking = asker(endpoint.url, folder)
    drop_other_models(requests(n), asking.journal)
    replies = asking.ask(requests(n), silent)
    check_served(replies, requests(n), asking.journal)
    return [reply.served for reply in replies]


def test_replies_of_the_fewer_are_dropped_and_asked_again(serve: Serve, tmp_path: Path) -> None:
    mixed = serve(lambda body: Said("x", model="b" if content(body) == "q1" else "a"))
    with pytest.raises(
        ServedModelsDiffer,
        match=r"from a and b\. .* The same command drops the 1 of b \(kept: those of a\) and asks for them again",
    ):
        judged(mixed, tmp_path, 4)
    whole = serve(lambda _: Said("x", model="a"))
    assert judged(whole, tmp_path, 4) == ["a"] * 4 and len(whole.asked) == 1


def test_a_model_that_is_served_no_more_is_not_waited_for(serve: Serve, tmp_path: Path) -> None:
    """Three of four came from the old one. The fourth is asked again, in vain; then the three are."""
    model = "old"

    def say(body: Mapping[str, Any]) -> Said:
        return Said("x", model="new" if content(body) == "q3" else model)

    endpoint = serve(say)
    with pytest.raises(ServedModelsDiffer):
        judged(endpoint, tmp_path, 4)
    model = "new"
    with pytest.raises(ServedModelsDiffer, match=r"drops the 3 of old \(kept: those of new\)"):
        judged(endpoint, tmp_path, 4)
    assert judged(endpoint, tmp_path, 4) == ["new"] * 4 and len(endpoint.asked) == 4 + 1 + 3


# Journals and ledgers -------------------------------------------------------------------------------------------------


def test_every_damaged_bit_of_a_journal_is_found(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever bit of a line flips: the reply is asked again, or is the same."""
    endpoint = serve(lambda _: Said("m", tops(m=0.9, M=0.1)))
    replies = asker(endpoint.url, tmp_path).ask(requests(1), silent)
    path = tmp_path / "s.work" / "journal.jsonl"
    whole, digest = path.read_bytes(), requests(1)[0].digest
    for place in range(0, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert Journal(tmp_path / "s.work").replies.get(digest, replies[0]) == replies[0]
    path.write_bytes(whole.replace(b"0.9", b"0.1").replace(b"-0.1", b"-0.2"))
    capsys.readouterr()
    assert Journal(tmp_path / "s.work").replies == {}
    assert "dropped 1 unreadable lines (first: line 1: damaged" in capsys.readouterr().out
    assert asker(endpoint.url, tmp_path).ask(requests(1), silent)[0].text == "m" and len(endpoint.asked) == 2


@pytest.mark.parametrize(
    "line",
    ["[]", "null", "5", "{}", '{"v": 2, "row": {}}', '{"request": "R"}', '{"request": 5, "reply": {"text": "m"}}', "[" * 100_000, "\x00",
     '{"request": "R", "reply": {"text": null}}', '{"request": "R", "reply": {"text": "m", "new_field": 1}}',
     '{"request": "R", "reply": {"text": "m", "dollars": -1}}', '{"request": "R", "reply": {"text": "m", "served": 5}}',
     '{"request": "R", "reply": {"text": "m", "tokens": [{"token": null}]}}'],
)  # fmt: skip
def test_a_line_of_another_sort_is_dropped(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines of earlier programs, which have no checksum, are read as they are."""
    journal = tmp_path / "journal.jsonl"
    good = '{"request": "old", "reply": {"text": "M", "tokens": [{"token": "M", "logprob": -0.5, "top_logprobs": []}]}}'
    journal.write_text(f"{good}\n{line}\n")
    append(journal, {"request": "new", "reply": {"text": "m"}})
    assert {request: reply.text for request, reply in Journal(tmp_path).replies.items()} == {
        "old": "M",
        "new": "m",
    }
    told = capsys.readouterr().out
    assert (
        "dropped 1 unreadable lines" in told
        and "read 1 replies without checksums, written by an earlier version" in told
    )


def test_replies_of_another_reading_are_taken_over_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "old.work" / "journal.jsonl"
    earlier.parent.mkdir()
    earlier.write_text('{"request": "a", "reply": {"text": "M"}}\nbroken\n')
    assert {
        name: r.text
        for name, r in Journal(tmp_path / "new.work", [tmp_path / "none", earlier]).replies.items()
    } == {"a": "M"}
    assert "Copied 1 replies from the journal of an earlier version" in capsys.readouterr().out
    earlier.unlink()
    assert Journal(tmp_path / "new.work", [earlier]).replies["a"].text == "M"
    assert capsys.readouterr().out == ""


def test_a_broken_line_of_the_ledger_counts_as_the_largest(tmp_path: Path) -> None:
    path = tmp_path / "spending.jsonl"
    ledger = Ledger(path)
    for dollars in (3.0, 5.0, -4.0):
        ledger.add("s", dollars)
    assert ledger.total(["s"]) == 4.0
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0].replace(b"3.0", b"0.0"), *lines[1:]]))
    assert Ledger(path).total(["s"]) == 1.0 + 5.0  # what was 3 counts as 5
    assert Ledger(path).total(["another"]) == 5.0  # it may have been anybody's
    with pytest.raises(
        OverBudget, match=r"\$6\.0000 of .* this counts 1 unreadable lines of .*spending\.jsonl"
    ):
        Ledger(path).reserve("s", 5.0, 10.0, ["s"])
    path.write_bytes(
        b'{"stage": "s", "dollars": 2.0}\n'
        + encode({"stage": "s", "dollars": 1.0})
        + b'{"v": 9, "row": {}}\n[]\n{"stage": "s"'
    )
    assert Ledger(path).total(["s"]) == 2.0 + 1.0 + 3 * 2.0


# Batch files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BATCH_POLL_S", 0.05)


def batched(endpoint: Endpoint, folder: Path, n: int = 2, **changes: Any) -> list[str]:
    asking = asker(endpoint.url, folder, PRICE, batch_wait_s=5.0, budget_dollars=1000.0, **changes)
    return [reply.text for reply in asking.ask(requests(n), silent)]


@pytest.mark.usefixtures("quick")
def test_a_kill_between_sending_and_writing_pays_once(serve: Serve, tmp_path: Path) -> None:
    class Killed(BaseException): ...

    endpoint = serve(content)
    asking = asker(endpoint.url, tmp_path, PRICE, batch_wait_s=5.0, budget_dollars=1000.0)
    written = client.write_whole

    def killed(path: Path, row: dict[str, Any]) -> None:
        if row["id"]:
            raise Killed
        written(path, row)

    client.write_whole = killed
    try:
        with pytest.raises(Killed):
            asking.ask(requests(2), silent)
    finally:
        client.write_whole = written
    assert endpoint.batches["batch-0"]["metadata"]["bench_stage"] == "s"
    assert batched(endpoint, tmp_path) == ["q0", "q1"] and len(endpoint.batches) == 1
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == pytest.approx(1.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"null",
        b"[]",
        b'{"id": ',
        b'{"id": 5, "reserved": 0.0}',
        b'{"v": 1, "sum": "x", "row": {"id": "other"}}',
    ],
)
def test_a_damaged_batch_file_is_said_and_its_batch_found_again(
    serve: Serve, tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = serve(content)
    endpoint.batch_status = "in_progress"
    with pytest.raises(JudgeUnfinished, match="batch-0 is still in_progress"):
        asker(endpoint.url, tmp_path, batch_wait_s=0.01).ask(requests(2), silent)
    (tmp_path / "s.work" / "batch.json").write_bytes(damage)
    endpoint.batch_status = "completed"
    assert batched(endpoint, tmp_path) == ["q0", "q1"] and len(endpoint.batches) == 1
    told = capsys.readouterr().out
    assert "s.work/batch.json: " in told and "Batch batch-0 was sent by an earlier run" in told


@pytest.mark.usefixtures("quick")
def test_an_announced_batch_that_never_arrived_is_sent_once_and_counted_once(
    serve: Serve, tmp_path: Path
) -> None:
    asking = asker("http://127.0.0.1:9/v1", tmp_path, PRICE, batch_wait_s=5.0, budget_dollars=1000.0)
    with pytest.raises(JudgeUnfinished, match="The connection failed"):
        asking.ask(requests(2), silent)
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == 18.0  # 9 each, at half the price
    endpoint = serve(content)
    assert batched(endpoint, tmp_path) == ["q0", "q1"] and len(endpoint.batches) == 1
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == pytest.approx(1.0)
    unlisted = serve(content)
    unlisted.lists_batches = False
    with contextlib.suppress(JudgeUnfinished):
        asker("http://127.0.0.1:9/v1", tmp_path / "b", batch_wait_s=5.0).ask(requests(2), silent)
    with pytest.raises(
        JudgeRefused,
        match=r"may have sent a batch, but the endpoint does not list batches \(status 404\)\. Delete .*batch\.json to send it again",
    ):
        batched(unlisted, tmp_path / "b")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("output", "told"),
    [
        (
            lambda rows: "\n".join(json.dumps({**row, "custom_id": f"x{i}"}) for i, row in enumerate(rows)),
            "2 failed with an id of no request",
        ),
        (lambda rows: "<html>busy</html>", "no batch row: '<html>busy</html>'"),
        (lambda rows: json.dumps(rows), "no batch row: '["),
        (
            lambda rows: "\n".join(json.dumps({"response": row["response"]}) for row in rows),
            "2 failed with no batch row",
        ),
        (
            lambda rows: "\n".join(json.dumps({**row, "custom_id": 5}) for row in rows),
            "2 failed with no batch row",
        ),
        (
            lambda rows: "\n".join(json.dumps({**row, "response": None}) for row in rows),
            "no reply in it; 2 failed",
        ),
        (
            lambda rows: "\n".join(json.dumps({**row, "response": []}) for row in rows),
            "no reply in it; 2 failed",
        ),
        (
            lambda rows: "\n".join(
                json.dumps({**row, "response": {"status_code": 200, "body": "m"}}) for row in rows
            ),
            "2 failed with 200: no chat",
        ),
        (lambda rows: "[" * 100_000, "no batch row"),
        (lambda rows: "", "completed: no reply in it"),
    ],
    ids=[
        "other ids",
        "html",
        "a list",
        "no id",
        "id a number",
        "no response",
        "response a list",
        "body a text",
        "deep",
        "empty",
    ],
)
def test_a_batch_without_a_fitting_row_ends_the_stage(
    serve: Serve, tmp_path: Path, output: Any, told: str
) -> None:
    endpoint = serve(content)
    endpoint.output = output
    with pytest.raises((JudgeRefused, JudgeUnfinished)) as error:
        batched(endpoint, tmp_path)
    assert told in str(error.value) and len(endpoint.batches) == 1
    assert Journal(tmp_path / "s.work").replies == {}
    endpoint.output = lambda rows: "\n".join(json.dumps(row) for row in rows)
    assert batched(endpoint, tmp_path) == ["q0", "q1"] and len(endpoint.batches) == 2


def failing(code: Any, message: str) -> Callable[[list[dict[str, Any]]], str]:
    def output(rows: list[dict[str, Any]]) -> str:
        if isinstance(code, str):
            told = [
                {"custom_id": row["custom_id"], "response": None, "error": {"code": code, "message": message}}
                for row in rows
            ]
        else:
            body = {"error": {"message": message, "type": "server_error"}}
            told = [
                {
                    "custom_id": row["custom_id"],
                    "response": {"status_code": code, "body": body},
                    "error": None,
                }
                for row in rows
            ]
        return "\n".join(map(json.dumps, told))

    return output


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("code", "message", "kind", "told"),
    [
        (
            500,
            "The engine is overloaded",
            JudgeUnfinished,
            "3 failed with 500: The engine is overloaded. The same command sends its requests again",
        ),
        (
            404,
            "The model `nope` does not exist",
            JudgeRefused,
            "3 failed with 404: The model `nope` does not exist",
        ),
        (400, "max_tokens is no parameter", JudgeRefused, "3 failed with 400: max_tokens is no parameter"),
        (
            "batch_expired",
            "It could not be run in time",
            JudgeUnfinished,
            "batch_expired: It could not be run in time. The same command sends",
        ),
    ],
)
def test_what_a_batch_failed_with_is_said(
    serve: Serve, tmp_path: Path, code: Any, message: str, kind: type[Exception], told: str
) -> None:
    endpoint = serve(content)
    endpoint.output = failing(code, message)
    with pytest.raises(kind) as error:
        batched(endpoint, tmp_path, 3)
    assert told in str(error.value) and type(error.value) is kind and len(endpoint.batches) == 1
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == 0.0


@pytest.mark.usefixtures("quick")
def test_requests_that_fail_in_every_batch_are_not_sent_for_ever(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(lambda body: Answer(500, "busy") if content(body) == "q1" else content(body))
    told = "2 of 3 requests|1 of 3 requests had no reply in 2 batches"
    with pytest.raises(JudgeUnfinished, match=f"{told}|1 failed with 500: busy"):
        batched(endpoint, tmp_path, 3)
    assert len(endpoint.batches) == 2 and len(Journal(tmp_path / "s.work").replies) == 2


@pytest.mark.usefixtures("quick")
def test_an_id_twice_counts_once_and_a_usage_that_is_none_costs_what_was_counted(
    serve: Serve, tmp_path: Path
) -> None:
    endpoint = serve(content)

    def twice(rows: list[dict[str, Any]]) -> str:
        first, second = rows
        del first["response"]["body"]["usage"]
        again = json.loads(json.dumps(first).replace("q0", "another"))
        return "\n".join(map(json.dumps, [first, again, second]))

    endpoint.output = twice
    assert batched(endpoint, tmp_path) == ["q0", "q1"]
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == pytest.approx(9.0 + 0.5)
    assert math.isfinite(Ledger(tmp_path / "spending.jsonl").total(["s"]))


def test_the_first_choice_is_the_one_of_index_0_wherever_it_stands() -> None:
    choices = [{"index": n, "message": {"content": f"[[{n}]]"}} for n in (1, 0)]
    assert chat_completion.reply_of({"model": "x", "choices": choices}).text == "[[0]]"
