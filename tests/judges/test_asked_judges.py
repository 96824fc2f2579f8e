"""Judges that are language models, over real HTTP on loopback and in process: verdicts, orders, what is recorded, what is unscored."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from endpoint import Answer, Endpoint, Said, fair, listed, shown, tops
from outer import outer
from tiny import make_model

from bench.config import Asking
from bench.engines import vllm_server
from bench.judges.alpaca_eval import policy_first
from bench.judges.asked.endpoint import JudgeRefused, JudgeUnfinished, ServedModelsDiffer
from bench.judges.asked.prompts import OWN_PROMPTS
from bench.judges.asked.replies import parser_version, votes_from_text
from bench.judges.asked.request import Reply, Request
from bench.machine import free_port
from bench.records import Completion, Item, Verdict, preference_verdicts, read_jsonl, text_digest, write_jsonl
from bench.stages import judge
from bench.store.keys import Source, keyed_settings
from bench.store.stage_run import Outcome, OverBudget, Progress, ServerPlace, StageRun
from bench.store.stage_settings import LanguageJudgeSettings, stage

ROOT = Path(__file__).parent.parent.parent
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
ALPACA = LanguageJudgeSettings(
    manner="alpaca_eval",
    mode="official",
    model="some-judge",
    provider="test",
    dtype="float32",
    server_args=(),
    temperature=None,
    top_p=None,
    max_tokens=None,
    top_logprobs=None,
    request="{}",
    parser="test",
    annotator="weighted_alpaca_eval_gpt4_turbo",
    asking=ASKING,
)
MT_BENCH = ALPACA.model_copy(update={"manner": "mt_bench", "mode": "single", "annotator": ""})

ITEMS = [Item(f"i{n}", "writing", [f"Question {n}?"], baseline=[f"Theirs, to {n}."]) for n in range(6)]
ANSWERS = [
    Completion(f"i{n}", [f"Question {n}?"], [f"Ours{' at length' * n}, to {n}."], [5], [True])
    for n in range(6)
]

Serve = Callable[..., Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running = []

    def start(say: Callable[[Mapping[str, Any]], str | Said | Answer] = fair) -> Endpoint:
        running.append(Endpoint(say))
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.close()


class Room:
    """A judge stage's folders; `judged` runs it over items and answers."""

    def __init__(self, root: Path):
        self.root = root

    def judged(
        self,
        settings: LanguageJudgeSettings,
        endpoint: Endpoint | None = None,
        items: list[Item] = ITEMS,
        answers: list[Completion] = ANSWERS,
        model: Path | None = None,
        place: ServerPlace | None = None,
        earlier: tuple[Path, ...] = (),
        **asking: Any,
    ) -> list[Verdict]:
        assert settings.asking is not None
        asking |= {"base_url": endpoint.url} if endpoint else {}
        settings = settings.model_copy(update={"asking": settings.asking.model_copy(update=asking)})
        inputs = {
            "items": self.root / "items",
            "completions": self.root / "completions",
            "prompts": OWN_PROMPTS,
        }
        out = self.root / f"out{len(list(self.root.iterdir()))}"
        for folder in (inputs["items"], inputs["completions"], out):
            folder.mkdir(exist_ok=True)
        write_jsonl(inputs["items"] / "items.jsonl", items)
        write_jsonl(inputs["completions"] / "completions.jsonl", answers)
        inputs |= {"model": model} if model else {}
        run = StageRun(
            inputs,
            out,
            Progress(self.root / "progress"),
            "key",
            self.root / "key.work",
            ("key",),
            place,
            earlier=earlier,
        )
        self.outcome: Outcome = judge.run(settings, run)
        self.path = out / "verdicts.jsonl"
        return list(read_jsonl(self.path, Verdict))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


# AlpacaEval -----------------------------------------------------------------------------------------------------------


