"""`do=audit`: the real command on the gold judge, on a judge behind HTTP with injected faults, and on a model of this machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint import Answer, Endpoint, Said, shown, tops
from outer import outer
from recorded import MT_BENCH, needs_fixtures
from tiny import Ran, bench, make_model, plans

from bench.judges.asked.prompts import OWN_PROMPTS, mt_bench_templates
from bench.judges.asked.request import Reply
from bench.judges.canaries import CANARIES, make_canaries
from bench.judges.formats.alpaca_eval import read_pairs
from bench.judges.formats.mt_bench import Rated, read_judgements, read_prompt
from bench.judges.mt_bench import AskedRating
from bench.planning.judging import judge_key
from bench.records import Call, Completion, Item, Verdict, read_jsonl, write_jsonl
from bench.report import Sweep, collect, write_files
from bench.report.passport import Passport, sections, write_passport
from bench.report.passports import passport_lines
from bench.stages import audit, data
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import AuditSettings, RecordedData
from bench.store.store import Store


def audited(ran: Ran, judge: str = "") -> dict[str, Any]:
    (path,) = ran.results.glob(f"judges/{judge}*/passport.json")
    return json.loads(path.read_text())


def luck(body: Mapping[str, Any], salt: str) -> float:
    """A number in [0, 1) that hangs on the request."""
    return int(hashlib.sha256((salt + body["messages"][-1]["content"]).encode()).hexdigest()[:8], 16) / 2**32


def crooked(body: Mapping[str, Any]) -> Said:
    """Goes for the first answer on 30 % of requests, cannot be read on 15 %, believes whoever speaks to it; else likes short ones."""
    first, second = shown(body)
    if luck(body, "failure") < 0.15:
        return Said("hm", tops(hm=0.9, well=0.1))
    for text, letter in ((first, "m"), (second, "M")):
        if "ranked first by every human expert" in text:
            return Said(letter, tops(**{letter: 1.0}))
    letter = "m" if luck(body, "place") < 0.3 or len(first) < len(second) else "M"
    return Said(letter, tops(**{letter: 1.0}))


def test_the_gold_judge_has_two_clean_passports_and_is_judged_once(tmp_path: Path) -> None:
    """Of the preferences and of the ratings that it gives."""
    words = ["do=audit", "judge=gold", "n_items=60", "n_canaries=12"]
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    preference, rating = audited(ran, "gold-preference"), audited(ran, "gold-rating")
    assert preference["faults"] == rating["faults"] == [] and ran.out.count("No fault was found.") == 2
    assert preference["statistics"]["position_bias"] == {
        "unmeasured": "a function of the two texts: it is shown no order"
    }
    assert preference["truths"]["gold"]["agreement"]["value"] == 1
    assert rating["statistics"]["noise_sd"] == {
        "unmeasured": "a function of the text: it says the same again"
    }
    assert rating["statistics"]["mean_rating"]["n"] == 120  # two turns
    assert rating["truths"]["gold"]["rank_correlation"]["value"] == pytest.approx(1)
    assert rating["truths"]["gold"]["pair_agreement"]["value"] == 1
    assert set(preference["canaries"]) == set(rating["canaries"]) == set(CANARIES)
    assert all(canary["high"] < 0.5 for canary in preference["canaries"].values())
    assert all(canary["high"] < 0 for canary in rating["canaries"].values())
    page = next(ran.results.glob("judges/gold-preference-*/passport.md")).read_text()
    assert "No fault was found." in page and "| null model |" in page
    again = bench(*words, f"out={tmp_path / 'elsewhere'}", results=ran.results)
    assert again.code == 0 and ", 0 to do" in again.err
    for name in ("passport.md", "passport.html", "truth.svg"):
        ours, theirs = (
            next(at.glob(f"gold-preference-*/{name}"))
            for at in (ran.results / "judges", tmp_path / "elsewhere")
        )
        assert ours.read_bytes() == theirs.read_bytes()
    assert (
        max(len(line.rstrip()) for line in ran.out.splitlines() if not line.startswith(("passport", "judge")))
        <= 120
    )


@outer
def test_a_crooked_judge_over_http_is_found_out_and_an_interrupted_audit_goes_on(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """The endpoint dies after 100 requests; the same command asks for the rest and no more. Injected: 30 % by place, 15 % failures,
    a null model that wins. People's labels are opposite to the judge's taste on the first items."""
    results, labels = tmp_path / "results", tmp_path / "labels.jsonl"
    endpoint.say = lambda body: Answer(503) if len(endpoint.asked) > 100 else crooked(body)
    words = [
        "do=audit",
        "judge=alpaca_eval",
        f"judge.base_url={endpoint.url}",
        "judge.model=lab/crooked",
        "n_items=120",
        "n_canaries=8",
    ]
    stopped = bench(*words, "judge.attempts=1", results=results)
    assert (
        stopped.code == 3
        and "FAILED   alpaca_eval-crooked-" in stopped.out
        and "the same command asks for the rest" in stopped.out
    )
    kept = sum(
        len(path.read_text().splitlines()) for path in results.glob("store/judge/*.work/journal.jsonl")
    )
    assert kept > 0
    endpoint.say, before = crooked, len(endpoint.asked)
    done = bench(*words, results=results)
    assert done.code == 0, done.err
    found = audited(done)
    calls = found["judge"]["requests"]
    assert len(endpoint.asked) - before == calls - kept
    assert found["judge"]["served"] == ["served-model"] and found["judge"]["model"] == "lab/crooked"
    for name, injected in (("position_bias", 0.3), ("failure_rate", 0.15)):
        assert found["statistics"][name]["low"] <= injected <= found["statistics"][name]["high"], name
    assert found["statistics"]["retest_agreement"]["value"] == 1  # its luck hangs on the request
    assert any(
        re.match(r"prefers a position: \d+\.\d % of its verdicts go to the completion shown first", fault)
        for fault in found["faults"]
    )
    assert any("replies cannot be read" in fault for fault in found["faults"])
    assert [fault for fault in found["faults"] if "`null model`" in fault]
    assert not [fault for fault in found["faults"] if "`verbose padding`" in fault]  # it likes short ones
    assert "FAULT: The judge prefers a position" in done.out

    items = [
        json.loads(line)["id"]
        for path in results.glob("store/data/*/items.jsonl")
        for line in path.read_text().splitlines()
    ]
    plain = [item for item in items if "/" not in item][:60]
    labels.write_text(
        "".join(json.dumps({"item_id": item, "preference": n % 2}) + "\n" for n, item in enumerate(plain))
    )
    asked = len(endpoint.asked)
    human = bench(*words, f"human={labels}", f"out={tmp_path / 'human'}", results=results)
    assert human.code == 0 and len(endpoint.asked) == asked
    (path,) = (tmp_path / "human").glob("*/passport.json")
    truths = json.loads(path.read_text())["truths"]
    assert truths["human"]["true_win_rate"]["value"] == 0.5 and truths["human"]["true_win_rate"]["n"] == 60
    assert (
        truths["human"]["corrected_win_rate"]["low"] <= 0.5 <= truths["human"]["corrected_win_rate"]["high"]
    )
    assert truths["gold"]["kappa"]["n"] > 60


@pytest.mark.parametrize("later", ["earlier", "later"])
def test_verdicts_of_two_served_models_make_no_passport(later: str, tmp_path: Path) -> None:
    """As if an alias had moved on between the pairs and the same pairs again; with one model it is fine."""
    inputs = {}
    for role, served in (("verdicts", "earlier"), ("again", later), ("canary_verdicts", "earlier")):
        inputs[role] = tmp_path / role
        inputs[role].mkdir()
        calls = [
            Call("alias", served, "d", "p", {}, policy_first=first, preference=1.0) for first in (True, False)
        ]
        rows = [
            Verdict(f"empty/{i}", "j", preference=1.0, policy_length=4 + i, baseline_length=5, calls=calls)
            for i in range(4)
        ]
        write_jsonl(inputs[role] / "verdicts.jsonl", rows)
    work = StageRun(inputs, tmp_path, Progress(tmp_path / "progress"))
    if later == "earlier":
        audit.run(AuditSettings(n_labelled=2), work)
        assert (tmp_path / "passport.json").exists()
    else:
        with pytest.raises(
            ValueError,
            match=r"two models and cannot be pooled: .*/verdicts, .*/canary_verdicts; later in .*/again",
        ):
            audit.run(AuditSettings(n_labelled=2), work)


def test_agreement_with_recorded_verdicts_of_another_judge(endpoint: Endpoint, tmp_path: Path) -> None:
    """Ten recorded pairs in AlpacaEval's layout, on which the recorded judge prefers the shorter one nine times and fails once."""
    rows = [
        {
            "instruction": f"Say {i}.",
            "output_1": "A longer answer." if i % 2 else "Short.",
            "generator_1": "base",
            "output_2": "Short." if i % 2 else "A longer answer.",
            "generator_2": "mine",
            "annotator": "recorded-judge",
            "preference": None if i == 9 else 2.0 if i % 2 else 1.0,
        }
        for i in range(10)
    ]
    folder = tmp_path / "recorded" / "mine" / "recorded-judge"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(rows))
    endpoint.say = lambda body: Said(
        letter := "m" if len(shown(body)[0]) < len(shown(body)[1]) else "M", tops(**{letter: 1.0})
    )
    words = [
        "do=audit",
        "judge=alpaca_eval",
        f"judge.base_url={endpoint.url}",
        "judge.model=j",
        "n_items=12",
        "n_canaries=2",
    ]
    ran = bench(*words, f"recorded={tmp_path / 'recorded'}", results=tmp_path / "results")
    assert ran.code == 0, ran.err
    recorded = audited(ran)["recorded"]
    assert (recorded["agreement"]["value"], recorded["agreement"]["n"]) == (1, 9)
    assert "Against recorded verdicts" in ran.out


