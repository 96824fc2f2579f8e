"""Several evaluations of one policy in one row: composing, planning, and one real sweep of AlpacaEval, MT-Bench and Arena-Hard in their own
files, on a tiny Llama judged over real HTTP, beside the commands with one judge each."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, Said, fair
from outer import outer, some_outer
from tiny import Ran, bench, copy_results, make_model, make_preferences

from bench import methods
from bench.cli.compose import CheckedCommand, open_command
from bench.commands.audit import planned_audits
from bench.config import CATEGORIES
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan
from bench.records import Result
from bench.report.groups import line_names, varied_settings
from bench.report.tables import together
from bench.scoring.suite import joined

Open = Callable[..., CheckedCommand]
Problems = Callable[..., list[str]]
BOTH = ("judge=[gold,alpaca_eval]", "judge.model=m")


def planned(command: CheckedCommand) -> list[CellPlan]:
    pairs = zip(command.cells, command.sources, strict=True)
    return [plan_cell(cell, sources, methods.chain) for cell, sources in pairs]


# Numbers --------------------------------------------------------------------------------------------------------------


def test_numbers_of_the_training_stand_once_and_those_of_an_evaluation_under_its_label() -> None:
    a = Result({"win_rate": 0.5, "kl": 2.0, "kl_se": 0.1, "reward_best": 1.0}, {"rating": "compares"})
    b = Result({"rating": 7.0, "kl": 2.0, "kl_se": 0.1}, {"reward_auc": "pairs", "win_rate": "rates"})
    both = joined({"a": a, "b": b})
    assert both.metrics == {"a/win_rate": 0.5, "a/reward_best": 1.0, "b/rating": 7.0, "kl": 2.0, "kl_se": 0.1}
    assert both.missing == {"a/rating": "compares", "b/reward_auc": "pairs", "b/win_rate": "rates"}


def test_kl_at_two_lengths_is_each_evaluations_own() -> None:
    both = joined({"a": Result({"kl": 2.0}, {}), "b": Result({"kl": 3.0}, {})})
    assert both.metrics == {"a/kl": 2.0, "b/kl": 3.0}


def test_a_line_that_all_evaluations_have_stands_once() -> None:
    lines = together({"a": ["x", "y"], "b": ["x", "z"], "c": ["x", "z"]})
    assert lines == ["x", "a: y", "b, c: z"]
    assert together({"": ["x", "y"]}) == ["x", "y"]


# The door -------------------------------------------------------------------------------------------------------------


def test_a_list_of_one_judge_is_that_judge(opened: Open) -> None:
    for judge in ("gold", "none"):
        assert opened(f"judge=[{judge}]").cells == opened(f"judge={judge}").cells


def test_each_evaluation_is_planned_as_the_command_with_its_judge_alone(opened: Open) -> None:
    (suite,) = planned(opened(*BOTH, "judge.judges.alpaca_eval.n_items=20"))
    alone = {
        "gold": planned(opened("judge=gold"))[0],
        "alpaca_eval": planned(opened("judge=alpaca_eval", "judge.model=m", "judge.n_items=20"))[0],
    }
    assert {label: plan.key for label, plan in suite.evaluations.items()} == {
        label: plan.key for label, plan in alone.items()
    }
    own = [stage for stage in suite.stages if not any(stage in plan.stages for plan in alone.values())]
    assert own == [suite.score]
    assert suite.roles["train"] == alone["gold"].roles["train"]
    assert suite.roles["gold/preference_verdicts"] == alone["gold"].roles["preference_verdicts"]


def test_a_setting_goes_to_every_evaluation_that_has_it_and_was_not_given_its_own(opened: Open) -> None:
    words = ("judge=[gold,alpaca_eval,mt_bench]", "judge.model=m", "judge.judges.mt_bench.model=q")
    judges = opened(*words, "judge.n_items=7", "judge.concurrency=3").cells[0].judge.judges  # type: ignore[union-attr]
    assert (judges["alpaca_eval"].model, judges["mt_bench"].model) == ("m", "q")
    assert [judges[label].n_items for label in ("alpaca_eval", "mt_bench")] == [7, 7]
    assert judges["gold"].preference.n_items != 7  # it has another key for that


def test_one_judge_twice_takes_labels_and_a_jury_may_be_an_evaluation(opened: Open) -> None:
    twice = "{a: {judge: alpaca_eval, model: M}, b: {judge: alpaca_eval, model: N}}"
    judges = opened("judge=suite", f"judge.judges={twice}").cells[0].judge.judges  # type: ignore[union-attr]
    assert [judge.model for judge in judges.values()] == ["M", "N"]
    words = [
        "judge=[mt_bench,jury]",
        "judge.model=m",
        "judge.n_items=5",
        "judge.judges.jury.judges.a.order=both",
    ]
    members = "judge.judges.jury.judges={t: {judge: gold}, a: {judge: alpaca_eval, model: z}}"
    jury = opened(*words, members).cells[0].judge.judges["jury"]  # type: ignore[union-attr]
    assert (jury.n_items, jury.judges["a"].order, jury.judges["a"].model) == (5, "both", "z")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("judge=[gold,nope]",), "unknown judge 'nope' (judge=[gold,nope] on the command line)"),
        (("judge=[gold,gold]",), "got gold twice; to use it twice, give labels: judge=suite 'judge.judges={a:"),
        (("judge=[]",), "judge must be a list of one judge or more, got an empty list"),
        (("judge=suite",), "judge.judges must be set"),
        (("judge=suite", "judge.judges={a: {judge: gold}}"), "a suite needs two evaluations or more, got 1"),
        (
            ("judge=suite", "judge.judges={a: {judge: gold}, b: {judge: gold}}"),
            "a and b are the same evaluation: leave b out",
        ),
        (
            ("judge=suite", "judge.judges={a: {judge: gold}, b/c: {judge: none}}"),
            "label must be letters, digits, _, + and -, got b/c",
        ),
        (
            ("judge=suite", "judge.judges={a: {judge: gold}, b: {judge: suite}}"),
            "judge.judges.b.name must be one of 'gold', 'none'",
        ),
        (("judge=[gold,none]",), "judge=none cannot be one of several evaluations: remove the evaluation 'none'"),
        (("judge=[alpaca_eval,mt_bench]",), "judge.model must be set: add judge.model=..."),
        (
            (*BOTH, "judge.items=FILE"),
            "judge.items cannot be set for all evaluations, because each has its own: set judge.judges.alpaca_eval.items",
        ),
        ((*BOTH, "judge.modl=x"), "unknown key 'judge.modl' (judge.modl=x on the command line); did you mean judge.model?"),
        ((*BOTH, "judge.judges.alpaca_eval.ordr=both"), "did you mean judge.judges.alpaca_eval.order?"),
        ((*BOTH, "judge.concurrency=0"), "judge.judges.alpaca_eval.concurrency must be >= 1, got 0 (judge.concurrency=0"),
    ],
)  # fmt: skip
def test_a_wrong_suite_is_said_at_the_door(problems: Problems, words: tuple[str, ...], said: str) -> None:
    found = problems(*words)
    assert any(said in problem for problem in found), found


def test_the_evaluations_of_a_suite_in_a_list_stand_in_its_place(problems: Problems) -> None:
    found = problems("judge=[alignment_suite,gold]")
    missing = [one.partition(" ")[0] for one in found if "must be set" in one]
    assert missing == [
        f"judge.judges.{key}"
        for key in ("mt_bench.items", "mt_bench.references", "arena_hard.items", "arena_hard.baseline")
    ]
    assert any("judge.model must be set" in one for one in problems("judge=[open_suite,gold]"))


def test_each_evaluation_must_fit_the_data(problems: Problems, model_folder: Path, pairs_file: Path) -> None:
    found = problems(*BOTH, f"model={model_folder}", "data=local", f"data.path={pairs_file}")
    assert any("needs its data, got data=local; leave gold out (judge.judges.gold" in one for one in found), (
        found
    )
    assert any("set judge.judges.alpaca_eval.items=FILE" in one for one in found), found


@pytest.mark.parametrize(
    ("written", "judges"),
    [
        (
            "judge: [gold, alpaca_eval]\naxes: {seed: [0, 1], judge.model: m}",
            [("gold", "alpaca_eval")] * 2,
        ),
        (
            "judge: [mt_bench]\ngrids: [{seed: 0, judge.model: m}, {seed: 1, judge.model: m}]",
            ["mt_bench"] * 2,
        ),
        ("axes: {judge: [alpaca_eval, mt_bench], judge.model: m}", ["alpaca_eval", "mt_bench"]),
        (
            "axes: {judge: [[gold, alpaca_eval], mt_bench], judge.model: m}",
            [("gold", "alpaca_eval"), "mt_bench"],
        ),
        (
            "axes: {judge.model: m}\nworld: {judge: [gold, alpaca_eval]}",
            [("gold", "alpaca_eval")],
        ),
    ],
)
def test_a_sweep_file_names_several_evaluations(
    opened: Open, tmp_path: Path, written: str, judges: list[Any]
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\n# Question: mine?\n{written}\n")
    command = opened(f"--config-dir={tmp_path}", "+sweep=mine")
    found = [tuple(c.judge.judges) if hasattr(c.judge, "judges") else c.judge.name for c in command.cells]
    assert found == judges
    command = opened(f"--config-dir={tmp_path}", "+sweep=mine", "judge=arena_hard")
    assert {c.judge.name for c in command.cells} == {"arena_hard"}


def test_two_suites_on_an_axis_are_told_apart(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    axes = "axes: {judge: [[gold, alpaca_eval], [gold, mt_bench]], judge.model: m}"
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\n# Question: mine?\n{axes}\n")
    cells = opened(f"--config-dir={tmp_path}", "+sweep=mine").cells
    assert "judge.name" in varied_settings(cells)
    names = line_names({str(n): cell for n, cell in enumerate(cells)}, varied_settings(cells))
    assert list(names.values()) == ["kto judge gold+alpaca_eval", "kto judge gold+mt_bench"]


# Budgets ---------------------------------------------------------------------------------------------------


def test_each_evaluation_has_its_own_budget(opened: Open) -> None:
    words = ("judge=[gold,alpaca_eval,mt_bench]", "judge.model=gpt-4.1", "judge.budget_dollars=5")
    suite = opened(*words, "judge.judges.mt_bench.budget_dollars=0.5").cells[0].judge
    budgets = {label: getattr(one, "budget_dollars", None) for label, one in suite.judges.items()}
    assert budgets == {"gold": None, "alpaca_eval": 5.0, "mt_bench": 0.5}


def test_an_audit_has_the_judge_of_each_evaluation(opened: Open) -> None:
    """Each has the key and name of its audit alone, so that what was asked once is not asked again."""

    def audits(judge: str, *words: str) -> dict[str, str]:
        cells = planned_audits(opened(f"judge={judge}", *words, "do=audit"))
        return {key: cell.name for key, cell in cells.items()}

    several = audits("[gold,alpaca_eval,mt_bench]", "judge.model=m")
    alone = [audits("gold"), *(audits(judge, "judge.model=m") for judge in ("alpaca_eval", "mt_bench"))]
    assert several == {key: name for one in alone for key, name in one.items()} and len(several) == 4


# Files of the three benchmarks ----------------------------------------------------------------------------------------


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, pairs, and the items of each benchmark in its own layout."""
    folder = tmp_path_factory.mktemp("files")
    make_model(folder / "llama")
    make_preferences(folder / "pairs.jsonl", paired=True, messages=False)
    items = [{"instruction": f"Say {i}", "output": "fair " * (1 + i % 3), "dataset": "own"} for i in range(6)]
    (folder / "alpaca.json").write_text(json.dumps(items))
    questions = [
        {"question_id": i, "category": category, "turns": [f"Count {i}.", "Again."]}
        for i, category in enumerate(CATEGORIES)
    ]
    jsonl(folder / "question.jsonl", questions)
    answer = {"model_id": "gpt-4", "choices": [{"index": 0, "turns": ["one", "two"]}]}
    jsonl(folder / "reference.jsonl", [{"question_id": CATEGORIES.index("math"), **answer}])
    arena = [{"uid": f"u{i}", "category": "hard", "prompt": f"Solve {i}"} for i in range(6)]
    jsonl(folder / "arena.jsonl", arena)
    reply = {"role": "assistant", "content": {"answer": "an answer, long"}}
    answers = [
        {
            "uid": row["uid"],
            "model": "gpt-4-0314",
            "messages": [{"role": "user", "content": row["prompt"]}, reply],
        }
        for row in arena
    ]
    jsonl(folder / "baseline.jsonl", answers)
    return folder


