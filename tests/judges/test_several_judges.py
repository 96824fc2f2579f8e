"""The whole command with a jury, an Arena-Hard judge and a calibration: plan, run, report, rescore and the table's files. Completions come
from files, so that nothing is trained; the judges are asked over real HTTP."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, Said, fair
from outer import outer
from tiny import Ran, bench

from bench.records import Verdict, read_jsonl

N = 24
ANSWERS = ("weak", "middle", "strong")  # files of completions, by how often they are the better answer


def answer_of(body: Mapping[str, Any], mark: str) -> str:
    return re.search(rf"=== {mark} ===\n(.*?)\n=== end", body["messages"][-1]["content"], re.DOTALL)[1]  # type: ignore[index]


def say(body: Mapping[str, Any]) -> str | Said:
    """Arena's judge likes what is called good, strongly with an exclamation mark; `long-judge` the longer; `odd-judge` says nothing of
    every fourth item."""
    if body["model"] == "game-judge":
        first, second = ("good" in answer_of(body, f"Answer of assistant {letter}") for letter in "AB")
        strong = ">" if "!" in body["messages"][-1]["content"] else ""
        return f"[[A>{strong}B]]" if first > second else f"[[B>{strong}A]]" if second > first else "[[A=B]]"
    if (
        body["model"] == "odd-judge"
        and int(re.search(r"Say (\d+)", body["messages"][-1]["content"])[1]) % 4 == 0
    ):  # type: ignore[index]
        return Said("?", {"?": 0.0})
    return fair(body)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint(say)
    yield running
    running.close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Words that name the items and three files of completions of them."""
    rng = random.Random(0)
    items = [
        {"instruction": f"Say {i}", "output": "a fair answer " * rng.randint(1, 3), "dataset": "own"}
        for i in range(N)
    ]
    (tmp_path / "items.json").write_text(json.dumps(items))
    for place, name in enumerate(ANSWERS):
        rows = []
        for i in range(N):
            text = "good" if rng.random() < 0.25 + 0.25 * place else "bad"
            text += (
                " words" * rng.randint(1, 9)
                + ("!" if rng.random() < 0.4 else "")
                + ("\n- a list\n# head" if i % 3 == 0 else "")
            )
            rows.append({"prompt": f"Say {i}", "completion": text})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = ",".join(str(tmp_path / f"{name}.jsonl") for name in ANSWERS)
    return [f"completions={written}", f"judge.items={tmp_path / 'items.json'}", f"judge.n_items={N}"]


def table(ran: Ran) -> list[dict[str, str]]:
    (path,) = ran.results.glob("sweeps/*/table.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_file_that_answers_no_item_is_one_line_of_a_plan(files: list[str], tmp_path: Path) -> None:
    file = tmp_path / "else.jsonl"
    file.write_text('{"prompt": "Else?", "completion": "x"}\n')
    ran = bench(
        f"completions={file}",
        *files[1:],
        "judge=alpaca_eval",
        "judge.model=m",
        "do=plan",
        results=tmp_path / "results",
    )
    assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1), ran.err
    assert f"{file}: none of its 1 rows is for one of the judge's {N} prompts." in ran.err
    assert (
        "The judge's first prompt is 'Say 0' (item alpaca_eval-0), and the first row's is 'Else?'." in ran.err
    )


def test_a_file_that_answers_no_question_of_several_turns_is_one_line_of_a_plan_too(
    files: list[str], tmp_path: Path
) -> None:
    questions = tmp_path / "question.jsonl"
    questions.write_text(
        "".join(json.dumps({"question_id": i, "turns": [f"Count {i}.", "Again."]}) + "\n" for i in range(4))
    )
    words = [files[0].split(",")[0], f"judge.items={questions}", "judge=mt_bench", "judge.model=m", "do=plan"]
    ran = bench(*words, results=tmp_path / "results")
    assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1), ran.err
    assert f"none of its {N} rows is for one of the judge's 4 prompts." in ran.err
    assert "The judge's first prompt is 'Count 0.' (item mt_bench-0)" in ran.err


