"""The whole command with a judge that is asked: budget and exit code, resume, forecast against what was counted, a server of its own,
MT-Bench's manner; and the checks of judges. Trained stages come from the shared smoke run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from endpoint import Answer, Endpoint, Said, fair
from tiny import CELL, ROOT, bench, copy_results, make_model, smoke

from bench.cli.compose import CheckedCommand, open_command
from bench.planning.cells import plan_cell
from bench.records import Completion, Verdict, read_jsonl, write_jsonl
from bench.scoring import numbers
from bench.store.keys import file_digest
from bench.store.stage_settings import ScoreSettings
from bench.store.store import FileFacts, files_digest, read_manifest, write_manifest


# The smoke sweep's cell of KTO at beta 0.1, stage for stage, under another judge.
@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Results that hold what the smoke run trained."""
    return copy_results(smoke(), tmp_path / "results", drop=("judge", "score"))


def verdicts(results: Path) -> list[Verdict]:
    return [
        row
        for path in sorted(results.glob("store/judge/*/verdicts.jsonl"))
        for row in read_jsonl(path, Verdict)
    ]


def judge_words(endpoint: Endpoint, *more: str) -> list[str]:
    return [
        *CELL,
        "judge=alpaca_eval",
        f"judge.base_url={endpoint.url}",
        "judge.model=some-judge",
        "judge.n_items=12",
        *more,
    ]


def test_a_sweep_judged_over_http_stops_at_its_budget_goes_on_and_costs_what_was_forecast(
    endpoint: Endpoint, trained: Path, tmp_path: Path
) -> None:
    """Two cells (KTO and its start model) on 12 items. The endpoint counts words, which the forecast learns from its first replies."""
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "- {models: [some-judge], prompt: 1000.0, completion: 1000.0, date: 2026-01-01, source: made up}"
    )
    words = judge_words(endpoint, f"judge.prices={prices}", "judge.attempts=2")
    planned = bench(*words, "do=plan", results=trained)
    assert "24 requests" in planned.out and "tokens at 4 characters each, a rule of thumb" in planned.out
    assert endpoint.asked == []

    stopped = bench(*words, "judge.budget_dollars=3", results=trained)
    assert stopped.code == 4, stopped.err
    assert re.search(
        r"OVER BUDGET judge preference verdicts .*: OverBudget: \$\d\.\d+ of judge\.budget_dollars=3 are spent",
        stopped.err,
    )
    paid = len(endpoint.asked)
    assert 0 < paid < 24
    endpoint.say = lambda body: Answer(503) if len(endpoint.asked) > paid + 6 else fair(body)
    unfinished = bench(*words, results=trained)
    assert unfinished.code == 3
    assert "JudgeUnfinished" in unfinished.err and "the same command asks for the rest" in unfinished.err
    kept = sum(
        len(path.read_text().splitlines()) for path in trained.glob("store/judge/*.work/journal.jsonl")
    )

    endpoint.say = fair
    before = len(endpoint.asked)
    done = bench(*words, results=trained)
    assert done.code == 0, done.err
    asked = sum(len(row.calls) for row in verdicts(trained))
    assert len(endpoint.asked) - before == asked - kept  # only what was missing
    assert (
        "win rate" in done.out and "Each cell was judged on 12 prompts; 0 verdicts are unscored" in done.out
    )
    assert "rating. Reason: the judge compares and gives no ratings" in done.out
    _forecast_is_right(endpoint, trained, words)
    _two_served_models_are_not_pooled(trained, words)


