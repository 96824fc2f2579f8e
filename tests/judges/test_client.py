"""Asking over real HTTP on loopback: retries and pauses, refusals, the journal, budgets, batch files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from endpoint import Answer, Endpoint, Said

from bench.config import Asking
from bench.judges.asked import endpoint as client
from bench.judges.asked.endpoint import JudgeRefused, JudgeUnfinished, ServedModelsDiffer, check_served
from bench.judges.asked.journal import Journal, Ledger
from bench.judges.asked.prices import Price
from bench.judges.asked.request import Request
from bench.store.stage_run import OverBudget

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


ASKING = Asking(
    server="endpoint",
    base_url=None,
    api_key_env="BENCH_TEST_KEY",
    concurrency=4,
    attempts=3,
    timeout_s=10.0,
    batch_wait_s=None,
    budget_dollars=None,
    prices=None,
    tokenizer=None,
)
ROW = {
    "models": ["j"],
    "prompt": 1e6,
    "completion": 0.0,
    "date": "2026-01-01",
    "source": "made up",
    "batch": 0.5,
}
PRICE = Price.model_validate(ROW, strict=False)


def asker(endpoint: Endpoint, folder: Path, price: Price | None = None, **changes: Any) -> client.Endpoint:
    asking = ASKING.model_copy(update=changes)
    return client.Endpoint(
        asking,
        endpoint.url,
        Journal(folder / "s.work"),
        Ledger(folder / "spending.jsonl"),
        "s",
        ("s",),
        price,
    )


def requests(n: int) -> list[Request]:
    return [
        Request([{"role": "user", "content": f"q{i}"}], {"model": "j", "max_tokens": 1}) for i in range(n)
    ]


def silent(*_: int) -> None: ...


def content(body: Mapping[str, Any]) -> str:
    return body["messages"][-1]["content"]


def test_replies_come_in_the_order_of_the_requests_and_no_more_at_once_than_allowed(
    serve: Serve, tmp_path: Path
) -> None:
    endpoint = serve(lambda body: (time.sleep(0.02), content(body).upper())[1])
    replies = asker(endpoint, tmp_path).ask(requests(20), silent)
    assert [reply.text for reply in replies] == [f"Q{i}" for i in range(20)]
    assert {reply.served for reply in replies} == {"served-model"}
    assert 2 <= endpoint.most_at_once <= 4
    assert endpoint.asked[0] == {"model": "j", "max_tokens": 1, "messages": endpoint.asked[0]["messages"]}


def test_equal_requests_are_asked_once(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(content)
    replies = asker(endpoint, tmp_path).ask([*requests(2), *requests(2)], silent)
    assert [reply.text for reply in replies] == ["q0", "q1", "q0", "q1"]
    assert len(endpoint.asked) == 2


def test_retry_after_is_obeyed_and_holds_back_the_others(serve: Serve, tmp_path: Path) -> None:
    told: list[float] = []

    def say(body: Mapping[str, Any]) -> str | Answer:
        if not told:
            told.append(time.monotonic())
            return Answer(429, '{"error": {"message": "slow down"}}', {"Retry-After": "1"})
        return content(body)

    endpoint = serve(say)
    replies = asker(endpoint, tmp_path, concurrency=1).ask(requests(3), silent)
    assert [reply.text for reply in replies] == ["q0", "q1", "q2"]
    assert endpoint.times[1] - told[0] >= 1.0


def test_a_date_in_retry_after_is_read() -> None:
    assert client._retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert client._retry_after_s("2.5") == 2.5
    assert client._retry_after_s("soon") is None


def test_an_endpoint_that_asks_for_an_hour_has_no_reply_for_this_run(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(
        lambda body: Answer(429, "{}", {"Retry-After": "3600"}) if content(body) == "q1" else content(body)
    )
    began = time.monotonic()
    with pytest.raises(
        JudgeUnfinished,
        match=r"answered 429: \{\}, and asks to wait 3600 s .* The 1 replies that came are kept",
    ):
        asker(endpoint, tmp_path, concurrency=1).ask(requests(2), silent)
    assert time.monotonic() - began < 5
    assert sum(content(body) == "q1" for body in endpoint.asked) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(500, "oops"),
        Answer(503, "<html>busy</html>"),
        Answer(200, "<html>a proxy</html>"),
        Answer(200, '{"error": "none"}'),
    ],
)
def test_what_may_pass_is_tried_again(serve: Serve, tmp_path: Path, trouble: Answer) -> None:
    seen: dict[str, int] = {}

    def say(body: Mapping[str, Any]) -> str | Answer:
        seen[content(body)] = seen.get(content(body), 0) + 1
        return trouble if seen[content(body)] < 3 else content(body)

    replies = asker(serve(say), tmp_path).ask(requests(2), silent)
    assert [reply.text for reply in replies] == ["q0", "q1"]
    assert seen == {"q0": 3, "q1": 3}


def test_a_timeout_and_a_closed_port_leave_the_stage_unfinished(serve: Serve, tmp_path: Path) -> None:
    slow = serve(lambda _: Answer(200, "{}", delay_s=3.0))
    with pytest.raises(JudgeUnfinished, match=r"longer than 0\.2 s \(judge\.timeout_s\)"):
        asker(slow, tmp_path, timeout_s=0.2, attempts=2).ask(requests(1), silent)
    closed = serve(content)
    closed.close()
    with pytest.raises(JudgeUnfinished, match="the connection failed"):
        asker(closed, tmp_path, attempts=2).ask(requests(1), silent)


def test_the_next_run_asks_only_for_what_is_missing(serve: Serve, tmp_path: Path) -> None:
    broken = serve(lambda body: Answer(500, "down") if content(body) in ("q1", "q4") else content(body))
    with pytest.raises(
        JudgeUnfinished,
        match=r"2 of 6 requests got no reply after 2 attempts .* The 4 replies that came are kept",
    ):
        asker(broken, tmp_path, attempts=2).ask(requests(6), silent)
    with (tmp_path / "s.work" / "journal.jsonl").open("a") as file:
        file.write('{"request": "cut sho')  # as a kill leaves it
    mended = serve(content)
    replies = asker(mended, tmp_path).ask(requests(6), silent)
    assert sorted(map(content, mended.asked)) == ["q1", "q4"]
    assert [reply.text for reply in replies] == [f"q{i}" for i in range(6)]
    assert len(Journal(tmp_path / "s.work").replies) == 6  # the line after the broken one is whole


def test_a_refused_request_is_final_and_a_refused_key_ends_the_stage(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = serve(
        lambda body: Answer(400, '{"error": "too long"}') if content(body) == "q1" else content(body)
    )
    replies = asker(endpoint, tmp_path).ask(requests(3), silent)
    assert replies[1].error == 'the endpoint refused the request with 400: {"error": "too long"}'
    assert len(endpoint.asked) == 3
    assert asker(endpoint, tmp_path).ask(requests(3), silent)[1].error and len(endpoint.asked) == 3
    monkeypatch.setenv("BENCH_TEST_KEY", "sk-secret-1234")
    closed = serve(lambda _: Answer(401, '{"error": "wrong key sk-secret-1234"}'))
    with pytest.raises(JudgeRefused, match=r"401: .*wrong key \[redacted\]"):
        asker(closed, tmp_path / "other", concurrency=1).ask(requests(5), silent)
    assert len(closed.asked) == 1
    assert closed.headers[0]["authorization"] == "Bearer sk-secret-1234"
    assert "sk-secret" not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_when_every_request_is_refused_nothing_is_final(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(JudgeRefused, match=r"All requests were refused\. The first: .*400"):
        asker(serve(lambda _: Answer(400, "max_tokens is not a parameter")), tmp_path).ask(
            requests(3), silent
        )
    assert Journal(tmp_path / "s.work").replies == {}


# Money ----------------------------------------------------------------------------------------------------------------


def test_a_budget_is_never_passed_and_the_same_command_goes_on(serve: Serve, tmp_path: Path) -> None:
    """A prompt of one word costs $1 here, and can cost 18 before it is counted (a byte is a token at most, 16 a message)."""
    endpoint = serve(content)
    with pytest.raises(
        OverBudget,
        match=r"\$3\.0000 of judge\.budget_dollars=20 are spent, and the next request can cost \$18\.0000",
    ):
        asker(endpoint, tmp_path, PRICE, budget_dollars=20.0).ask(requests(10), silent)
    assert len(endpoint.asked) == 3  # 2 + 18 <= 20, and 3 + 18 > 20
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == pytest.approx(3.0)
    replies = asker(endpoint, tmp_path, PRICE, budget_dollars=30.0).ask(requests(10), silent)
    assert len(endpoint.asked) == 10
    assert sum(reply.dollars or 0.0 for reply in replies) == pytest.approx(10.0)
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == pytest.approx(10.0)


def test_stages_that_share_a_budget_count_each_others_spending(serve: Serve, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "spending.jsonl")
    Ledger(tmp_path / "spending.jsonl").add("other", 15.0)
    ledger.add("stranger", 1000.0)
    with pytest.raises(OverBudget, match=r"\$15\.0000"):
        ledger.reserve("s", 6.0, 20.0, ["s", "other"])
    ledger.reserve("s", 5.0, 20.0, ["s", "other"])
    assert ledger.total(["s", "other"]) == 20.0


def test_failed_requests_cost_nothing_and_those_that_timed_out_stay_counted(
    serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(JudgeUnfinished):
        asker(serve(lambda _: Answer(500)), tmp_path, PRICE, budget_dollars=100.0, attempts=1).ask(
            requests(1), silent
        )
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == 0.0
    slow = serve(lambda _: Answer(200, "{}", delay_s=1.0))
    with pytest.raises(JudgeUnfinished):
        asker(slow, tmp_path, PRICE, budget_dollars=100.0, attempts=1, timeout_s=0.2).ask(requests(1), silent)
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == 18.0


# Served models, batch files -------------------------------------------------------------------------------------------


def test_two_served_models_are_not_pooled(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(lambda body: Said("x", model=f"model-{content(body) == 'q1'}"))
    asking = asker(endpoint, tmp_path)
    replies = asking.ask(requests(3), silent)
    with pytest.raises(
        ServedModelsDiffer, match=r"model-False and model-True\. Verdicts of two models must not be mixed"
    ):
        check_served(replies, requests(3), asking.journal)


def test_a_batch_file_is_sent_waited_for_over_runs_and_read(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BATCH_POLL_S", 0.1)
    endpoint = serve(lambda body: Answer(400, "no") if content(body) == "q2" else content(body))
    endpoint.batch_status = "in_progress"
    with pytest.raises(
        JudgeUnfinished, match=r"Batch batch-0 is still in_progress\. Run the same command later"
    ):
        asker(endpoint, tmp_path, PRICE, batch_wait_s=0.3).ask(requests(3), silent)
    endpoint.batch_status = "completed"
    replies = asker(endpoint, tmp_path, PRICE, batch_wait_s=5.0).ask(requests(3), silent)
    assert len(endpoint.batches) == 1  # the one that was sent by the first run
    assert [reply.text for reply in replies] == ["q0", "q1", ""]
    assert replies[2].error and "400" in replies[2].error
    assert replies[0].dollars == pytest.approx(0.5)  # half the price
    sent = [json.loads(line) for line in endpoint.files["file-0"].splitlines()]
    assert sent[0]["url"] == "/v1/chat/completions" and sent[0]["body"]["messages"] == [
        {"role": "user", "content": "q0"}
    ]


def test_a_budget_cuts_a_batch_into_files_that_fit(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request can cost 9 at half the price and costs 0.5: of 20 dollars two at a time, then two more."""
    monkeypatch.setattr(client, "BATCH_POLL_S", 0.1)
    endpoint = serve(content)
    replies = asker(endpoint, tmp_path, PRICE, batch_wait_s=5.0, budget_dollars=20.0).ask(requests(4), silent)
    assert [reply.text for reply in replies] == ["q0", "q1", "q2", "q3"]
    assert len(endpoint.batches) == 2
    assert Ledger(tmp_path / "spending.jsonl").total(["s"]) == pytest.approx(2.0)


