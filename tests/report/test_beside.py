"""A sweep's rows beside published tables: words, files and lines, from hand-made numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, get_args

import pytest

from bench import methods
from bench.cli.compose import open_command
from bench.cli.words import SWEEPS
from bench.commands.planned_sweep import with_start_cells
from bench.commands.scoreboard import published_part
from bench.config import Kind
from bench.config.errors import BadConfig
from bench.papers import Word, beside, tables
from bench.planning.cells import plan_cell
from bench.report import CellRow, Sweep, published, write_files
from bench.report.tables import PUBLISHED

WORLD = {"data": {"kind": "world"}, "judge": {"name": "gold"}}


def numbers(
    rows: dict[str, dict[str, Any]],
    pairs: dict[tuple[str, str], float],
    n_seeds: int = 3,
    **cells: dict[str, Any],
) -> published.SweepNumbers:
    """Rows by name with settings of their method, and differences with a standard error of one point."""
    order = list(rows)
    configs = {
        f"{name}{seed}": WORLD | {"method": {"name": name, **method}}
        for name, method in rows.items()
        for seed in range(n_seeds)
    }
    lines = [
        {"row": order.index(name) + 1, "key": f"{name}{seed}", "status": "done", "seed": seed}
        | {"n_scored": 805, "n_unscored": 0, "n_train": 10, "win_rate": 0.3}
        | cells.get(name, {})
        for name in rows
        for seed in range(n_seeds)
    ]  # fmt: skip
    written = [
        {
            "first_row": order.index(a) + 1,
            "second_row": order.index(b) + 1,
            "n_seeds": n_seeds,
            "n_items": 805,
        }
        | dict.fromkeys(
            (f"prompts_{part}" for part in ("value", "standard_error", "low", "high", "t", "df", "p")), 0.0
        )
        | {
            "combined_value": d,
            "combined_standard_error": 0.01,
            "combined_low": d - 0.02,
            "combined_high": d + 0.02,
        }
        | {"combined_t": d / 0.01, "combined_df": 20.0, "combined_p": 1e-6 if abs(d) > 0.02 else 0.4}
        for (a, b), d in pairs.items()
    ]
    return published.numbers_of(configs, lines, written)


V1: dict[str, Any] = {"sft": {"method": "none"}, "dpo": {"method": "dpo"}, "kto": {"method": "kto"}}
ROWS: dict[str, dict[str, Any]] = {"none": {}, "dpo": {}, "kto": {}}


def words(part: dict[str, Any], ours: published.SweepNumbers) -> dict[str, str]:
    (table,) = published.compare(part, ours)
    return {one.name: one.verdict.text for one in table.contrasts}


def test_contrasts_are_joined_by_role_in_either_order() -> None:
    """kto over dpo is published as +4.7 (3.1 SE), dpo over sft as +1.4 (1.1 SE)."""
    ours = numbers(ROWS, {("dpo", "kto"): -0.05, ("none", "dpo"): -0.13})
    found = words({"kto_v1_table3_extended": V1}, ours)
    assert found == {
        "kto over dpo": "same direction, separable, in the world",
        "kto_one_output over dpo": "not run: no row of this sweep stands for kto_one_output",
        "dpo over sft": "nothing to reproduce, in the world",
    }


def test_ours_is_shown_where_theirs_is_noise_or_a_role_differs() -> None:
    part = {"kto_v1_table3_extended": V1 | {"kto": {"method": "kto", "differs": "has twice the rows"}}}
    (table,) = published.compare(part, numbers(ROWS, {("dpo", "kto"): -0.05, ("none", "dpo"): -0.13}))
    kto, _, dpo = table.contrasts
    assert kto.verdict.text == "not comparable: kto: has twice the rows"
    assert (
        published.our_words(kto.ours) == "+5.0 [+3.0, +7.0]"
        and published.our_words(dpo.ours) == "+13.0 [+11.0, +15.0]"
    )


def test_p_is_corrected_over_the_comparable_contrasts_of_the_table() -> None:
    part = {"kto_v1_table3_extended": V1 | {"kto_one_output": "no such row"}}
    (table,) = published.compare(part, numbers(ROWS, {("kto", "dpo"): 0.05, ("dpo", "none"): 0.13}))
    assert [one.ours.p if one.ours else None for one in table.contrasts] == [
        pytest.approx(2e-6),
        None,
        pytest.approx(2e-6),
    ]


@pytest.mark.parametrize(
    ("rows", "cells", "word"),
    [
        ({"none": {}, "dpo": {}}, {}, "not run: no finished row is kto"),
        (ROWS, {"kto": {"status": "failed"}}, "not run: no finished row is kto"),
        (ROWS, {"kto": {"n_unscored": 100}}, "not comparable: 11 % of a row's verdicts are unscored"),
        (ROWS, {"kto": {"differs": "steps; template not known"}}, "not comparable: our two rows also differ in steps"),
        (ROWS, {"kto": {"differs": "steps"}, "dpo": {"differs": "steps"}}, "same direction, separable, in the world"),
        (ROWS, {"kto": {"differs": "steps"}, "dpo": {"n_train": None}}, "same direction, separable, in the world"),
    ],
)  # fmt: skip
def test_what_keeps_two_rows_from_being_compared(
    rows: dict[str, Any], cells: dict[str, Any], word: str
) -> None:
    ours = numbers(rows, {("kto", "dpo"): 0.05} if "kto" in rows else {}, **cells)
    assert words({"kto_v1_table3_extended": V1}, ours)["kto over dpo"] == word


def test_two_rows_of_one_role_are_ambiguous_and_one_seed_does_not_count() -> None:
    part = {"kto_v1_table3_extended": V1 | {"kto": {}}}
    assert words(part, numbers(ROWS, {}))["kto over dpo"] == "ambiguous: 3 rows of ours fit one role"
    (table,) = published.compare(
        {"kto_v1_table3_extended": V1}, numbers(ROWS, {("kto", "dpo"): 0.05}, n_seeds=1)
    )
    assert table.contrasts[0].verdict.text == "same direction, separable, in the world, one training"
    assert not table.contrasts[0].verdict.counts


def test_metrics_of_another_kind_are_not_compared_and_a_judges_accuracy_is_over_seeds() -> None:
    rows = {
        name: {"name": "self_rewarding", "iteration": i} for i, name in enumerate(("m0", "m1", "m2", "m3"))
    }
    roles = {f"m{i}": {"method": "self_rewarding", "method.iteration": i} for i in (1, 2, 3)}
    cells = {f"m{i}": {"judge_pair_accuracy": 0.6 + 0.05 * i} for i in (1, 2, 3)}
    ours = numbers(rows, {("m2", "m1"): 0.05, ("m3", "m2"): 0.05, ("m3", "m1"): 0.1}, **cells)
    assert set(words({"self_rewarding_mt_bench": roles}, ours).values()) == {
        "not comparable: theirs is a rating"
    }
    duel = words(
        {"self_rewarding_head_to_head": roles}, ours
    )  # Wins less losses have the sign of a difference.
    assert duel["m2 over m1"] == "same direction, separable, in the world"
    (table,) = published.compare({"self_rewarding_reward_modeling": roles}, ours)
    by_name = {one.name: one for one in table.contrasts}
    assert by_name["m3 over m1"].ours.difference.value == pytest.approx(0.1)  # type: ignore[union-attr]
    assert by_name["m3 over m1"].verdict.word is Word.NOTHING


def test_a_method_that_is_missing_says_so_and_a_slip_is_not_comparable() -> None:
    rows = {name: {} for name in ("none", "kto", "cpo", "simpo")}
    roles: dict[str, Any] = {name: {"method": name} for name in ("kto", "cpo", "simpo")}
    part = {
        "simpo_baselines_v0_1": {
            "llama_3_8b_instruct": roles | {"sft": {"method": "none"}, "rrhf": "no such method"}
        }
    }
    found = words(part, numbers(rows, {("simpo", "kto"): 0.05, ("simpo", "cpo"): 0.05}))
    assert found["llama_3_8b_instruct: simpo over rrhf"] == "not run: no such method"
    slip = "not comparable: slip of the source, the rows of KTO and CPO are identical, probably a copy slip"
    assert found["llama_3_8b_instruct: simpo over kto"] == slip
    assert found["mistral_7b_base: simpo over kto"].startswith(
        "not run: no row of this sweep stands for simpo"
    )


@pytest.mark.parametrize(
    ("betas", "pairs", "word"),
    [
        ((0.1, 0.3), {}, "not in grid"),
        ((0.01, 0.1, 0.3), {(0.01, 0.1): -0.1, (0.01, 0.3): 0.0, (0.1, 0.3): 0.1}, "excluded"),
        ((0.01, 0.1, 0.3), {(0.01, 0.1): 0.1, (0.01, 0.3): 0.0, (0.1, 0.3): -0.1}, "compatible"),
        ((0.01, 0.1, 0.3), {(0.01, 0.1): 0.0, (0.01, 0.3): 0.0, (0.1, 0.3): 0.0}, "undecided"),
    ],
)
def test_a_best_beta_is_compared_with_ours_that_are_not_told_apart(
    betas: tuple[float, ...], pairs: dict[tuple[float, float], float], word: str
) -> None:
    names = {beta: f"b{beta}" for beta in betas}
    rates = {
        name: 0.3 - (0.1 if (0.01, beta) in pairs and pairs[0.01, beta] > 0.05 else 0)
        for beta, name in names.items()
    }
    if word == "excluded":
        rates["b0.1"] = 0.4
    ours = numbers(
        {name: {"name": "dpo", "beta": beta} for beta, name in names.items()},
        {(names[a], names[b]): d for (a, b), d in pairs.items()},
        **{name: {"win_rate": rate} for name, rate in rates.items()},
    )
    part = {
        "pref_tuning_best_beta": {
            "zephyr_7b_sft_full": {"dpo": {"method": "dpo"}, "ipo": "not in this sweep"}
        }
    }
    (table,) = published.compare(part, ours)
    assert table.best[0].word == word
    assert table.best[1].word == "not run: not in this sweep"


def test_committed_tables_without_row_numbers_are_read_in_the_order_of_their_pairs() -> None:
    lines = [{"row": str(i), "key": f"k{i}", "status": "done", "seed": "0"} for i in (1, 2, 3)]
    pairs = [
        {
            "first": "same",
            "second": "same",
            "n_seeds": "1",
            "n_items": "9",
            "combined_value": "",
            "prompts_value": str(i),
        }
        | dict.fromkeys((f"prompts_{part}" for part in ("standard_error", "low", "high", "t", "df", "p")), "")
        for i in range(3)
    ]
    found = published.numbers_of({f"k{i}": WORLD for i in (1, 2, 3)}, lines, pairs)
    assert {pair: d.value for pair, (d, _) in found.pairs.items()} == {(1, 2): 0, (1, 3): 1, (2, 3): 2}
    assert not published.numbers_of({f"k{i}": WORLD for i in (1, 2, 3)}, lines, pairs[:2]).pairs


def test_a_sweep_with_published_tables_writes_both_sides(tmp_path: Path) -> None:
    """KTO 10 points over DPO on every item and seed, DPO 5 over the start."""
    command = open_command(["method=dpo,kto", "seed=0,1", "do=plan", f"results={tmp_path}"])
    plans = [
        plan_cell(cell, sources, methods.chain)
        for cell, sources in zip(command.cells, command.sources, strict=True)
    ]
    rows = []
    for plan in with_start_cells(plans, command.sources):
        rate = {"none": 0.3, "dpo": 0.35, "kto": 0.45}[plan.cell.method.name]
        preferences = {str(i): rate + (0.1 if i % 2 else -0.1) for i in range(40)}
        rows.append(CellRow(plan, None, True, {"win_rate": rate, "n_scored": 40.0}, {}, preferences, {}, 100))
    part = {"kto_v1_table3_extended": V1 | {"kto_one_output": "no such row"}}
    sweep = Sweep("s", "Which?", "+sweep=s", [row.cell for row in rows], published=part)
    paths = write_files(sweep, rows, tmp_path)
    assert paths.page_fault == ""
    with (paths.folder / "published.csv").open() as file:
        lines = {f"{line['better']} over {line['worse']}": line for line in csv.DictReader(file)}
    kto = lines["kto over dpo"]
    assert (kto["word"], kto["counts"], kto["suffixes"]) == (
        "same direction, separable",
        "True",
        "in the world",
    )
    assert float(kto["ours"]) == pytest.approx(0.1) and float(kto["published"]) == pytest.approx(0.0469)
    assert lines["kto_one_output over dpo"]["why"] == "no such row"
    text = (paths.folder / "table.md").read_text()
    assert f"## {PUBLISHED}" in text and published.IN_THE_WORLD in text
    assert "| kto over dpo | +4.7 (3.1 SE) | +10.0 |" in text.replace(" [+10.0, +10.0]", "")
    assert "| kto_one_output | 11.6 % | 58.0 % | 50.0 % | no such row | - |" in text
    shown = paths.table.notes[PUBLISHED]
    assert shown[0].endswith("1 same direction, separable; 1 nothing to reproduce; 1 not run.")
    assert published.IN_THE_WORLD in shown and shown[-1].endswith("table.md.")
    assert published.read_numbers(paths.folder).pairs.keys() == {(1, 2), (1, 3), (2, 3)}


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (["spa"], "published must map published tables to their roles, got"),
        ({"spa_table_1": {}}, "unknown published table 'spa_table_1'; did you mean spa_table"),
        ({"spa_table1_main": {"spaa": {}}}, "published.spa_table1_main: unknown role 'spaa'; known: sft, dpo, spa, zephyr"),
        ({"spa_table1_main": {"spa": 3}}, "published.spa_table1_main.spa must be values of a row, or the reason why there is none, got"),
        ({"spa_table1_main": {"spa": {"differs": 1}}}, "published.spa_table1_main.spa must be values of a row"),
        ({"spa_table1_main": {"every": "x"}}, "published.spa_table1_main.every must be values of rows, got"),
        ({"spa_table1_main": ["spa"]}, "published.spa_table1_main must map roles to rows of ours, got"),
        ({"simpo_baselines_v0_1": {"gpt": {}}}, "published.simpo_baselines_v0_1.gpt: expected one of mistral_7b_base,"),
        ({"simpo_baselines_v0_1": {"mistral_7b_base": 1}}, "published.simpo_baselines_v0_1.mistral_7b_base must map roles"),
    ],
)  # fmt: skip
def test_faults_of_the_part_of_a_sweep_file(written: Any, problem: str) -> None:
    _, problems = beside(written)
    assert len(problems) == 1 and problems[0].startswith(problem)


def test_values_of_every_row_are_added_to_each() -> None:
    (one,), problems = beside(
        {"spa_table1_main": {"every": {"model": "m"}, "spa": {"method": "spa"}, "zephyr": "no row"}}
    )
    assert not problems
    assert one.role("spa").where == {"model": "m", "method": "spa"} and one.role("zephyr").where is None
    assert one.role("dpo").why == "no row of this sweep stands for dpo"
    assert one.table is tables()["spa_table1_main"]


def test_a_fault_of_the_part_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    path = tmp_path / "sweep" / "mine.yaml"
    path.write_text(
        "# @package _global_\naxes: {method: dpo}\npublished: {spa_table1_main: {spaa: {method: dpo}}}\n"
    )
    with pytest.raises(BadConfig) as caught:
        open_command([f"--config-dir={tmp_path}", "+sweep=mine", "do=plan", f"results={tmp_path}"])
    (problem,) = caught.value.problems
    assert (
        problem
        == f"published.spa_table1_main: unknown role 'spaa'; known: sft, dpo, spa, zephyr (published in {path})"
    )


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_files_part_is_sound_at_both_kinds_of_scale(path: Path) -> None:
    for kind in get_args(Kind):
        assert beside(published_part(path, kind))[1] == []


def test_a_judge_of_the_published_name_is_no_other_judge() -> None:
    """AlpacaEval's GPT-4 judge in a run of pretrained models; kto over dpo is published with it."""
    configs = {
        name: {"data": {"kind": "local"}, "judge": {"name": "alpaca_eval", "model": "gpt-4-1106-preview"}, "method": {"name": name}}
        for name in ROWS
    }  # fmt: skip
    ours = numbers(ROWS, {("kto", "dpo"): 0.05})
    rows = [row._replace(config=configs[name]) for name, row in zip(ROWS, ours.rows, strict=True)]
    assert (
        words({"kto_v1_table3_extended": V1}, ours._replace(rows=rows))["kto over dpo"]
        == "same direction, separable"
    )
    configs["kto"]["judge"] = {"name": "alpaca_eval", "model": "other"}
    rows = [row._replace(config=configs[name]) for name, row in zip(ROWS, ours.rows, strict=True)]
    found = words({"kto_v1_table3_extended": V1}, ours._replace(rows=rows))
    assert found["kto over dpo"] == "same direction, separable, other judge"