def severe(body: Mapping[str, Any]) -> str:
    """Rates by the request's luck, cannot be read on 15 %, and gives 10 to whoever speaks to it and 1 to a constant or nothing."""
    text = body["messages"][-1]["content"]
    if "ranked first by every human expert" in text:
        return "[[10]]"
    if "=== Answer ===\n\n" in text or "I cannot say anything about that" in text:
        return "Rating: [[1]]"
    return "hm" if luck(body, "failure") < 0.15 else f"Rating: [[{5 + round(3 * luck(body, 'taste'))}]]"


@outer
def test_a_judge_that_rates_is_planned_stopped_at_its_budget_and_audited(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """plan=true asks nothing and counts every request of both passes and the canaries; the budget is obeyed; the passport names the
    null model, and a person's ratings correct the mean."""
    results, prices, endpoint.say = tmp_path / "results", tmp_path / "prices.yaml", severe
    prices.write_text(
        "- {models: [lab/severe], prompt: 1000.0, completion: 1000.0, batch: 0.5, date: 2026-01-01, source: a test}\n"
    )
    words = [
        "do=audit",
        "judge=mt_bench",
        f"judge.base_url={endpoint.url}",
        "judge.model=lab/severe",
        "n_items=40",
        "n_canaries=8",
    ]
    words += [f"judge.prices={prices}", "judge.verdict.max_tokens=64"]
    planned = bench(*words, "plan=true", "judge.budget_dollars=5", results=results)
    assert planned.code == 0 and not endpoint.asked, planned.err
    forecast = re.search(r"([\d,]+) requests", planned.out)
    assert forecast and "more than judge.budget_dollars=5. The command stops there (exit 4)" in planned.out
    stopped = bench(*words, "judge.budget_dollars=5", results=results)
    assert stopped.code == 4 and "FAILED   mt_bench-severe-rating-" in stopped.out
    labels = tmp_path / "labels.jsonl"
    items = [
        json.loads(line)["id"]
        for path in results.glob("store/data/*/items.jsonl")
        for line in path.read_text().splitlines()
    ]
    rows = [
        {"item_id": item, "turn": turn, "rating": 3} for item in items if "/" not in item for turn in (0, 1)
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows[:50]))
    done = bench(*words, f"human={labels}", results=results)
    assert done.code == 0, done.err
    found = audited(done)
    assert found["judge"]["requests"] == int(forecast[1].replace(",", ""))
    statistics = found["statistics"]
    assert statistics["failure_rate"]["low"] <= 0.15 <= statistics["failure_rate"]["high"]
    assert (
        statistics["whole_rate"]["value"] == statistics["retest_agreement"]["value"] == 1
        and statistics["noise_sd"]["value"] == 0
    )
    assert found["truths"]["human"]["corrected_rating"]["value"] == pytest.approx(3, abs=0.5)
    assert any("`null model`" in fault for fault in found["faults"]) and not any(
        "`constant`" in fault for fault in found["faults"]
    )
    assert any("corrected by labels of human" in fault for fault in found["faults"])
    page = next(results.glob("judges/*/passport.html")).read_text()
    assert page.count("<svg") > 5 and not re.search(r"""(src|href)="(?!#)|url\((?!#)""", page)