def _two_served_models_are_not_pooled(trained: Path, words: list[str]) -> None:
    """As if the provider had moved an alias on between two runs."""
    path = next(
        path for path in sorted(trained.glob("store/judge/*/verdicts.jsonl")) if '"m"' in path.read_text()
    )
    other = bench(*words, "do=report", results=trained)
    assert other.code == 0
    folder = path.parent
    path.write_text(path.read_text().replace("served-model", "another-model"))
    manifest = read_manifest(folder / "manifest.json")
    files = manifest.files | {
        "verdicts.jsonl": FileFacts(file_digest(path), path.stat().st_size, path.stat().st_mtime_ns)
    }
    manifest = dataclasses.replace(manifest, files=files, digest=files_digest(files))
    write_manifest(folder / "manifest.json", manifest)
    for made in trained.glob("store/score/*/manifest.json"):
        score = read_manifest(made)
        if (facts := score.inputs["preference_verdicts"])["key"] == folder.name:
            inputs = score.inputs | {"preference_verdicts": {**facts, "digest": manifest.digest}}
            write_manifest(made, dataclasses.replace(score, inputs=inputs))
    reports = [
        bench(*words, f"judge.order={order}", "do=report", results=trained) for order in ("official", "both")
    ]
    assert sorted(report.code for report in reports) == [0, 3]
    assert any("verdicts of two models are not pooled" in report.out for report in reports)


def _forecast_is_right(endpoint: Endpoint, trained: Path, words: list[str]) -> None:
    """The same with both orders shown: planned from the real answers and this judge's own tokens, then run and counted."""
    before = {path.parent for path in trained.glob("store/judge/*/verdicts.jsonl")}
    planned = bench(*words, "judge.order=both", "do=plan", results=trained)
    found = re.search(r"judge    \$([\d.]+): (\d+) requests, ([\d,]+) \+ (\d+) tokens", planned.out)
    assert (
        found
        and "measured on this judge's earlier replies" in planned.out
        and "counted from the policy's completions" in planned.out
    )
    assert bench(*words, "judge.order=both", results=trained).code == 0
    new = [path for path in trained.glob("store/judge/*/verdicts.jsonl") if path.parent not in before]
    calls = [call for path in new for row in read_jsonl(path, Verdict) for call in row.calls]
    assert int(found[3].replace(",", "")) == pytest.approx(
        sum(call.prompt_tokens or 0 for call in calls), rel=0.05
    )
    assert int(found[4]) == sum(call.completion_tokens or 0 for call in calls)
    assert float(found[1]) == pytest.approx(sum(call.dollars or 0 for call in calls), rel=0.05)


@pytest.mark.slow
@pytest.mark.essential
def test_a_local_judge_in_one_command_starts_and_stops_its_server(trained: Path, tmp_path: Path) -> None:
    """A server of the tests stands where vLLM's stands (tests/stand_in_vllm); the model, HTTP and the command are real."""
    model = make_model(tmp_path / "my-judge", max_positions=4096, heads=1)
    words = [*CELL, "judge=local", f"judge.model={model}", "judge.server=vllm", "judge.n_items=6"]
    path = os.pathsep.join([str(ROOT / "tests" / "stand_in_vllm"), str(ROOT)])
    served = bench(*words, results=trained, PYTHONPATH=path)
    assert served.code == 0, served.err
    found = verdicts(trained)
    assert len(found) == 12 and {call.served for row in found for call in row.calls} == {"my-judge"}
    assert all(row.preference is not None for row in found)
    (log,) = trained.glob("store/judge/*.server.log")
    import psutil

    assert not [p for p in psutil.process_iter(["cmdline"]) if str(model) in (p.info["cmdline"] or [])]
    assert log.exists()