def test_odd_texts_are_replies_like_others(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a surrogate pair, as of a reply that was cut, and line separators that are none of JSONL's; also in a batch file."""
    monkeypatch.setattr(client, "BATCH_POLL_S", 0.1)
    cut = "a\ud83d"
    endpoint = serve(lambda body: cut if content(body) == "q0" else "x\u2028y\x85z")
    for folder, more in (("asked", {}), ("again", {}), ("batch", {"batch_wait_s": 5.0})):
        cut = "a\ud83d" if folder != "batch" else "a?"  # this endpoint's own files are UTF-8
        replies = asker(endpoint, tmp_path / folder.replace("again", "asked"), **more).ask(
            requests(2), silent
        )
        assert [reply.text for reply in replies] == ["a?", "x\u2028y\x85z"]
    assert len(endpoint.asked) == 2


def test_a_message_in_parts_is_read_and_its_thinking_kept_apart(serve: Serve, tmp_path: Path) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm, M"}]}
    message = {"content": [thinking, {"type": "text", "text": "m"}]}
    endpoint = serve(lambda _: Answer(body=json.dumps({"model": "x", "choices": [{"message": message}]})))
    (reply,) = asker(endpoint, tmp_path).ask(requests(1), silent)
    assert (reply.text, reply.thinking) == ("m", "hm, M")


def test_a_batch_that_the_endpoint_does_not_know_says_the_way_out(serve: Serve, tmp_path: Path) -> None:
    sent = tmp_path / "s" / "batch.json"
    sent.parent.mkdir()
    sent.write_text('{"id": "batch-of-another", "reserved": 0.0}')
    endpoint = serve(content)
    asking = asker(endpoint, tmp_path, batch_wait_s=5.0)
    sent.replace(asking.journal.path.with_name("batch.json"))
    with pytest.raises(
        JudgeRefused,
        match=r"has no batch batch-of-another.*or delete .*batch\.json to send it again and pay again",
    ):
        asking.ask(requests(1), silent)
    assert not endpoint.batches


def test_a_batch_line_that_is_no_completion_is_sent_again(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BATCH_POLL_S", 0.1)
    endpoint = serve(
        lambda body: (
            Answer(200, "nothing") if content(body) == "q1" and len(endpoint.batches) == 1 else content(body)
        )
    )
    replies = asker(endpoint, tmp_path, batch_wait_s=5.0).ask(requests(2), silent)
    assert [reply.text for reply in replies] == ["q0", "q1"] and len(endpoint.batches) == 2