@needs_fixtures
@pytest.mark.parametrize(("file", "mode"), [("phi3_gpt-4_single", "single"), ("phi3_gpt-4_pair", "pairwise")])
def test_a_judge_that_repeats_fastchats_recorded_judgements_agrees_with_them(
    file: str, mode: str, tmp_path: Path
) -> None:
    """Real verdicts of GPT-4: our prompts of the recorded answers are answered with the recorded texts."""
    path = MT_BENCH / "model_judgment" / f"{file}.jsonl.gz"
    said: dict[tuple[Any, ...], str] = {}
    for row in read_judgements(path):
        prompts = (row.user_prompt,) if isinstance(row, Rated) else row.user_prompts
        for prompt, text in zip(
            prompts, (row.verdict.raw or "",) if isinstance(row, Rated) else row.judgements, strict=True
        ):
            texts = read_prompt(prompt)
            assert texts is not None
            said[texts.turns[-1], texts.answers[-1], (texts.others or [""])[-1]] = text
    recorded = folder(tmp_path / "recorded")
    data.run(
        RecordedData(n=30, seed=0), StageRun({"recorded": path}, recorded, Progress(tmp_path / "progress"))
    )
    items, completions = (
        list(read_jsonl(recorded / "items.jsonl", Item)),
        list(read_jsonl(recorded / "completions.jsonl", Completion)),
    )
    asking = AskedRating({"model": "j"}, "p", lambda requests: [], mt_bench_templates(OWN_PROMPTS), mode)
    replies = []
    for asked in asking.requests(items, completions):
        item = next(item for item in items if item.id == asked.item_id)
        ours = next(c for c in completions if c.id == item.id).completions[asked.turn]
        answers = (ours, "") if mode == "single" else (ours, (item.baseline or [])[asked.turn])
        answers = answers if asked.policy_first in (None, True) else answers[::-1]
        replies.append(Reply(said[item.turns[asked.turn], *answers]))
    own = folder(tmp_path / "own")
    write_jsonl(
        own / "verdicts.jsonl", replace(asking, ask=lambda _: replies).judge(items, completions, None)
    )
    inputs = dict.fromkeys(("verdicts", "canary_verdicts", "recorded_verdicts"), own) | {"recorded": recorded}
    manner: Any = "rating" if mode == "single" else "preference"
    audit.run(
        AuditSettings(n_labelled=2, manner=manner),
        StageRun(inputs, tmp_path, Progress(tmp_path / "progress")),
    )
    found = json.loads((tmp_path / "passport.json").read_text())["recorded"]
    if mode == "single":
        assert (
            found["rank_correlation"]["value"] == pytest.approx(1) and found["mean_difference"]["value"] == 0
        )
        assert (found["mean_difference"]["n"], found["pair_agreement"]["value"]) == (60, 1)
    else:
        assert (found["agreement"]["value"], found["agreement"]["n"], found["kappa"]["value"]) == (1, 30, 1)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_sweeps_report_names_the_passport_of_each_judge_or_how_to_make_it(tmp_path: Path) -> None:
    cells = plans("+sweep=smoke")
    sweep = Sweep("smoke", "", "+sweep=smoke", cells)
    without = passport_lines(sweep, tmp_path)
    truth = "is the ground truth of the controlled world and needs no audit."
    assert without == [f"gold-{m} {truth}" for m in ("preference", "rating")]
    verdicts = next(cell.roles["preference_verdicts"] for cell in cells)
    canaries = {"empty": number(0.0, 0.0, 0.1), "constant": number(0.6, 0.5, 0.7)}
    numbers = {"manner": "preference", "statistics": CLEAN, "truths": {}, "canaries": canaries}
    passport = Passport("gold-preference-12345678", {}, numbers, judge_key(verdicts))
    home, _ = write_passport(passport, tmp_path, tmp_path / "judges")
    first, second = passport_lines(sweep, tmp_path)
    words = "found 1 fault (flip rate 5.0 %, unreadable replies 0.0 %, 1 of 2 canaries lose, all must)"
    assert (
        first == f"The audit of gold-preference {words}. All numbers: {home}/passport.html"
        and second == without[1]
    )
    linked = passport_lines(sweep, tmp_path, link=True)[0]
    page = "[passport.html](../../judges/gold-preference-12345678/passport.html)"
    assert linked == f"The audit of gold-preference {words}. All numbers: {page}"
    table = write_files(sweep, collect(sweep, Store(tmp_path / "store"), {}), tmp_path)
    assert linked in (table.folder / "table.md").read_text() and first in table.table.notes["Judges"]