def test_verdicts_hold_the_policys_share_the_order_shown_and_the_whole_exchange(
    room: Room, serve: Serve
) -> None:
    """The judge gives the first of two answers σ((length difference) / 20)."""
    endpoint = serve()
    verdicts = room.judged(ALPACA, endpoint)
    for item, answer, verdict in zip(ITEMS, ANSWERS, verdicts, strict=True):
        ours, theirs = answer.completions[0], (item.baseline or [""])[0]
        assert verdict.preference == pytest.approx(1 / (1 + math.exp(-(len(ours) - len(theirs)) / 20)))
        assert (verdict.policy_digest, verdict.baseline_digest) == (text_digest(ours), text_digest(theirs))
        assert (verdict.policy_length, verdict.baseline_length) == (len(ours), len(theirs))
        (call,) = verdict.calls
        assert call.policy_first == policy_first(item.turns[0])
        assert (call.model, call.served, call.raw) == ("some-judge", "served-model", verdict.raw)
        assert call.decoding == {
            "temperature": 1,
            "top_p": 1.0,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": 5,
        }
        assert set(call.top_logprobs or {}) == {"m", "M"} and call.latency_s and call.error is None
        assert call.prompt_tokens and call.completion_tokens == 1 and call.dollars is None
    assert {policy_first(item.turns[0]) for item in ITEMS} == {True, False}
    assert room.outcome.counts["requests"] == 6 and room.outcome.counts["unscored"] == 0
    assert room.outcome.counts["prompt_tokens"] == sum(
        verdict.calls[0].prompt_tokens or 0 for verdict in verdicts
    )


def test_both_orders_are_averaged_and_cancel_a_love_of_the_first(room: Room, serve: Serve) -> None:
    endpoint = serve(lambda _: Said("m", tops(m=0.9, M=0.1)))
    verdicts = room.judged(ALPACA.model_copy(update={"mode": "both"}), endpoint)
    assert [verdict.preference for verdict in verdicts] == pytest.approx([0.5] * 6)
    assert [[call.policy_first for call in verdict.calls] for verdict in verdicts] == [[False, True]] * 6
    assert len(endpoint.asked) == 12


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(room: Room, serve: Serve) -> None:
    endpoint = serve()
    same = [Completion(item.id, item.turns, list(item.baseline or []), [1], [True]) for item in ITEMS]
    assert [verdict.preference for verdict in room.judged(ALPACA, endpoint, answers=same)] == [0.5] * 6
    assert endpoint.asked == []


def test_an_unreadable_reply_is_unscored_with_its_text_and_is_not_asked_again(
    room: Room, serve: Serve
) -> None:
    def say(body: Mapping[str, Any]) -> str | Said:
        return (
            Said("Both", tops(Both=0.7, The=0.2))
            if "Question 2" in body["messages"][-1]["content"]
            else fair(body)
        )

    endpoint = serve(say)
    verdicts = room.judged(ALPACA, endpoint)
    assert [verdict.unscored is None for verdict in verdicts] == [True, True, False, True, True, True]
    assert verdicts[2].raw == "Both" and "neither m nor M in the text 'Both'" in str(verdicts[2].unscored)
    assert room.outcome.counts["unscored"] == 1
    room.judged(ALPACA, endpoint)
    assert len(endpoint.asked) == 6


def test_a_request_that_is_refused_is_unscored_with_the_reason(room: Room, serve: Serve) -> None:
    def say(body: Mapping[str, Any]) -> Said | Answer:
        return Answer(400, "too long") if "Question 3" in body["messages"][-1]["content"] else fair(body)

    verdicts = room.judged(ALPACA, serve(say))
    assert (
        verdicts[3].unscored
        == verdicts[3].calls[0].error
        == "the endpoint refused the request with 400: too long"
    )