def settings(files: Path) -> dict[str, list[str]]:
    """Settings of each evaluation, as words after its section's key."""
    return {
        "alpaca_eval": [f"items={files / 'alpaca.json'}", "model=longer"],
        "mt_bench": [
            f"items={files / 'question.jsonl'}",
            f"references={files / 'reference.jsonl'}",
            "model=rates",
        ],
        "arena_hard": [
            f"items={files / 'arena.jsonl'}",
            f"baseline={files / 'baseline.jsonl'}",
            "model=games",
        ],
    }


def suite_words(files: Path, *words: str) -> list[str]:
    own = [f"judge.judges.{label}.{word}" for label, some in settings(files).items() for word in some]
    return ["judge=[alpaca_eval,mt_bench,arena_hard]", *own, *words]


def on_files(files: Path, *words: str) -> list[str]:
    learnt = [
        f"model={files / 'llama'}",
        "model.max_length=128",
        "data=local",
        f"data.path={files / 'pairs.jsonl'}",
    ]
    return [*learnt, "data.heldout_fraction=0.25", "data.n_kl_prompts=4", "method.warmup_ratio=0", *words]


@pytest.mark.parametrize("preset", ["alignment_suite", "open_suite"])
def test_a_preset_is_the_three_benchmarks(opened: Open, problems: Problems, files: Path, preset: str) -> None:
    lacking = problems(
        *on_files(files, f"judge={preset}", f"judge.judges.alpaca_eval.items={files / 'alpaca.json'}")
    )
    assert any("judge.judges.mt_bench.items must be set" in one for one in lacking), lacking
    own = [word for word in suite_words(files)[1:] if ".model=" not in word]
    model = [f"judge.model={files / 'llama'}"] if preset == "open_suite" else []
    command = opened(*on_files(files, f"judge={preset}", *own, *model))
    judges = command.cells[0].judge.judges  # type: ignore[union-attr]
    assert [judge.name for judge in judges.values()] == ["alpaca_eval", "mt_bench", "arena_hard"]
    (cell,) = planned(command)
    servers = {judge.server for judge in judges.values()}
    assert servers == ({"vllm"} if preset == "open_suite" else {"endpoint"})
    assert len({plan.roles["train"] for plan in cell.evaluations.values()}) == 1