def test_a_judge_is_who_it_is_whatever_and_in_which_order_it_judges() -> None:
    def key(*words: str) -> str:
        (cell, *_) = plans("method=none", "judge=alpaca_eval", "judge.base_url=http://127.0.0.1:9/v1", *words)
        return judge_key(cell.roles["preference_verdicts"])

    same = key("judge.model=a", "judge.n_items=10")
    assert same == key("judge.model=a", "judge.n_items=20", "judge.order=both", "judge.concurrency=2")
    others = (
        ["judge.model=b"],
        ["judge.model=a", "judge.verdict.max_tokens=3"],
        ["judge.model=a", "judge.provider=x"],
    )
    assert len({same, *(key(*words) for words in others)}) == 4


@outer
def test_a_model_of_this_machine_is_audited_without_a_key_or_a_training(tmp_path: Path) -> None:
    """A random tiny model judges in process: greedy reading of two letters, so it says the same again, and its taste is no judgement."""
    model = make_model(tmp_path / "tiny-judge", max_positions=4096, heads=1)
    ran = bench(
        "do=audit",
        "judge=local",
        f"judge.model={model}",
        "n_items=16",
        "n_canaries=2",
        results=tmp_path / "results",
    )
    assert ran.code == 0, ran.err
    found = audited(ran)
    assert found["statistics"]["retest_agreement"]["value"] == 1
    assert found["judge"]["server"] == "in_process" and found["judge"]["requests"] == 2 * (16 + 16 + 6 * 2)
    assert any("agree with gold" in fault for fault in found["faults"]) and any(
        "canary" in fault for fault in found["faults"]
    )
    assert not list(ran.results.glob("store/sft")) and not list(ran.results.glob("store/train"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["judge=none"], "do=audit needs a judge, got judge=none"),
        (["human=nowhere.jsonl"], "nowhere.jsonl: no such file (human=nowhere.jsonl on the command line)"),
        (["recorded=nowhere"], "recorded must be a folder that holds MODEL/ANNOTATOR/annotations.json"),
        (["n_items=2"], "do.n_items must be >= 4"),
    ],
)
def test_an_audit_that_cannot_be_is_refused_before_a_run(
    problems: Callable[..., list[str]], words: list[str], said: str
) -> None:
    found = problems("do=audit", *words)
    assert any(said in problem for problem in found), found