def test_an_endpoint_without_log_probs_is_read_by_its_text(room: Room, serve: Serve) -> None:
    verdicts = room.judged(ALPACA, serve(lambda body: Said(fair(body).text)), max_without_logprobs=1.0)
    assert {verdict.preference for verdict in verdicts} == {0.0, 1.0}
    assert all(verdict.details == {"from_text": 1.0} for verdict in verdicts)


def test_votes_without_log_probs_among_others_are_asked_again_or_counted(room: Room, serve: Serve) -> None:
    """Two of six: more than one in a hundred."""

    def say(body: Mapping[str, Any]) -> Said:
        bare = any(f"Question {n}" in body["messages"][-1]["content"] for n in (1, 4))
        return Said(fair(body).text) if bare else fair(body)

    endpoint = serve(say)
    with pytest.raises(
        JudgeUnfinished,
        match=r"2 of 6 votes came without .* judge\.max_without_logprobs=0\.01 allows\. Run the same command to ask for these",
    ):
        room.judged(ALPACA, endpoint)
    counted = room.judged(ALPACA, endpoint, max_without_logprobs=0.5)
    assert votes_from_text(counted) == (2, 6) and len(endpoint.asked) == 6
    weighed = room.judged(ALPACA, mended := serve(fair))
    assert votes_from_text(weighed) == (0, 6) and len(mended.asked) == 2
    assert [v.preference for v in weighed[2:4]] == [v.preference for v in counted[2:4]]


def test_an_endpoint_that_gives_no_log_probs_says_the_way_out_and_loses_nothing(
    room: Room, serve: Serve
) -> None:
    endpoint = serve(lambda body: Said(fair(body).text))
    with pytest.raises(
        JudgeRefused,
        match=r"6 of 6 votes came without .* the endpoint gives none\. .* Set judge\.max_without_logprobs=1 to",
    ):
        room.judged(ALPACA, endpoint)
    assert (
        votes_from_text(room.judged(ALPACA, endpoint, max_without_logprobs=1.0)) == (6, 6)
        and len(endpoint.asked) == 6
    )
    asked_for_none = room.judged(ALPACA.model_copy(update={"top_logprobs": 0}), endpoint)
    assert votes_from_text(asked_for_none) is None and len(endpoint.asked) == 12


def test_reasons_are_counted_by_kind(room: Room, serve: Serve) -> None:
    odd = [
        Said("", finish="content_filter"),
        Said("", message={"refusal": "No."}),
        Said("[[3]] at first, then", finish="length"),
        Said("Fine."),
    ]
    turns = [Item(f"q{n}", "math", ["One?"]) for n in range(5)]
    answers = [Completion(f"q{n}", ["One?"], [f"a{n}."], [1], [True]) for n in range(5)]

    def say(body: Mapping[str, Any]) -> Said:
        n = next(n for n in range(5) if f"a{n}." in body["messages"][1]["content"])
        return odd[n] if n < 4 else Said("[[3]], or [[4]]")

    verdicts = room.judged(MT_BENCH, serve(say), turns, answers)
    assert [verdict.rating for verdict in verdicts] == [None] * 4 + [4.0]
    counts = {name: n for name, n in room.outcome.counts.items() if name.startswith("unscored")}
    assert counts == {
        "unscored": 4,
        "unscored_refused": 1,
        "unscored_filtered": 1,
        "unscored_cut": 1,
        "unscored_unreadable": 1,
    }