def test_mt_benchs_manner_on_the_users_own_files(endpoint: Endpoint, trained: Path, tmp_path: Path) -> None:
    """Two questions of FastChat's form, one with references; ratings by turn and category flow into the table."""
    questions, references = tmp_path / "question.jsonl", tmp_path / "gpt-4.jsonl"
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write a line.", "And another."]},
        {"question_id": 101, "category": "math", "turns": ["What is 2 + 3?", "And 2 + 4?"]},
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    references.write_text(json.dumps({"question_id": 101, "choices": [{"turns": ["5", "6"]}]}) + "\n")
    endpoint.say = lambda body: Said(
        "[[8]]" if "What is 2 + 3?" in body["messages"][1]["content"] else "[[5]]"
    )
    words = [
        *CELL,
        "judge=mt_bench",
        f"judge.base_url={endpoint.url}",
        "judge.model=some-judge",
        f"judge.items={questions}",
        "judge.decoding.max_new_tokens=48",
    ]
    done = bench(*words, f"judge.references={references}", results=trained)
    assert done.code == 0, done.err + done.out
    assert {(row.item_id, row.rating) for row in verdicts(trained)} == {
        ("mt_bench-81", 5.0),
        ("mt_bench-101", 8.0),
    }
    assert sum("Reference" in body["messages"][1]["content"] for body in endpoint.asked) >= 2
    assert "win_rate. Reason: the judge gives ratings and compares with nobody" in done.out
    assert "ratings from 1 to 10, over 4 completions a cell; 0 are unscored" in done.out
    assert re.search(r"6\.50 \[-?[\d.]+, [\d.]+\]", done.out)  # clustered by question: two of them
    results = [json.loads(path.read_text())["metrics"] for path in trained.glob("store/score/*/result.json")]
    assert all(
        result["rating"] == 6.5 and result["rating_math"] == 8.0 and result["n_ratings"] == 4
        for result in results
    )


def test_a_turn_that_cannot_be_read_is_counted_where_the_other_turn_scores_the_pair(tmp_path: Path) -> None:
    lengths = {"policy_length": 3, "baseline_length": 5}
    rows = [
        Verdict(f"i{i}", "mt_bench", turn, preference=0.5 + turn / 2, **lengths)
        for i in range(3)
        for turn in (0, 1)
    ]
    rows[1] = Verdict("i0", "mt_bench", 1, unscored="neither [[A]], [[B]] nor [[C]]", **lengths)
    rows += [Verdict("i3", "mt_bench", turn, unscored="the same", **lengths) for turn in (0, 1)]
    write_jsonl(tmp_path / "verdicts.jsonl", rows)
    write_jsonl(
        tmp_path / "completions.jsonl",
        [Completion(f"i{i}", ["a", "b"], ["aaa", "bbb"], [], []) for i in range(4)],
    )
    settings = ScoreSettings(beta=None, bootstrap_resamples=10, bootstrap_seed=0)
    found = numbers.score(
        settings, {"preference_verdicts": tmp_path, "preference_completions": tmp_path}
    ).metrics
    assert (found["n_scored"], found["n_unscored"], found["n_turns_unscored"]) == (3, 1, 1)
    write_jsonl(tmp_path / "verdicts.jsonl", [row for row in rows if row.turn == 0])
    assert (
        "n_turns_unscored"
        not in numbers.score(
            settings, {"preference_verdicts": tmp_path, "preference_completions": tmp_path}
        ).metrics
    )


# The door -------------------------------------------------------------------------------------------------------------

ASKED = ("judge=alpaca_eval", "judge.model=m", "judge.decoding.max_new_tokens=48")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("judge=alpaca_eval",), r"judge\.model must be set"),
        ((*ASKED, "judge.annotator=gpt9"), "unknown annotator 'gpt9'; the alpaca-eval package knows: "),
        ((*ASKED, "judge.annotator=alpaca_farm"), "a pool of"),
        (
            (*ASKED, "judge.items=nowhere.json"),
            r"judge\.items must be a file, got nowhere\.json: no such file",
        ),
        (
            (*ASKED, "judge.budget_dollars=5"),
            r"judge\.budget_dollars needs a price of m, and the price list of bench has none",
        ),
        ((*ASKED, "judge.prices=nowhere.yaml"), r"judge\.prices must be a file that lists prices"),
        ((*ASKED, "judge.n_items=null"), r"judge\.n_items must be a number where judge\.items is null"),
        ((*ASKED, "judge.order=first"), r"judge\.order must be 'official' or 'both'"),
        (
            ("judge=local", "judge.model=nowhere"),
            r"judge\.model must be a folder of a causal LM, got nowhere",
        ),
        (("judge=mt_bench", "judge.model=m", "judge.prompts=nowhere"), r"judge\.prompts must be a file"),
        (
            ("judge=mt_bench", "judge.model=m", "judge.references=README.md"),
            r"judge\.references needs judge\.items",
        ),
    ],
)
def test_a_wrong_judge_is_said_before_anything_runs(
    problems: Callable[..., list[str]], words: tuple[str, ...], said: str
) -> None:
    found = problems(*words)
    assert any(re.search(said, problem) for problem in found), found


