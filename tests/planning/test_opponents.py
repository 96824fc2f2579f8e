"""The held-out prompts as a judge's items, and policies as opponents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import plans

from bench.forecast.judge_cost import judge_costs
from bench.store.keys import Stage
from bench.store.stage_settings import LocalPromptData
from bench.store.store import Store

Problems = Callable[..., list[str]]
JURY = "judge.judges={a: {judge: alpaca_eval, model: x}, b: {judge: alpaca_eval, model: y}}"
JUDGES = ("alpaca_eval", "arena_hard", "local", "reward_model", "pair_ranker", "jury")


def judging(name: str, model: Path) -> tuple[str, ...]:
    folder = name in ("local", "reward_model", "pair_ranker")
    return (f"judge={name}", JURY if name == "jury" else f"judge.model={model if folder else 'x'}")


@pytest.fixture
def own(model_folder: Path, pairs_file: Path, tmp_path: Path) -> tuple[str, ...]:
    (model_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return (f"model={model_folder}", "data=local", f"data.path={pairs_file}", f"results={tmp_path}")


@pytest.mark.parametrize("judge", JUDGES)
def test_held_out_prompts_are_judged_against_their_chosen_answers(
    judge: str, own: tuple[str, ...], model_folder: Path
) -> None:
    words = (*own, "method=dpo", *judging(judge, model_folder), "judge.items=heldout", "judge.n_items=512")
    start, cell = plans(*words)
    items = cell.roles["preference_items"]
    assert items.settings == LocalPromptData(n=512, answers=True)
    assert items == start.roles["preference_items"]
    assert cell.roles["preference_completions"].inputs["items"] == items
    assert "overlap" not in cell.roles  # held-out prompts are in no train row


def test_in_the_world_they_are_the_gold_judges_prompts_with_chosen_answers(
    problems: Problems, model_folder: Path
) -> None:
    gold = plans("method=dpo", "data=world_offline", "judge.preference.opponent=chosen")[1]
    words = ("method=dpo", "judge=alpaca_eval", "judge.model=x", "judge.items=heldout")
    asked = plans(*words, "data=world_offline", "judge.n_items=805")[1]
    assert asked.roles["preference_items"] == gold.roles["preference_items"]
    assert asked.roles["preference_completions"] == gold.roles["preference_completions"]
    (problem,) = problems(*words, "data=world")
    assert problem.startswith("the chosen answers as the opponent need data.completions_by=writer")


LOOP = ("method=iterative_dpo", "method.labeller=random", "method.iteration=0,1,2", "data=world")


@pytest.mark.parametrize("gold", [True, False])
def test_each_iteration_plays_against_the_one_before(gold: bool) -> None:
    """The opponent's completions are the stage with which that cell itself is judged; iteration 0 plays the start."""
    key = "judge.preference.opponent" if gold else "judge.opponent"
    words = () if gold else ("judge=alpaca_eval", "judge.model=x")
    start, *cells = plans(*LOOP, *words, f"{key}=previous")
    before = start
    for cell in cells:
        items, own = cell.roles["preference_items"], cell.roles["preference_completions"]
        assert items.inputs["completions"] == before.roles["preference_completions"]
        assert items.inputs["items"] == own.inputs["items"]
        assert cell.roles["preference_verdicts"].inputs["items"] == items
        before = cell
    plain = plans(*LOOP, *words)
    assert [c.roles["preference_completions"] for c in plain] == [
        c.roles["preference_completions"] for c in [start, *cells]
    ]
    against_start = plans(*LOOP, *words, f"{key}=start")[-1]
    theirs = against_start.roles["preference_items"].inputs["completions"]
    assert isinstance(theirs, Stage) and theirs == start.roles["preference_completions"]


def test_an_opponent_that_cannot_be_is_refused(
    own: tuple[str, ...], problems: Problems, model_folder: Path, tmp_path: Path
) -> None:
    asked = judging("alpaca_eval", model_folder)
    (problem,) = problems("method=dpo", *asked, "judge.opponent=previous")
    assert (
        "method=dpo: use opponent=start" in problem
        and "(judge.opponent=previous on the command line)" in problem
    )
    (problem,) = problems("method=dpo", "judge.preference.opponent=previous")
    assert "use opponent=start" in problem
    (problem,) = problems("judge=mt_bench", "judge.model=x", "judge.opponent=start")
    assert "use mode=pairwise" in problem
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "math", "turns": ["a", "b"]}))
    pairwise = ("judge=mt_bench", "judge.model=x", f"judge.items={questions}", "judge.mode=pairwise")
    assert problems(*own, "method=dpo", *pairwise, "judge.opponent=start") == []
    assert "set judge.baseline" in problems(*own, "method=dpo", *pairwise)[0]
    (problem,) = problems(*own, "judge=mt_bench", "judge.model=x", "judge.items=heldout")
    assert "asks two: use another judge" in problem
    (problem,) = problems(*own, *asked, "judge.items=heldout", "judge.n_items=null")
    assert "judge.n_items must be a number" in problem
    assert "do=audit takes its items" in problems(*own, *asked, "judge.items=heldout", "do=audit")[0]
    written = tmp_path / "w.jsonl"
    written.write_text('{"prompt": "a", "completion": "b"}\n')
    assert (
        "a file of completions has none"
        in problems(*asked, f"completions={written}", "judge.opponent=start")[0]
    )


def test_a_plan_counts_the_requests_between_two_policies(own: tuple[str, ...], tmp_path: Path) -> None:
    """Neither policy's completions exist yet; their stand-ins differ, and are as long as the items' baselines."""
    items = tmp_path / "items.json"
    items.write_text(json.dumps([{"instruction": "a", "output": "b c"}, {"instruction": "d", "output": "e"}]))
    words = (
        *own,
        "method=dpo",
        "judge=alpaca_eval",
        "judge.model=x",
        f"judge.items={items}",
        "judge.opponent=start",
    )
    costs = judge_costs(plans(*words)[-1].stages, Store(tmp_path / "store"))
    assert [cost.requests for cost in costs.values()] == [2]