def test_replies_to_an_earlier_reading_are_not_asked_for_again(room: Room, serve: Serve) -> None:
    """A store of the program before: its journal stands under the key that its reading gave the stage, and has no checksums."""
    endpoint = serve()
    before = room.judged(ALPACA, endpoint)
    rows = [
        json.loads(line)["row"]
        for line in (room.root / "key.work" / "journal.jsonl").read_text().splitlines()
    ]
    (room.root / "old.work").mkdir()
    (room.root / "old.work" / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(room.root / "key.work")
    assert (
        room.judged(ALPACA, endpoint, earlier=(room.root / "old.work",)) == before
        and len(endpoint.asked) == 6
    )

    inputs = {
        "items": Source(Path("i"), "i"),
        "completions": Source(Path("c"), "c"),
        "prompts": Source(Path("p"), "p"),
    }
    now = stage("judge", ALPACA.model_copy(update={"parser": parser_version()}), inputs)
    then = stage(
        "judge",
        ALPACA.model_copy(update={"parser": parser_version().replace("replies 2", "replies 1")}),
        inputs,
    )
    assert [found.key for found in judge.earlier(now)] == [then.key] != [now.key] and judge.earlier(
        then
    ) == []


def test_what_is_sent_can_be_changed_added_to_and_left_out(room: Room, serve: Serve) -> None:
    """A reasoning model of OpenAI's: another name for the limit, no temperature, no log-probs."""
    request = '{"max_completion_tokens": 900, "max_tokens": null, "temperature": null, "top_p": null, "reasoning_effort": "low"}'
    endpoint = serve(lambda body: Said("M", thinking="m is longer, but M is right"))
    verdicts = room.judged(ALPACA.model_copy(update={"request": request, "top_logprobs": 0}), endpoint)
    sent = {name: value for name, value in endpoint.asked[0].items() if name != "messages"}
    assert sent == {"model": "some-judge", "max_completion_tokens": 900, "reasoning_effort": "low"}
    assert verdicts[0].preference == (0.0 if policy_first(ITEMS[0].turns[0]) else 1.0)
    assert verdicts[0].calls[0].raw == "<think>m is longer, but M is right</think>M"


def test_function_calls_are_read_where_the_annotator_asks_for_them(room: Room, serve: Serve) -> None:
    endpoint = serve()
    made = endpoint.completion

    def with_call(said: Said, body: Mapping[str, Any]) -> dict[str, Any]:
        found = made(said, body)
        ranked = {"ordered_models": [{"model": "M", "rank": 1}, {"model": "m", "rank": 2}]}
        function = {"name": "make_partial_leaderboard", "arguments": json.dumps(ranked)}
        found["choices"][0]["message"] |= {
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }
        return found

    endpoint.completion = with_call  # type: ignore[method-assign]
    verdicts = room.judged(ALPACA.model_copy(update={"annotator": "alpaca_eval_gpt4_turbo_fn"}), endpoint)
    assert (
        endpoint.asked[0]["tool_choice"]["function"]["name"] == "make_partial_leaderboard"
        and endpoint.asked[0]["tools"]
    )
    assert [verdict.preference for verdict in verdicts] == [
        0.0 if policy_first(item.turns[0]) else 1.0 for item in ITEMS
    ]


def test_nothing_is_judged_from_a_part_and_the_next_run_asks_for_the_rest(room: Room, serve: Serve) -> None:
    broken = serve(
        lambda body: Answer(500) if "Question 4" in body["messages"][-1]["content"] else fair(body)
    )
    with pytest.raises(JudgeUnfinished, match="1 of 6 requests got no reply"):
        room.judged(ALPACA, broken)
    assert not list(room.root.glob("out*/verdicts.jsonl"))
    mended = serve()
    assert all(verdict.unscored is None for verdict in room.judged(ALPACA, mended))
    assert len(mended.asked) == 1 and len(shown(mended.asked[0])) == 2


def test_two_served_models_fail_the_stage_by_name(room: Room, serve: Serve) -> None:
    endpoint = serve(
        lambda body: Said(
            "m", tops(m=0.9, M=0.1), model="a" if "Question 1" in body["messages"][-1]["content"] else "b"
        )
    )
    with pytest.raises(ServedModelsDiffer, match="Replies came from a and b"):
        room.judged(ALPACA, endpoint)


def test_a_budget_stops_the_stage(room: Room, serve: Serve, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "- {models: [some-judge], prompt: 1000.0, completion: 0.0, date: 2026-01-01, source: made up}"
    )
    endpoint = serve()
    with pytest.raises(OverBudget, match=r"judge\.budget_dollars=2 are spent"):
        room.judged(ALPACA, endpoint, prices=str(prices), budget_dollars=2.0, concurrency=1)
    asked = len(endpoint.asked)
    assert 0 < asked < 6
    verdicts = room.judged(ALPACA, endpoint, prices=str(prices), budget_dollars=20.0)
    assert len(endpoint.asked) == 6
    spent = sum(verdict.calls[0].dollars or 0.0 for verdict in verdicts)
    assert spent == pytest.approx(sum(verdict.calls[0].prompt_tokens or 0 for verdict in verdicts) / 1000)


# MT-Bench -------------------------------------------------------------------------------------------------------------

TWO_TURNS = [
    Item(f"q{n}", "math", ["One?", "Two?"], baseline=["b1", "b2"], reference=["r1", "r2"]) for n in range(2)
]
TWO_ANSWERS = [
    Completion(f"q{n}", ["One?", "Two?"], [f"a1 of {n}", f"a2 of {n}"], [1, 1], [True, True])
    for n in range(2)
]


def test_each_turn_is_rated_with_its_expectation_beside_it(room: Room, serve: Serve) -> None:
    """[[7]] of 7 and 8 half and half: 7, and 7.5 expected."""
    tokens = [listed("So: [["), listed("7", {"7": 0.5, "8": 0.5}), listed("]]")]
    endpoint = serve(lambda _: Said("So: [[7]]", tokens=tokens))
    verdicts = room.judged(MT_BENCH, endpoint, TWO_TURNS, TWO_ANSWERS)
    assert [(verdict.item_id, verdict.turn, verdict.rating) for verdict in verdicts] == [
        (q, t, 7.0) for q in ("q0", "q1") for t in (0, 1)
    ]
    assert all(verdict.details == {"expected_rating": pytest.approx(7.5)} for verdict in verdicts)
    sent = next(body for body in endpoint.asked if "a2 of 0" in body["messages"][1]["content"])
    assert (sent["temperature"], sent["max_tokens"], sent["top_logprobs"]) == (0.0, 2048, 20)
    assert all(text in sent["messages"][1]["content"] for text in ("One?", "a1 of 0", "r1", "Two?", "r2"))
    assert len({verdict.calls[0].prompt_digest for verdict in verdicts}) == 2  # a prompt a turn


def test_a_rating_that_is_not_there_is_unscored(room: Room, serve: Serve) -> None:
    endpoint = serve(lambda body: "Good." if "a2 of 1" in body["messages"][1]["content"] else "[[4]]")
    verdicts = room.judged(MT_BENCH, endpoint, TWO_TURNS, TWO_ANSWERS)
    assert [verdict.rating for verdict in verdicts] == [4.0, 4.0, 4.0, None]
    assert verdicts[3].unscored == "no rating like [[5]] in 'Good.'" and verdicts[3].raw == "Good."


def test_a_pair_is_won_in_both_orders_or_tied(room: Room, serve: Serve) -> None:
    """The judge prefers `a1`, wherever it stands, and of the second turn whatever stands first."""

    def say(body: Mapping[str, Any]) -> str:
        text = body["messages"][1]["content"]
        return "[[A]]" if "Two?" in text or text.index("a1 of") < text.index("b1") else "[[B]]"

    verdicts = room.judged(
        MT_BENCH.model_copy(update={"mode": "pairwise"}), serve(say), TWO_TURNS, TWO_ANSWERS
    )
    assert [(verdict.turn, verdict.preference) for verdict in verdicts] == [(0, 1.0), (1, 0.5)] * 2
    merged = preference_verdicts(room.path.parent)
    assert [(verdict.item_id, verdict.preference, verdict.policy_length) for verdict in merged] == [
        ("q0", 0.75, 14),
        ("q1", 0.75, 14),
    ]


# In process, on a server, keys ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("judge") / "tiny-judge", max_positions=4096, heads=1)


@pytest.fixture(scope="module")
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPlace]:
    """The tiny model behind HTTP, by a server of the tests."""
    log, port = tmp_path_factory.mktemp("server") / "log", free_port()
    words = [
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        model.name,
    ]
    process = vllm_server.start([sys.executable, str(ROOT / "tests" / "local_server.py"), *words], log)
    found = ServerPlace(f"http://127.0.0.1:{port}/v1", process.pid, str(log))
    vllm_server.wait_until_ready(found, 120)
    yield found
    vllm_server.stop(process)


