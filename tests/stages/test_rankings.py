"""Held-out pairs of a dataset as rankings of more than two answers, for the measures of a model that judges."""

from __future__ import annotations

from pathlib import Path

from bench.judges.self_judge import Ranking, judge_quality
from bench.records import Pair, draw_name, read_completions, read_rewards, write_jsonl
from bench.stages import data
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import RankedData


def pair(row_id: str, prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(row_id, [{"role": "user", "content": prompt}], chosen, rejected, "", "")


PAIRS = [
    pair("1", "trees?", "a", "b"),  # OASST's neighbours: a, b, c
    pair("2", "two?", "x", "y"),
    pair("3", "trees?", "b", "c"),
    pair("4", "open?", "p", "q"),  # q and r are not compared
    pair("5", "open?", "p", "r"),
    pair("6", "circle?", "s", "t"),
    pair("7", "circle?", "t", "s"),
    pair("8", "trees?", "m", "n"),  # of the same prompt, but linked to no other answer
]


def rankings(tmp_path: Path, whole: bool) -> list[list[str]]:
    out = tmp_path / f"out{whole}"
    out.mkdir()
    write_jsonl(tmp_path / "heldout.jsonl", PAIRS)
    run = StageRun({"preferences": tmp_path}, out, Progress(tmp_path / "progress"))
    data.run(RankedData(split="heldout", whole=whole), run)
    rewards, found = read_rewards(out), dict[str, list[tuple[float, str]]]()
    for one in read_completions(out):
        found.setdefault(one.id, []).append((rewards[draw_name(one)], one.completions[0]))
    assert all(
        [reward for reward, _ in drawn] == [1 - i / (len(drawn) - 1) for i in range(len(drawn))]
        for drawn in found.values()
    )
    return [[text for _, text in drawn] for drawn in found.values()]


def test_pairs_that_fix_an_order_are_one_ranking(tmp_path: Path) -> None:
    whole = [["a", "b", "c"], ["m", "n"], ["x", "y"], ["p", "q"], ["p", "r"], ["s", "t"], ["t", "s"]]
    assert sorted(rankings(tmp_path, True)) == sorted(whole)
    assert rankings(tmp_path, False) == [[row.chosen, row.rejected] for row in PAIRS]


def test_the_measures_of_a_ranking_of_three_by_hand() -> None:
    """Scores 5, 2, 4 for truths 1, 0.5, 0: two of three pairs right, Spearman 1/2, Kendall 1/3, not the whole order."""
    found = dict(judge_quality([Ranking([5.0, 2.0, 4.0], [1.0, 0.5, 0.0], [True, False, False])]))
    values = {name: round(number.value, 6) for name, number in found.items() if number}
    expected = {
        "pair_accuracy": 2 / 3,
        "best_accuracy": 1.0,
        "exact_match": 0.0,
        "spearman": 0.5,
        "kendall": 1 / 3,
        "tie_rate": 0.0,
    }
    assert values == {name: round(value, 6) for name, value in expected.items()}
