from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny import plans

from bench.forecast.power import power_lines
from bench.planning.inputs import CellPlan
from bench.report.rows import Sweep


def sweep(*words: str) -> Sweep:
    cells: list[CellPlan] = plans(*words)
    return Sweep("a_sweep", "?", "", cells)


@pytest.fixture(scope="module")
def three_seeds() -> Sweep:
    return sweep("+sweep=smoke", "seed=0,1,2")


def test_a_plan_says_what_its_seeds_and_prompts_tell_apart(three_seeds: Sweep, tmp_path: Path) -> None:
    first, more, source = power_lines(three_seeds, tmp_path)
    assert first.startswith("3 seeds and 64 prompts tell apart, with 80 % power: ")
    assert "points from the start model (4), " in first and first.endswith(
        " points between any two rows (10)"
    )
    assert more.startswith("with 6 seeds ") and "; with 8 seeds " in more
    assert (
        source
        == "these figures assume 2.5 points between seeds and 18 between prompts, as in the committed tables of the controlled world"
    )


def test_an_earlier_table_of_the_sweep_gives_the_spreads(three_seeds: Sweep, tmp_path: Path) -> None:
    row = {"n_seeds": 4, "n_items": 100, "seeds_standard_error": 0.005, "prompts_standard_error": 0.02}
    with (tmp_path / "differences.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerows([row, row | {"seeds_standard_error": ""}])
    lines = power_lines(three_seeds, tmp_path)
    assert "assume 1.0 points between seeds and 20 between prompts, of " in lines[-1]
    assert lines[0] != power_lines(three_seeds, tmp_path / "no_table")[0]


def test_one_seed_is_said_to_compare_trainings_alone(tmp_path: Path) -> None:
    lines = power_lines(sweep("+sweep=smoke"), tmp_path)
    assert lines[0].startswith("1 seed and 64 prompts")
    assert (
        lines[1]
        == "one seed compares these trainings alone: another training moves a difference by about 2.5 points"
    )


def test_without_a_preference_judge_nothing_is_said(tmp_path: Path) -> None:
    assert power_lines(sweep("method=dpo", "judge=none"), tmp_path) == []