LOCAL = ALPACA.model_copy(update={"model": None})


@outer
def test_a_local_judge_gives_the_same_verdicts_in_process_and_over_http(
    tmp_path: Path, model: Path, place: ServerPlace
) -> None:
    """Neither letter is among a random model's likeliest five tokens: both ways list them all the same."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    ours = Room(here).judged(LOCAL, model=model, server="in_process")
    theirs = Room(there).judged(LOCAL, model=model, place=place, server="vllm")
    assert [v.preference for v in ours] == pytest.approx([v.preference for v in theirs], abs=1e-5)
    assert len({v.preference for v in ours}) == 6 and all(0 < (v.preference or 0) < 1 for v in ours)
    assert [v.calls[0].prompt_tokens for v in ours] == [v.calls[0].prompt_tokens for v in theirs]
    assert {v.calls[0].served for v in (*ours, *theirs)} == {model.name}


def test_a_local_judge_asks_again_for_nothing_that_it_has(room: Room, model: Path) -> None:
    first = room.judged(LOCAL, model=model, server="in_process", answers=ANSWERS[:2])
    again = room.judged(LOCAL, model=model, server="in_process")
    assert [v.calls[0].latency_s for v in again[:2]] == [
        v.calls[0].latency_s for v in first[:2]
    ]  # the third item has no answer there
    assert len((room.root / "key.work" / "journal.jsonl").read_text().splitlines()) == 6


def test_a_prompt_that_a_local_judge_cannot_take_is_unscored(room: Room, model: Path) -> None:
    long = [Completion("i0", ITEMS[0].turns, ["word " * 5000], [1], [True]), *ANSWERS[1:]]
    verdicts = room.judged(LOCAL, model=model, server="in_process", answers=long)
    assert "are more than the 4096 that the model takes" in str(verdicts[0].unscored)
    assert all(verdict.preference is not None for verdict in verdicts[1:])


def test_a_local_judge_rates_by_what_it_writes(room: Room, model: Path) -> None:
    settings = MT_BENCH.model_copy(update={"model": None, "max_tokens": 4})
    verdicts = room.judged(settings, None, TWO_TURNS, TWO_ANSWERS, model=model, server="in_process")
    assert all(
        verdict.unscored and "no rating like [[5]]" in verdict.unscored for verdict in verdicts
    )  # a random model knows no format
    assert all(verdict.calls[0].completion_tokens in range(1, 5) for verdict in verdicts)


def test_a_server_ends_when_its_command_is_killed(tmp_path: Path) -> None:
    """The server here lists a folder in which the list of models is a file."""
    port = free_port()
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text("{}")
    words = ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    code = (
        "import sys, time; from pathlib import Path; from bench.engines import vllm_server as server\n"
        "from bench.store.stage_run import ServerPlace\n"
        f"process = server.start([sys.executable, *{words!r}], Path({str(tmp_path / 'log')!r}))\n"
        f"server.wait_until_ready(ServerPlace('http://127.0.0.1:{port}/v1', process.pid, ''), 120)\n"
        "print(process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert len(family) == 2 and urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").status == 200
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive and len(gone) == 2


def test_a_server_that_dies_at_its_start_is_said_with_its_last_words(tmp_path: Path) -> None:
    process = vllm_server.start([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path / "log")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="ended while it was starting: no such model"):
        vllm_server.wait_until_ready(
            ServerPlace("http://127.0.0.1:9/v1", process.pid, str(tmp_path / "log")), 60
        )
    assert time.monotonic() - began < 30
    vllm_server.stop(process)
    assert process.returncode is not None and not psutil.pid_exists(process.pid) and os.getpid()


def test_a_key_that_is_missing_is_said_before_anything_is_asked(room: Room) -> None:
    with pytest.raises(JudgeRefused, match=r"BENCH_TEST_KEY \(judge\.api_key_env\) is empty"):
        room.judged(ALPACA)


def test_keys_hold_what_is_asked_of_whom_and_not_how_it_is_reached() -> None:
    assert ALPACA.asking is not None
    inputs = {
        "items": Source(Path("i"), "i"),
        "completions": Source(Path("c"), "c"),
        "prompts": Source(Path("p"), "p"),
    }

    def key(prompts: str = "p", **changes: Any) -> str:
        found = inputs | {"prompts": Source(Path("elsewhere"), prompts)}
        return stage("judge", ALPACA.model_copy(update=changes), found).key

    reached = {
        "base_url": "http://127.0.0.1:1/v1",
        "api_key_env": "OTHER",
        "concurrency": 1,
        "attempts": 9,
        "budget_dollars": 1.0,
    }
    assert key(asking=ALPACA.asking.model_copy(update=reached)) == key(asking=None) == key()
    assert "asking" not in keyed_settings(ALPACA)
    asked = {
        "model": "other",
        "provider": "other",
        "mode": "both",
        "temperature": 0.5,
        "top_p": 0.5,
        "max_tokens": 9,
        "top_logprobs": 9,
        "request": '{"seed": 1}',
        "parser": "other",
        "dtype": "bfloat16",
        "server_args": ("--x",),
    }
    keys = {name: key(**{name: value}) for name, value in asked.items()} | {
        "prompts": key("another prompt"),
        "": key(),
    }
    assert len(set(keys.values())) == len(keys)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_vllm_itself_serves_and_agrees_with_the_judge_in_process(tmp_path: Path, model: Path) -> None:
    """The real server by the command that `judge.server=vllm` uses."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    settings = LOCAL.model_copy(update={"asking": ASKING.model_copy(update={"server": "vllm"})})
    verdicts = stage("judge", settings, {"model": Source(model, "m")})
    servers = vllm_server.Servers(tmp_path)
    found = servers.place(verdicts)
    assert found == servers.place(verdicts) and found is not None  # one server for all stages
    try:
        ours = Room(here).judged(LOCAL, model=model, server="in_process")
        theirs = Room(there).judged(LOCAL, model=model, place=ServerPlace(**found), server="vllm")
    finally:
        servers.close()
    assert [v.preference for v in ours] == pytest.approx([v.preference for v in theirs], abs=1e-5)
    assert not psutil.pid_exists(found["pid"])


@pytest.mark.parametrize(
    ("replies", "counts"),
    [
        ([], {}),
        (
            [Reply("a", prompt_tokens=7, completion_tokens=1)],
            {"requests": 1, "prompt_characters": 3, "prompt_tokens": 7, "completion_tokens": 1},
        ),
        ([Reply("a", prompt_tokens=7)], {"requests": 1}),
        ([Reply("a", completion_tokens=1)], {"requests": 1}),
        (  # what was refused cost nothing that anybody counted
            [Reply("a", prompt_tokens=7, completion_tokens=1), Reply("", error="too long")],
            {"requests": 2, "prompt_characters": 3, "prompt_tokens": 7, "completion_tokens": 1},
        ),
    ],
)
def test_forecasts_learn_from_tokens_that_were_counted(replies: list[Reply], counts: dict[str, int]) -> None:
    request = Request([{"role": "user", "content": "abc"}], {})
    assert judge._counts([(request, reply) for reply in replies]) == counts