def test_a_calibration_by_number_belongs_to_items_of_that_number(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    """AlpacaEval's own, of 805 items, would give its difficulties to any other set's."""
    items, path = tmp_path / "items.json", tmp_path / "difficulty.csv"
    items.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}."} for i in range(3)]))
    path.write_text("index,instruction_difficulty\n" + "".join(f"{i},0.5\n" for i in range(5)))
    words = (*ASKED, f"judge.items={items}", f"judge.calibration={path}")
    (found,) = problems(*words)
    assert "numbers 5 items by `index`, but there are 3 items here" in found
    items.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}."} for i in range(5)]))
    assert problems(*words, "judge.n_items=2", "judge.provider=x") == []
    assert (
        "but there are 64 items here" in problems(*ASKED, f"judge.calibration={path}", "judge.n_items=64")[0]
    )


def test_items_on_the_users_own_data_must_be_named(
    problems: Callable[..., list[str]], model_folder: Path, pairs_file: Path
) -> None:
    own = ("model=local", f"model.path={model_folder}", "data=local", f"data.path={pairs_file}")
    assert any("set judge.items=FILE" in problem for problem in problems(*own, *ASKED))
    items = model_folder.parent / "items.json"
    items.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}."} for i in range(3)]))
    assert problems(*own, *ASKED, f"judge.items={items}") == []


def test_a_missing_key_is_said_before_anything_is_trained(trained: Path) -> None:
    ran = bench(*CELL, *ASKED, "judge.api_key_env=NOT_SET_HERE", results=trained)
    assert (
        ran.code == 2
        and "the judge needs an API key: set the environment variable NOT_SET_HERE (judge.api_key_env)"
        in ran.err
    )


def test_official_items_come_from_the_hubs_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    cache = tmp_path / "hub" / "datasets--tatsu-lab--alpaca_eval"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    rows = [{"instruction": f"Say {i}.", "output": f"{i}.", "dataset": "koala"} for i in range(3)]
    (cache / "snapshots" / "abc" / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (sources,) = open_command(("judge=alpaca_eval_gpt4",)).sources
    assert sources.judge and sources.judge.n_items == 3 and set(sources.judge.files) == {"items"}


def test_what_moves_the_keys_of_judging(opened: Callable[..., CheckedCommand], tmp_path: Path) -> None:
    """Another annotator or judge moves verdicts alone; how it is reached moves nothing; other items move completions too."""
    from bench import methods

    items = tmp_path / "items.json"
    items.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}."} for i in range(3)]))

    def keys(*words: str) -> dict[str, str]:
        found = (
            opened("judge=alpaca_eval", *words) if "judge.model=other" in words else opened(*ASKED, *words)
        )
        plan = plan_cell(found.cells[0], found.sources[0], methods.chain)
        return {role: stage.key for role, stage in plan.roles.items()}

    base = keys()
    assert keys("judge.base_url=http://127.0.0.1:1/v1", "judge.concurrency=2", "judge.timeout_s=3") == base
    for words in (
        ("judge.model=other",),
        ("judge.annotator=chatgpt",),
        ("judge.provider=other",),
        ("judge.verdict.max_tokens=9",),
    ):
        moved = {role for role, key in keys(*words).items() if key != base[role]}
        assert moved == {"preference_verdicts", "score"}, words
    moved = {role for role, key in keys(f"judge.items={items}").items() if key != base[role]}
    assert moved == {"preference_items", "preference_completions", "preference_verdicts", "score"}
    shutil.copy(items, tmp_path / "same.json")
    assert keys(f"judge.items={items}") == keys(f"judge.items={tmp_path / 'same.json'}")