def test_a_suite_drops_rows_with_the_items_of_all_its_evaluations(opened: Open, files: Path) -> None:
    words = on_files(files, "data=dataset", "data.overlap=drop", "data.reading.reader=trl")
    words = [word for word in words if word != "data=local"]
    (cell,) = planned(opened(*words, *suite_words(files)))
    items = [
        plan.roles[f"{m}_items"]
        for plan, m in zip(cell.evaluations.values(), ("preference", "rating", "preference"), strict=True)
    ]
    assert [cell.roles["preferences"].inputs[role] for role in ("items", "items1", "items2")] == items
    assert len({plan.roles["train"] for plan in cell.evaluations.values()}) == 1
    (alone,) = planned(
        opened(*words, "judge=mt_bench", *(f"judge.{word}" for word in settings(files)["mt_bench"]))
    )
    assert list(alone.roles["preferences"].inputs) == ["file", "tokenizer", "items"]


# One real sweep -------------------------------------------------------------------------------------------------------


def say(body: Mapping[str, Any]) -> str | Said:
    """`longer` prefers the longer answer, `games` too, `rates` gives a rating that depends on the text."""
    text = body["messages"][-1]["content"]
    if body["model"] == "games":
        first, second = (
            len(re.search(rf"=== Answer of assistant {x} ===\n(.*?)\n=== end", text, re.DOTALL)[1])  # type: ignore[index]
            for x in "AB"
        )
        return "[[A>>B]]" if first > second + 12 else "[[A>B]]" if first > second else "[[B>A]]"
    return f"Rating: [[{1 + sum(map(ord, text)) % 10}]]" if body["model"] == "rates" else fair(body)


