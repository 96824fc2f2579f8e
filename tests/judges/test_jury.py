"""A jury's verdict from its members' by hand, and the checks of juries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import methods
from bench.cli.compose import CheckedCommand
from bench.judges.jury import Jury
from bench.planning.cells import plan_cell
from bench.records import Completion, Item, Verdict

ITEMS = [Item(f"i{n}", "math", [f"say {n}"], baseline=["b"]) for n in range(3)]
ANSWERS = [Completion(item.id, item.turns, ["a text"], [], []) for item in ITEMS]


def member(*preferences: float | None) -> list[Verdict]:
    about = {"category": "math", "policy_length": 6, "baseline_length": 1}
    return [
        Verdict(item.id, "j", preference=p, unscored=None if p is not None else "it said nothing", **about)  # type: ignore[arg-type]
        for item, p in zip(ITEMS, preferences, strict=True)
    ]


def test_the_verdict_is_the_median_and_one_that_is_off_does_not_move_it() -> None:
    members = {"a": member(0.2, 0.6, 0.5), "b": member(0.4, 0.7, 0.5), "c": member(1.0, 0.0, 0.5)}
    found = list(Jury(members).judge(ITEMS, ANSWERS, None))
    assert [verdict.preference for verdict in found] == [0.4, 0.6, 0.5]
    assert found[0].details == {"a": 0.2, "b": 0.4, "c": 1.0}
    assert (found[0].judge, found[0].category, found[0].policy_length, found[0].baseline_length) == (
        "jury",
        "math",
        6,
        1,
    )
    even = list(Jury({"a": members["a"], "b": members["b"]}).judge(ITEMS, ANSWERS, None))
    assert [verdict.preference for verdict in even] == pytest.approx([0.3, 0.65, 0.5])


def test_a_missing_member_is_left_out_and_half_of_them_are_no_jury() -> None:
    """Of three: two are enough, one is not. Of two: one is not. A member may lack the item altogether."""
    members = {"a": member(0.2, 0.6, None), "b": member(None, 0.8, None), "c": member(0.4, None, 0.5)[1:]}
    found = list(Jury(members).judge(ITEMS, ANSWERS, None))
    assert found[0].unscored == "1 of 3 members have a verdict (b: it said nothing; c: no verdict)"
    assert found[1].preference == pytest.approx(0.7) and found[1].details == {"a": 0.6, "b": 0.8}
    assert found[2].unscored and found[2].details == {"c": 0.5} and found[2].policy_length == 6
    assert list(Jury({"a": member(0.1, None, 0.2), "b": member(0.2, 0.5, None)}).judge(ITEMS, ANSWERS, None))[
        1
    ].unscored


# The door -------------------------------------------------------------------------------------------------------------

TWO = "judge.judges={truth: {judge: gold}, asked: {judge: alpaca_eval, model: m}}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("judge.judges={truth: {judge: gold}}",), "a jury needs two judges or more, got 1"),
        (("judge.judges=[gold,none]",), "judge.judges must be judges by label"),
        (
            ("judge.judges={a: {judge: gold}, b: {judge: reward_model, model: /no/where}}",),
            "judge.judges.b.model must be",
        ),
        (("judge.judges={a: {judge: gold}, b: {judge: goldd}}",), "unknown judge 'goldd'"),
        (
            ("judge.judges={a: {judge: gold}, low: {judge: alpaca_eval, model: m}}",),
            "label must be letters and digits, and none of n",
        ),
        (
            ("judge.judges={a: {judge: gold}, b: {judge: mt_bench, model: m}}",),
            "judge.judges.b.name must be one of 'gold'",
        ),
        (("judge.judges={a: {judge: gold}, b: {judge: alpaca_eval}}",), "judge.judges.b.model must be set"),
        (
            ("judge.judges={a: {judge: gold}, b: {judge: alpaca_eval, model: m, ordr: both}}",),
            "did you mean judge.judges.b.order?",
        ),
        (
            ("judge.judges={a: {judge: gold}, b: {judge: alpaca_eval, model: m, n_items: 3}}",),
            "b.n_items cannot differ between members",
        ),
        (
            ("judge.judges={a: {judge: gold}, b: {judge: reward_model, model: nowhere}}",),
            "got nowhere: no such folder (judge.judges=",
        ),
        ((TWO, "judge.judges.asked.concurrency=0"), "judge.judges.asked.concurrency must be >= 1, got 0"),
        (
            ("judge.judges={a: {judge: gold}, b: {judge: gold}}",),
            "a and b are the same judge, and its vote would count twice: leave b out",
        ),
        ((TWO, "do=audit"), "do=audit measures one judge, got judge=jury; audit its members one by one"),
    ],
)
def test_a_wrong_jury_is_refused_before_a_run(
    problems: Callable[..., list[str]], words: tuple[str, ...], said: str
) -> None:
    found = problems("judge=jury", *words)
    assert any(said in problem for problem in found), found


def test_a_member_is_set_as_if_it_judged_alone_and_shares_its_stage_with_that_judge(
    opened: Callable[..., CheckedCommand], tmp_path: Path
) -> None:
    def roles(*words: str) -> dict[str, str]:
        found = opened(*words)
        return {
            role: stage.key
            for role, stage in plan_cell(found.cells[0], found.sources[0], methods.chain).roles.items()
        }

    jury = roles("judge=jury", TWO, "judge.judges.asked.order=both", "judge.n_items=20")
    alone = roles("judge=alpaca_eval", "judge.model=m", "judge.order=both", "judge.n_items=20")
    gold = roles("judge=gold", "judge.preference.n_items=20")
    assert jury["member_asked_verdicts"] == alone["preference_verdicts"]
    assert jury["member_truth_verdicts"] == gold["preference_verdicts"]
    assert jury["preference_completions"] == alone["preference_completions"] == gold["preference_completions"]
    turned = roles(
        "judge=jury",
        "judge.judges={asked: {judge: alpaca_eval, model: m, order: both}, truth: gold}",
        "judge.n_items=20",
    )
    assert turned == jury
    assert (
        roles("judge=jury", TWO, "judge.judges.truth.preference.temperature=2.0", "judge.n_items=20")["score"]
        != jury["score"]
    )


def test_the_gold_judge_sits_in_a_jury_on_the_worlds_prompts_only(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    items = tmp_path / "items.json"
    items.write_text('[{"instruction": "Say it.", "output": "It."}]')
    found = problems("judge=jury", TWO, f"judge.items={items}")
    assert any("leave truth out of this jury" in problem for problem in found), found