def verdicts(results: Path) -> dict[str, list[Verdict]]:
    """By judge, or for a jury's members by the model that was asked."""
    found: dict[str, list[Verdict]] = {}
    for path in sorted(results.glob("store/judge/*/verdicts.jsonl")):
        for row in read_jsonl(path, Verdict):
            found.setdefault(row.calls[0].model if row.calls else row.judge, []).append(row)
    return found


@outer
def test_a_jury_shows_its_median_and_each_member_and_shares_their_stages(
    endpoint: Endpoint, files: list[str], tmp_path: Path
) -> None:
    asked = f"base_url: '{endpoint.url}', attempts: 1"
    members = {
        "long": "alpaca_eval, model: long-judge",
        "odd": "alpaca_eval, model: odd-judge",
        "game": "arena_hard, model: game-judge",
    }
    jury = ", ".join(f"{label}: {{judge: {what}, {asked}}}" for label, what in members.items())
    words = [*files, "judge=jury", f"judge.judges={{{jury}}}"]
    planned = bench(*words, "do=plan", results=tmp_path / "results")
    assert planned.code == 0, planned.err
    assert re.search(rf"verdicts of long: .* {3 * N} requests", planned.out) and re.search(
        rf"verdicts of game: .* {6 * N} ", planned.out
    )
    assert endpoint.asked == []
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err + ran.out
    assert len(endpoint.asked) == 12 * N
    rows = table(ran)
    for label in members:
        assert all(0 <= float(row[f"win_rate_{label}"]) <= 1 and row[f"win_rate_{label}_low"] for row in rows)
    assert {row["n_unscored_odd"] for row in rows} == {str(N // 4)} and {
        row["n_unscored"] for row in rows
    } == {"0"}
    assert all(row["style_win_rate_game"] for row in rows) and "arena_win_rate" not in rows[0]
    found = [row for row in verdicts(ran.results)["jury"] if len(row.details or {}) == 3]
    assert found and all(row.preference == sorted((row.details or {}).values())[1] for row in found)
    lacking = re.findall(r"(\S+) has not been audited\..*run: (python -m bench do=audit .*)", ran.out)
    assert {name: command.split()[5] for name, command in lacking} == {
        "alpaca_eval-long-judge": "judge.model=long-judge",
        "alpaca_eval-odd-judge": "judge.model=odd-judge",
        "arena_hard-game-judge": "judge.model=game-judge",
    }  # a jury itself cannot be audited
    assert (
        re.search(r"long % +odd % +game %", ran.out)
        and f"Unscored by: long 0, odd {3 * N // 4}, game 0" in ran.out
    )

    alone = bench(
        *files,
        "judge=arena_hard",
        "judge.model=game-judge",
        f"judge.base_url={endpoint.url}",
        results=ran.results,
    )
    assert (
        alone.code == 0 and len(endpoint.asked) == 12 * N
    )  # a member's verdicts are those of the judge alone
    again = bench(*words, "do=rescore", f"out={tmp_path / 'out.csv'}", results=ran.results)
    assert again.code == 0 and "3 of 3 cells were scored again" in again.out and "changed: " not in again.out
    assert bench(*words, "do=status", results=ran.results).code == 0
    assert bench(*words, "do=report", results=ran.results).code == 0


def test_arena_hards_numbers_stand_beside_the_win_rate_and_are_scored_again_without_a_judge(
    endpoint: Endpoint, files: list[str], tmp_path: Path
) -> None:
    words = [
        *files,
        "judge=arena_hard",
        "judge.model=game-judge",
        f"judge.base_url={endpoint.url}",
        "judge.calibration=fitted",
    ]
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err + ran.out
    assert "Arena-Hard %" in ran.out and "style-controlled %" in ran.out
    exported = sorted((ran.results / "cells").glob("*/*/annotations.json"))  # two models are two annotators
    assert {path.parent.name for path in exported} == {"arena_hard-game-judge"} and len(exported) == len(
        ANSWERS
    )
    assert {row["annotator"] for path in exported for row in json.loads(path.read_text())} == {
        "arena_hard-game-judge"
    }
    rows = {row["method"]: row for row in table(ran)}
    assert float(rows["weak"]["arena_win_rate"]) < float(rows["strong"]["arena_win_rate"])
    assert all(
        float(row["style_win_rate_low"]) < float(row["style_win_rate"]) < float(row["style_win_rate_high"])
        for row in rows.values()
    )
    assert {"style_length", "style_lists", "style_headers"} <= set(rows["weak"]) and "style_bold" not in rows[
        "weak"
    ]
    _fitted_difficulties_are_the_tables(ran, words, rows, tmp_path)
    n = len(endpoint.asked)
    shutil.rmtree(ran.results / "store" / "score")
    again = bench(*words, results=ran.results)
    assert again.code == 0 and len(endpoint.asked) == n
    assert {row["method"]: row for row in table(again)} == rows


def _fitted_difficulties_are_the_tables(
    ran: Ran, words: list[str], rows: Mapping[str, Mapping[str, str]], tmp_path: Path
) -> None:
    """The same by judge.calibration=fitted and by do=rescore of the run without it; a cell's own score knows nothing of it."""
    assert (
        "LC win rate % uses item difficulties fitted on the other rows (3 digests, in table.csv)." in ran.out
    )
    plain = [*words[:-1], "judge.calibration=null"]
    rescored = bench(
        *plain, "do=rescore", "calibration=fitted", f"out={tmp_path / 'fitted.csv'}", results=ran.results
    )
    assert rescored.code == 0, rescored.err
    with (tmp_path / "fitted.csv").open() as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    for method, row in rows.items():
        for name in ("lc_win_rate", "lc_win_rate_low", "lc_win_rate_high", "calibration"):
            assert row[name] == found[method][name] != "", (method, name)
    stored = [json.loads(path.read_text()) for path in ran.results.glob("store/score/*/result.json")]
    assert len(stored) == 3 and not any("calibration" in result for result in stored)
    assert {result["metrics"]["equal_length_win_rate"] for result in stored}.isdisjoint(
        float(row["lc_win_rate"]) for row in rows.values()
    )


@outer
def test_a_calibration_from_a_file_is_known_by_its_content(
    endpoint: Endpoint, files: list[str], tmp_path: Path
) -> None:
    """By the number of the item in its file, as AlpacaEval's has it; the same by do=rescore."""
    path = tmp_path / "difficulty.csv"
    path.write_text("index,instruction_difficulty\n" + "".join(f"{i},{i % 5 - 2}\n" for i in range(N)))
    words = [*files, "judge=alpaca_eval", "judge.model=long-judge", f"judge.base_url={endpoint.url}"]
    plain = bench(*words, results=tmp_path / "plain")
    shutil.copytree(tmp_path / "plain" / "store", tmp_path / "results" / "store")
    n = len(endpoint.asked)
    ran = bench(*words, f"judge.calibration={path}", results=tmp_path / "results")
    assert ran.code == 0, ran.err + ran.out
    assert len(endpoint.asked) == n  # only the scores are other ones
    before, now = table(plain), table(ran)
    assert "calibration" not in before[0] and len({row["calibration"] for row in now}) == 1
    for old, new in zip(before, now, strict=True):
        assert old["win_rate"] == new["win_rate"] and old["equal_length_win_rate"] != new["lc_win_rate"]
        assert "lc_win_rate" not in old and "equal_length_win_rate" not in new
    again = bench(
        *words, f"judge.calibration={path}", "do=rescore", f"out={tmp_path / 'o.csv'}", results=ran.results
    )
    assert again.code == 0 and "moved" not in again.out
    by_instruction = tmp_path / "by_instruction.csv"
    by_instruction.write_text(
        "instruction,instruction_difficulty\n" + "".join(f"Say {i},{i % 5 - 2}\n" for i in range(N))
    )
    rescored = bench(
        *words,
        "do=rescore",
        f"calibration={by_instruction}",
        f"out={tmp_path / 'o.csv'}",
        results=tmp_path / "plain",
    )
    assert rescored.code == 0, rescored.err
    with (tmp_path / "o.csv").open() as file:
        assert [row["lc_win_rate"] for row in csv.DictReader(file)] == [row["lc_win_rate"] for row in now]