@dataclass(frozen=True)
class Swept:
    words: list[str]
    ran: Ran
    files: Path
    url: str
    asked: Callable[[], int]


@pytest.fixture(scope="module")
def swept(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    endpoint = Endpoint(say)
    shared = (f"judge.base_url={endpoint.url}", "judge.decoding.max_new_tokens=16", "judge.concurrency=4")
    words = on_files(files, "method=dpo", "method.learning_rate=0.003", *suite_words(files, *shared))
    ran = bench(*words, results=tmp_path_factory.mktemp("swept") / "results")
    assert ran.code == 0, ran.err[-3000:] + ran.out[-3000:]
    yield Swept(words, ran, files, endpoint.url, lambda: len(endpoint.asked))
    endpoint.close()


def rows(ran: Ran, of: str) -> list[dict[str, str]]:
    for path in ran.results.glob("sweeps/*/plan.json"):
        if json.loads(path.read_text())["cells"][0]["config"]["judge"]["name"] == of:
            with path.with_name("table.csv").open() as file:
                return list(csv.DictReader(file))
    raise AssertionError(of)


def folder_of(ran: Ran) -> Path:
    (folder,) = (
        path.parent
        for path in ran.results.glob("sweeps/*/pairs.csv")
        if "evaluation" in path.read_text()[:20]
    )
    return folder


@pytest.mark.parametrize("judge", some_outer(["alpaca_eval", "mt_bench", "arena_hard"], ["mt_bench"]))
def test_its_numbers_are_those_of_the_command_with_one_judge_which_runs_nothing(
    swept: Swept, judge: str
) -> None:
    asked = swept.asked()
    own = [
        f"judge.{word}"
        for word in (*settings(swept.files)[judge], f"base_url={swept.url}", "decoding.max_new_tokens=16")
    ]
    words = on_files(swept.files, "method=dpo", "method.learning_rate=0.003", f"judge={judge}", *own)
    alone = bench(*words, results=swept.ran.results)
    assert alone.code == 0 and re.search(r"\b0 stages run", alone.out), alone.err + alone.out
    assert swept.asked() == asked
    compared = 0
    for both, one in zip(rows(swept.ran, "suite"), rows(swept.ran, judge), strict=True):
        for name, value in one.items():
            if name not in ("key", "name", "reason", "differs"):
                assert both.get(f"{judge}/{name}", both.get(name)) == value, name
                compared += value != ""
    assert compared > 60


def test_the_table_has_the_evaluations_side_by_side(swept: Swept) -> None:
    folder = folder_of(swept.ran)
    names = list(rows(swept.ran, "suite")[0])
    for name in (
        "alpaca_eval/equal_length_win_rate",
        "mt_bench/rating_turn2",
        "arena_hard/style_win_rate",
        "reward_accuracy",
        "kl",
    ):
        assert name in names
    assert not any(name.endswith("/reward_accuracy") or name.endswith("/kl") for name in names)
    assert "judge" not in names  # it does not vary
    page = (folder / "table.md").read_text()
    first, second = (line for line in page.splitlines() if line.startswith("| row"))
    for column in (
        "alpaca_eval/win rate %",
        "alpaca_eval/vs start",
        "mt_bench/rating",
        "mt_bench/turn 1",
        "mt_bench/vs start",
    ):
        assert f"| {column} |" in first
    assert "| arena_hard/style-controlled % |" in first and "| reward acc. % | KL nats |" in first
    assert "| mt_bench/length |" in second
    assert re.findall(r"judged completions of (\w+) were cut", page) == [
        "alpaca_eval",
        "mt_bench",
        "arena_hard",
    ]
    assert page.count("vs start is the first number") == 1 and page.count("These facts are equal") <= 2
    tex = (folder / "table.tex").read_text()
    assert r"\multicolumn{7}{c}{mt\_bench}" in tex and r"\cmidrule(lr)" in tex
    with (folder / "differences.csv").open() as file:
        assert [row["evaluation"] for row in csv.DictReader(file)] == [
            "alpaca_eval",
            "mt_bench",
            "arena_hard",
        ]
    assert {path.name for path in (folder / "figures").glob("*.svg")} == {
        "win_rate_by_kl_alpaca_eval.svg",
        "rating_by_kl_mt_bench.svg",
        "win_rate_by_kl_arena_hard.svg",
    }
    samples = next((folder / "completions").glob("dpo*.md")).read_text()
    assert "## mt_bench, rating" in samples and "## arena_hard, preference" in samples


def test_each_row_is_one_cell_and_each_evaluation_has_the_folder_of_its_own_command(swept: Swept) -> None:
    (dpo,) = (row for row in rows(swept.ran, "suite") if row["method"] == "dpo")
    folder = swept.ran.results / "cells" / dpo["name"]
    facts = json.loads((folder / "stages.json").read_text())
    assert list(facts["evaluations"]) == ["alpaca_eval", "mt_bench", "arena_hard"]
    own = {label: swept.ran.results / "cells" / name for label, name in facts["evaluations"].items()}
    assert (own["alpaca_eval"] / "model_outputs.json").exists() and (
        own["mt_bench"] / "model_answer.jsonl"
    ).exists()
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert float(dpo["mt_bench/rating"]) == metrics["mt_bench/rating"]


@pytest.mark.parametrize("do", some_outer(["report", "rescore", "status", "plan"], ["status"]))
def test_other_commands_know_the_row(swept: Swept, do: str) -> None:
    before = folder_of(swept.ran).joinpath("table.csv").read_bytes()
    again = bench(*swept.words, f"do={do}", results=swept.ran.results)
    assert again.code == 0, again.err + again.out
    assert folder_of(swept.ran).joinpath("table.csv").read_bytes() == before
    expected = {
        "report": "2 of 2 cells are done",
        "rescore": "6 of 6 evaluations were scored again",
        "status": "2 done",
        "plan": "nothing to do",
    }[do]
    assert expected in again.out
    assert " changed: " not in again.out


def test_a_plan_has_the_cost_of_each_evaluation_and_their_sum(swept: Swept, tmp_path: Path) -> None:
    plan = bench(*swept.words, "do=plan", results=tmp_path / "results")
    assert plan.code == 0, plan.err
    costs = re.findall(r"(\w+): (?:preference|rating) verdicts: .*?: (\d+) requests", plan.out)
    assert costs == [("alpaca_eval", "12"), ("mt_bench", "32"), ("arena_hard", "24")]
    assert re.search(r"^judge .*: 68 requests", plan.out, re.MULTILINE)


@outer
def test_verify_why_export_and_bundle_know_the_row(swept: Swept, tmp_path: Path) -> None:
    results = swept.ran.results
    (key,) = (row["key"] for row in rows(swept.ran, "suite") if row["method"] == "dpo")
    assert bench("do=verify", results=results).code == 0
    why = bench("do=why", f"cell={key}", results=results)
    assert why.code == 0 and "dpo (train/" in why.out
    out = bench("do=export", f"cell={key}", f"out={tmp_path / 'model'}", results=results)
    assert out.code == 0, out.err
    assert "alpaca_eval, mt_bench, arena_hard on local" in (tmp_path / "model" / "README.md").read_text()
    made = bench(*swept.words, "do=bundle", f"out={tmp_path / 'b.tar.gz'}", results=results)
    assert made.code == 0 and "the same bytes as" in made.out, made.err + made.out


@outer
def test_an_evaluation_that_fails_leaves_the_others_numbers(swept: Swept, tmp_path: Path) -> None:
    again = Ran(copy_results(swept.ran, tmp_path / "results", drop=["score"]), 0, "", "", 0)
    (cell,) = planned(open_command(swept.words))
    verdicts = again.store.folder(cell.evaluations["mt_bench"].roles["rating_verdicts"])
    for folder in (verdicts, verdicts.with_suffix(".work")):  # with the replies that were journalled
        shutil.rmtree(folder, ignore_errors=True)
    words = [word for word in swept.words if not word.startswith("judge.base_url")]
    failed = bench(*words, "judge.base_url=http://127.0.0.1:9/v1", "judge.attempts=1", results=again.results)
    assert failed.code == 3, failed.out + failed.err
    row = rows(again, "suite")[1]
    assert row["status"] == "failed" and row["reason"].startswith("mt_bench: rating verdicts: ")
    assert row["alpaca_eval/win_rate"] and row["reward_accuracy"] and not row["mt_bench/rating"]
    page = (folder_of(again) / "table.md").read_text()
    assert "FAILED: dpo" in page and "Reason: mt_bench: rating verdicts: " in page