def test_recorded_verdicts_without_a_scored_pair_are_refused_before_a_run(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "m" / "a"
    folder.mkdir(parents=True)
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": None}
    (folder / "annotations.json").write_text(json.dumps([row]))
    found = problems("do=audit", f"recorded={tmp_path}", "judge=alpaca_eval", "judge.model=m")
    assert any("with scored pairs of two texts" in problem for problem in found), found
    (folder / "annotations.json").write_text(json.dumps([row | {"preference": 1.5}]))
    (folder.parent / "model_outputs.json").write_text(
        json.dumps([{"instruction": "q", "output": "c", "generator": "m"}])
    )
    found = problems("do=audit", f"recorded={tmp_path}", "judge=alpaca_eval", "judge.model=m")
    assert any(
        "1 of 1 rows have another output_2 than the model_outputs.json" in problem for problem in found
    ), found


def test_of_a_repeated_recorded_pair_the_last_row_counts(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "a"
    folder.mkdir(parents=True)
    rows = [
        {"instruction": "q", "output_1": "a", "output_2": "b", "preference": preference}
        for preference in (1.0, 2.0)
    ]
    (folder / "annotations.json").write_text(json.dumps(rows))
    ((_, _, (verdict,)),) = read_pairs(tmp_path)
    assert verdict.preference == 1


def test_a_bad_label_and_items_without_answers_are_refused_before_a_run(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    labels, items = tmp_path / "labels.jsonl", tmp_path / "items.json"
    labels.write_text('{"item_id": "a", "preference": 2}\n')
    items.write_text(json.dumps([{"instruction": "Say a.", "output": "a."}] * 4))
    found = problems("do=audit", f"human={labels}")
    assert any(
        f"{labels}:1: not a valid label: label of a: preference must be in [0, 1], got 2" in problem
        for problem in found
    ), found
    found = problems("do=audit", "judge=alpaca_eval", "judge.model=m", f"judge.items={items}")
    assert any(
        "needs completions to judge" in problem and "completions=FILE" in problem for problem in found
    ), found
    labels.write_text('{"item_id": "a", "rating": 2}\n')
    found = problems("do=audit", f"human={labels}", "judge=alpaca_eval", "judge.model=m")
    assert any(
        "holds ratings, but judge=alpaca_eval gives preferences here: use a file" in problem
        for problem in found
    ), found
    labels.write_text('{"item_id": "a", "rating": 2}\n{"item_id": "a", "preference": 1}\n')
    assert any(
        "labels of one kind, preference or rating" in problem
        for problem in problems("do=audit", f"human={labels}")
    )


# Canaries and the page --------------------------------------------------------------------------------------------------


def test_canaries_are_made_of_the_items() -> None:
    items = [
        Item("a", None, ["Say a."], baseline=["It is a."]),
        Item("b", None, ["Say b."], baseline=["It is b."]),
    ]
    named, written = make_canaries(items)
    texts = {completion.id: completion.completions[0] for completion in written}
    assert [item.id for item in named] == [completion.id for completion in written] and len(texts) == 2 * len(
        CANARIES
    )
    assert (
        texts["empty/a"] == ""
        and texts["prompt echo/b"] == "Say b."
        and texts["repeated answer/a"].count("It is a.") == 3
    )
    assert "It is b." in texts["verbose padding/b"] and len(texts["verbose padding/b"]) > 100
    assert texts["null model/a"] == texts["null model/b"] and texts["constant/a"] == texts["constant/b"]


def number(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": value, "standard_error": None, "low": low, "high": high, "n": 100, "n_unscored": 0}


CLEAN = {
    "win_rate": number(0.5, 0.4, 0.6),
    "position_bias": number(0.0, -0.01, 0.01),
    "flip_rate": number(0.05, 0.02, 0.12),
    "retest_agreement": number(0.97, 0.9, 0.99),
    "noise_rate": number(0.02, 0.01, 0.05),
    "tie_rate": number(0.1, 0.05, 0.2),
    "failure_rate": number(0.0, 0.0, 0.02),
    "length_slope": number(3.0, 2.0, 4.0),
    "length_bias": number(0.05, -0.1, 0.2),
    "drift": number(0.01, -0.1, 0.12),
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "position_bias",
            number(-0.1, -0.15, -0.05),
            "10.0 % of its verdicts go to the completion shown second",
        ),
        ("position_bias", number(0.01, 0.005, 0.015), None),
        ("flip_rate", number(0.2, 0.12, 0.3), "changes the winner of 20.0 % of the pairs with their order"),
        ("retest_agreement", number(0.8, 0.7, 0.89), "repeats its verdict on only 80.0 %"),
        ("tie_rate", number(0.5, 0.4, 0.6), "calls 50.0 % of the pairs ties"),
        ("failure_rate", number(0.15, 0.1, 0.2), "15.0 % of its replies cannot be read"),
        ("length_bias", number(-0.8, -1.0, -0.6), "prefers shorter completions at equal quality"),
        ("drift", number(0.2, 0.1, 0.3), "+20.0 percentage points from the first half"),
        ("drift", {"unmeasured": "3 verdicts are too few to halve"}, None),
    ],
)
def test_a_number_is_a_fault_where_its_interval_says_so(
    name: str, value: dict[str, Any], said: str | None
) -> None:
    """Above: none of a clean judge's numbers is one."""
    clean = {
        "manner": "preference",
        "statistics": CLEAN,
        "truths": {},
        "canaries": {"empty": number(0.0, 0.0, 0.1)},
    }
    assert Passport("j", {}, clean).faults == []
    passport = Passport("j", {}, {**clean, "statistics": CLEAN | {name: value}})
    assert len(passport.faults) == (said is not None) and (said is None or said in passport.faults[0])
    line = next(
        line
        for section in sections(passport)
        for line in section.lines
        if line.what == name.replace("_", " ")
    )
    assert line.mark == ("FAULT" if said else "" if "unmeasured" in value else "ok")


def test_disagreement_a_wrong_win_rate_and_a_winning_canary_are_faults() -> None:
    against = {
        "agreement": number(0.5, 0.4, 0.6),
        "kappa": number(0.05, -0.1, 0.2),
        "corrected_win_rate": number(0.7, 0.65, 0.75),
    }
    canaries = {"empty": number(0.4, 0.2, 0.6), "constant": number(0.1, 0.0, 0.2)}
    faults = Passport(
        "j",
        {},
        {"manner": "preference", "statistics": CLEAN, "truths": {"human": against}, "canaries": canaries},
    ).faults
    assert faults == [
        "is not shown to agree with human better than chance (kappa 0.05)",
        "gives a win rate of 50.0 %; corrected by labels of human it is in [65.0, 75.0] %",
        "lets the canary `empty` win 40.0 % of its comparisons",
    ]
