"""Rows, groups and tables from hand-made numbers."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet
import pytest
from tiny import make_model, make_preferences, plans

from bench.config import Expectation
from bench.planning.cells import start_cell
from bench.planning.inputs import CellPlan
from bench.report import CellRow, Sweep, figures, flat_rows, pool, write_files
from bench.report.analysis import other_numbers
from bench.report.groups import Grid, row_words, verify
from bench.report.paper import escaped, latex
from bench.report.rows import seedless
from bench.report.tables import Table, comparison_table, markdown
from bench.report.write import columns_that_fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEP = Sweep("question", "Which?", "+sweep=question", [])

ITEMS = [f"item{i}" for i in range(40)]


def _row(cell: CellPlan, rate: float) -> CellRow:
    """Every item the same distance from `rate`, so that differences between rows are exact."""
    preferences = {
        item: rate + (0.1 if i % 2 else -0.1) * (1 + 0.1 * cell.cell.seed) for i, item in enumerate(ITEMS)
    }
    metrics = {
        "win_rate": rate,
        "win_rate_low": rate - 0.03,
        "win_rate_high": rate + 0.03,
        "n_scored": 40.0,
        "n_unscored": 2.0,
        "kl": 1.5,
    }
    missing = {"rating": "no judge is set (judge=none)"}
    return CellRow(cell, None, True, metrics, missing, preferences, {}, 100, [{"revision": "abc"}])


@pytest.fixture(scope="module")
def rows() -> list[CellRow]:
    rates = {"none": 0.25, "dpo": 0.45, "kto": 0.251}
    cells = plans("method=dpo,kto", "seed=0,1,2")
    return [_row(cell, rates[cell.cell.method.name] + 0.001 * cell.cell.seed) for cell in cells]


def test_seeds_pool_into_one_group_and_each_start_model_has_a_row(rows: list[CellRow]) -> None:
    pooled = pool(rows)
    assert [(g.cell.method.name, len(g.rows)) for g in pooled.groups] == [("none", 3), ("dpo", 3), ("kto", 3)]
    dpo = pooled.groups[1]
    assert dpo.pooled("win_rate").mean == pytest.approx(0.451)  # mean of 0.450, 0.451, 0.452
    assert dpo.against_start.lead.value == pytest.approx(0.2)
    assert dpo.against_start.p_holm < 1e-4


def test_the_best_group_is_marked_and_what_equals_the_start_is_not_called_better(rows: list[CellRow]) -> None:
    table = comparison_table(pool(rows))
    win, versus = table.columns.index("win rate %"), table.columns.index("vs start")
    by_method = {row[1]: row for row in table.rows}
    assert by_method["dpo"][win].endswith("*")
    assert not by_method["start"][win].endswith("*")
    assert "≈" not in by_method["dpo"][versus]
    assert by_method["start"][versus] == "-"


def test_one_seed_shows_the_prompt_interval(rows: list[CellRow]) -> None:
    one = [row for row in rows if row.cell.cell.seed == 0]
    table = comparison_table(pool(one))
    assert table.rows[1][table.columns.index("win rate %")].startswith("45.0 [42.0, 48.0]")
    assert (
        "Square brackets are 95 % intervals over prompts. One seed says nothing about another training."
        in table.note_lines
    )


def test_unscored_verdicts_and_missing_judges_are_said(rows: list[CellRow]) -> None:
    notes = comparison_table(pool(rows)).note_lines
    assert any("18 verdicts are unscored" in note for note in notes)  # 2 in each of 9 cells
    assert "Missing in 9 of 9 cells: rating. Reason: no judge is set (judge=none)." in notes
    assert not any("without a verdict" in note or "log-probs" in note for note in notes)
    asked = {
        "unscored_filtered": 3,
        "unscored_cut": 1,
        "votes_from_text": 2,
        "votes_weighed": 40,
        "n_without_expected_rating": 5,
    }
    whole = {"votes_from_text": 0, "votes_weighed": 40}
    some = [
        replace(row, metrics={**row.metrics, **(asked if i < 2 else whole)}) for i, row in enumerate(rows)
    ]
    notes = comparison_table(pool(some)).notes["Judges"]
    reasons = "2 were cut at max_tokens, 6 were stopped by the provider's content filter"
    assert (
        f"Replies of the judge without a verdict: {reasons}. These items are not missing at random." in notes
    )
    assert "4 of 80 votes in 2 cells had no log-probs; they count as 0 or 1, read from the text." in notes
    assert (
        "The expected rating leaves out 10 rated completions, because their ratings had no log-probs."
        in notes
    )
    one = replace(rows[0], missing={"kl": "no row of #1 in 40"})
    said = "Missing in 1 of 9 cells: kl. Reason: no row of #1 in 40."
    assert said in comparison_table(pool([one, *rows[1:]])).notes["How to read this table"]


def test_a_failed_cell_is_a_row_with_its_reason_and_a_cause_is_said_once(rows: list[CellRow]) -> None:
    failed = {"failed": "train: RuntimeError: out of memory", "done": False, "metrics": {}, "preferences": {}}
    broken = [replace(row, **failed) if row.cell.cell.seed == 2 else row for row in rows]
    table = comparison_table(pool(broken))
    assert [row[table.columns.index("seeds")] for row in table.rows] == ["2/3", "2/3", "2/3"]
    causes = [note for note in table.note_lines if note.startswith("FAILED")]
    assert len(causes) == 1 and "out of memory" in causes[0] and causes[0].count("-s2-") == 3


def test_mixed_revisions_are_said(rows: list[CellRow]) -> None:
    mixed = [rows[0], *(replace(row, recorded=[{"revision": "def"}]) for row in rows[1:])]
    assert comparison_table(pool(mixed)).notes["Fairness"] == [
        "The stages behind this table mix revisions of bench: abc, def."
    ]


def test_flat_rows_lead_with_the_settings_and_leave_missing_numbers_empty(rows: list[CellRow]) -> None:
    flat = flat_rows([*rows[:1], replace(rows[1], metrics={})])
    assert list(flat[0])[:11] == [
        "key",
        "name",
        "status",
        "model",
        "data",
        "method",
        "beta",
        "fraction",
        "iteration",
        "seed",
        "n_train",
    ]
    assert flat[0]["method"] == "start" and flat[0]["win_rate"] == 0.25
    assert flat[1]["win_rate"] is None


def test_files_say_the_same_and_are_the_same_bytes_again(rows: list[CellRow], tmp_path: Path) -> None:
    sweep = Sweep("question", "Which?", "+sweep=question", [row.cell for row in rows])
    folder = write_files(sweep, rows, tmp_path).folder
    names = [
        "table.md",
        "table.csv",
        "table.tex",
        "differences.csv",
        "pairs.csv",
        "plan.json",
        "figures/win_rate_by_kl.svg",
    ]
    first = {name: (folder / name).read_bytes() for name in names}
    write_files(sweep, rows, tmp_path)
    assert {name: (folder / name).read_bytes() for name in names} == first
    with (folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["win_rate"]) for row in table] == pytest.approx(
        [row.metrics["win_rate"] for row in rows]
    )
    assert pyarrow.parquet.read_table(folder / "cells.parquet").column("win_rate").to_pylist() == [
        row.metrics["win_rate"] for row in rows
    ]
    assert [cell["key"] for cell in json.loads(first["plan.json"])["cells"]] == [row.cell.key for row in rows]
    with (folder / "pairs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3  # of three groups


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ({"method": "dpo"}, {"method": "none"}, "yes, difference +20.0"),
        ({"method": "kto", "method.beta": 0.1}, {"method": "dpo"}, "no, difference -19.9"),
        (
            {"method": "dpo"},
            {"method": "ipo"},
            "cannot be decided, because 'ipo' matches 0 rows of this table instead of one.",
        ),
        (
            {"model": "world_medium"},
            {"method": "dpo"},
            "cannot be decided, because 'model world_medium' matches 3 rows of this table instead of one.",
        ),
    ],
)
def test_an_expectation_is_held_against_the_table(
    rows: list[CellRow], better: dict, worse: dict, verdict: str
) -> None:
    (note,) = comparison_table(pool(rows), [Expectation(better=better, worse=worse)]).notes["Expectations"]
    assert note.startswith("Expected: ") and f"Result: {verdict}" in note


def test_a_figure_over_iterations_has_a_line_for_each_labeller_and_levels_for_what_has_no_iteration() -> None:
    """Lines of the smallest picture of a loop: its own, two labellers', the start model and a training without iterations as levels."""
    labelled = ("method=iterative_dpo", "method.labeller=gold,random", "method.iteration=1,2")
    asked = (("method=spa", "method.iteration=0,1"), labelled)
    loops = [cell for words in asked for cell in plans(*words, "data=world_constraints")]
    cells = {cell.key: cell for cell in [*loops, *plans("method=dpo", "data=world_constraints")]}
    pooled = pool([_row(cell, 0.3 + 0.01 * number) for number, cell in enumerate(cells.values())])
    axis = next(axis for axis in figures.AXES if axis.name == "iteration")
    lines = {name: len(groups) for name, groups in figures._lines(pooled.groups, pooled.varied, axis).items()}
    assert lines == {
        "start": 1,
        "spa": 2,
        "iterative_dpo labeller gold": 2,
        "iterative_dpo labeller random": 2,
        "dpo": 1,
    }
    drawn = figures.draw(pooled, "loops")
    assert [name for name in drawn if name.endswith(".png")] == [
        "win_rate_by_iteration.png",
        "win_rate_by_kl.png",
    ]
    text = drawn["win_rate_by_iteration.svg"].decode()
    assert all(f"<!-- {name} -->" in text for name in lines)


def test_of_several_settings_a_name_has_those_in_which_its_row_is_unlike_the_first_of_the_method() -> None:
    world = ("data=world_constraints",)
    asked = ([], ["method.alpha=0.3"], ["method.threshold=batch_means", "method.decoupling=[0.0]"])
    loops = [cell for words in asked for cell in plans("method=spa", "method.iteration=1", *words, *world)]
    cells = {cell.key: cell for cell in [*loops, *plans("method=dpo", "method.beta=0.1,0.3", *world)]}
    groups = pool([_row(cell, 0.5) for cell in cells.values()]).groups
    names = [
        "start",
        "spa",
        "spa alpha 0.3",
        "spa threshold batch_means decoupling [0.0]",
        "dpo beta 0.1",
        "dpo beta 0.3",
    ]
    assert [group.name for group in groups] == names
    assert [group.number for group in groups] == [1, 2, 3, 4, 5, 6]


def test_what_was_not_trained_has_a_name_of_its_own_too(tmp_path: Path) -> None:
    """Two start models beside one training, and two files of one name in the folders of two models."""
    starts = [cell for start in ("base", "sft") for cell in plans("method=none", f"model.start={start}")]
    pooled = pool([_row(cell, 0.5) for cell in [*starts, *plans("method=dpo")[1:]]])
    assert [group.name for group in pooled.groups] == ["start start base", "start start sft", "dpo"]
    assert pooled.varied == ["model.start"]
    files = [tmp_path / model / "completions.jsonl" for model in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps({"prompt": "Say it.", "completion": f"By {file.parent.name}."}) + "\n")
    written = plans(f"completions={files[0]},{files[1]}")
    pooled = pool([_row(cell, 0.5) for cell in written])
    assert [group.name for group in pooled.groups] == [f"completions path {file}" for file in files]
    assert "path" in comparison_table(pooled).columns


def test_a_start_models_name_says_which_model_where_one_of_them_trains(tmp_path: Path) -> None:
    models = [make_model(tmp_path / name) for name in ("small", "large")]
    data = (
        "data=local",
        f"data.path={make_preferences(tmp_path / 'pairs.jsonl', paired=True, messages=True)}",
    )
    starts = [cell for model in models for cell in plans(f"model={model}", "method=none", *data)]
    cells = [*starts, *plans(f"model={models[0]}", "method=dpo", *data)[1:]]
    assert [group.name for group in pool([_row(cell, 0.5) for cell in cells]).groups] == [
        "start small",
        "start large",
        "dpo",
    ]


def test_rows_are_named_in_spans() -> None:
    assert [row_words(rows) for rows in ([3], [3, 4], [2, 3, 4, 9], [5, 1, 1])] == [
        "row 3",
        "rows 3, 4",
        "rows 2 to 4, 9",
        "rows 1, 5",
    ]


def test_long_names_widen_a_picture_and_leave_its_axes_as_they_are() -> None:
    """The axes of a figure with ten lines of ninety letters are as wide as those of one with short names, and the names are whole."""
    from matplotlib.image import imread

    sizes, axes = [], []
    for name in ("dpo", "self_rewarding " * 6):

        def plot(ax: Axes, name: str = name) -> None:
            for place in range(10):
                ax.plot([0, 1], [0, 1], label=f"{name} {place}")
            ax.set_xlabel("KL to the start model, nats (beside the points: beta, iteration)")
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
            axes.append(ax)

        drawn = figures._pictures(name.split()[0], plot, "a question")
        sizes.append(imread(io.BytesIO(drawn[f"{name.split()[0]}.png"])).shape[1])
    short, long = (ax.get_window_extent().width for ax in axes)
    assert short == long > 4 * 150  # of 150 dots an inch
    assert sizes[1] > sizes[0] + 2 * 150


def test_no_level_has_the_colour_of_a_line() -> None:
    """Six lines over iterations and a training without one, of seven colours; the start model is grey."""
    from matplotlib.figure import Figure

    labellers = (
        "method=iterative_dpo",
        "method.labeller=gold,random,shorter,reward_model,implicit",
        "method.iteration=1,2",
    )
    asked = (("method=spa", "method.iteration=0,1"), labellers, ("method=dpo",))
    cells = {cell.key: cell for words in asked for cell in plans(*words, "data=world_constraints")}
    pooled = pool([_row(cell, 0.3 + 0.01 * number) for number, cell in enumerate(cells.values())])
    axis, ax = next(axis for axis in figures.AXES if axis.name == "iteration"), Figure().add_subplot()
    figures._curves(ax, lines=figures._lines(pooled.groups, pooled.varied, axis), axis=axis)
    handles: list[Any] = ax.get_legend_handles_labels()[0]
    colours = [
        handle[0].get_color() if isinstance(handle, tuple) else handle.get_color() for handle in handles
    ]
    assert sorted(colours) == sorted([*figures.COLOURS, "0.4"])


def test_no_two_of_many_points_look_alike() -> None:
    """Ten lines of a point each, as many as the self-rewarding sweep has at one iteration, of seven colours."""
    from matplotlib.figure import Figure

    betas = ",".join(f"{place}" for place in range(1, 11))
    cells = plans("method=dpo", f"method.beta={betas}")
    pooled = pool([_row(cell, 0.4) for cell in cells if cell.cell.method.name == "dpo"])
    ax = Figure().add_subplot()
    lines = {str(number): [group] for number, group in enumerate(pooled.groups)}
    figures._curves(ax, lines=lines, axis=figures.KL)
    handles: list[Any] = ax.get_legend_handles_labels()[0]
    looks = {(handle[0].get_color(), handle[0].get_marker()) for handle in handles}
    assert len(looks) == len(lines) == 10


def test_lines_under_a_table_are_grouped_by_heading(rows: list[CellRow]) -> None:
    table = comparison_table(pool(rows), [Expectation(better={"method": "dpo"}, worse={"method": "kto"})])
    more = table.with_notes({"Findings": ["Row 2 has no finding."], "Judges": ["A judge."]})
    assert list(more.notes) == ["How to read this table", "Expectations", "Judges", "Findings"]
    assert (
        table.notes["How to read this table"][-1] == "results/README.md explains every column, mark and file."
    )
    text = markdown("t", "c", more)
    assert "\n### Judges\n\n- A judge.\n\n### Findings\n\n- Row 2 has no finding.\n" in text
    assert "- A \\* marks the highest win rate" in text
    assert "% Findings\n% - Row 2 has no finding.\n" in latex(more, SWEEP)


def test_markdown_and_latex_escape_what_they_must() -> None:
    table = comparison_table(pool([_row(cell, 0.5) for cell in plans("method=dpo")]))
    table = replace(table, rows=[["a|b_c", *row[1:]] for row in table.rows])
    assert "a\\|b_c" in markdown("t", "c", table)
    assert "a\\textbar{}b\\_c" in latex(table, SWEEP)
    assert "\\%" in latex(table, SWEEP)


@pytest.mark.parametrize("sweep", ["length_bias", "halos", "imbalance", "seed_fraction"])
def test_every_trained_cell_finds_its_start_model_in_the_table(sweep: str) -> None:
    """Also where another cell's start model is the same one: data that differ in their annotator share it."""
    cells = [plan.cell for plan in plans(f"+sweep={sweep}")]
    assert {seedless(start_cell(cell)) for cell in cells} <= {seedless(cell) for cell in cells}


def test_completions_cut_too_often_are_said_above_the_numbers(rows: list[CellRow]) -> None:
    """Of the second evaluation's turns 8 % are cut in one seed: more than 5 %, less than 10."""
    cut = [replace(row, cut={"preference": 0.01, "kl": 0.5}, kl_tokens=256) for row in rows]
    assert comparison_table(pool(cut)).above == []
    cut[-1] = replace(cut[-1], cut={"preference": 0.01, "rating": 0.08})
    table = comparison_table(pool(cut))
    (line,) = table.above
    last = pool(cut).groups[-1].number
    assert line.startswith(f"CUT: in row {last} 8 % of the judged completions were cut")
    lines = markdown("T", "c", table).split("\n")
    assert lines.index(f"**{line}**") < next(i for i, text in enumerate(lines) if text.startswith("| row"))
    assert rf"\item {escaped(line)}" in latex(table, SWEEP)
    assert comparison_table(pool(cut), max_cut=0.1).above == []
    first = replace(
        rows[0], metrics=dict(rows[0].metrics) | {"unfinished": 0.25}
    )  # of a stage that counted no cuts
    (line,) = comparison_table(pool([first, *rows[1:]])).above
    assert "in row 1 25 % of the judged completions" in line
    (start, *_) = plans("method=dpo", "judge=none")
    unjudged = CellRow(start, None, True, {"mean_length": 30.0}, {}, cut={"plain": 0.5})
    (line,) = comparison_table(pool([unjudged])).above
    assert "50 % of the completions were cut" in line and "Verdicts" not in line


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"kl": 0.0}, "none was cut, so it is the KL of whole completions"),
        ({"kl": 0.25}, "25 % were cut there, and theirs is the KL of the beginning"),
        ({}, "how many were cut there was not counted"),
    ],
)
def test_the_length_of_kls_samples_is_said(rows: list[CellRow], cut: dict[str, float], words: str) -> None:
    with_kl = [replace(row, metrics={**row.metrics, "kl": 1.0}, cut=cut, kl_tokens=256) for row in rows]
    lines = [line for line in comparison_table(pool(with_kl)).note_lines if line.startswith("KL nats")]
    assert lines == [
        f"KL nats is measured on the policy's own samples of up to 256 tokens, at temperature 1; {words}."
    ]


def test_a_win_rate_names_an_opponent_that_is_a_policy_or_the_chosen_answers(rows: list[CellRow]) -> None:
    def against(row: CellRow, opponent: str) -> CellRow:
        cell = row.cell.cell
        judge = cell.judge.model_copy(
            update={"preference": cell.judge.preference.model_copy(update={"opponent": opponent})}
        )
        planned = replace(row.cell, cell=cell.model_copy(update={"judge": judge}))
        return replace(row, cell=planned)

    plain = comparison_table(pool(rows))
    assert "win rate %" in plain.columns and not any("Opponent" in line for line in plain.note_lines)
    table = comparison_table(pool([against(row, "previous") for row in rows]))
    assert "win rate vs previous %" in table.columns and "win rate %" not in table.columns
    assert any("(previous): the policy of the previous iteration" in line for line in table.note_lines)
    kept = [table.columns[k] for k in columns_that_fit(table, 60)]
    assert kept[:2] == ["row", "method"] and "win rate vs previous %" in kept


def column(table: Table, name: str) -> list[str]:
    return [row[table.columns.index(name)] for row in table.rows]


def _table(rates: dict[str, list[float]], *expected: Expectation) -> tuple[Table, Grid]:
    """A table of methods with a win rate for each seed."""
    cells = plans(f"method={','.join(rates)}", "method.beta=0.1", "seed=0,1,2")
    noise = np.random.default_rng(0)
    rows = []
    for cell in cells:
        rate = rates.get(cell.cell.method.name, [0.4, 0.401, 0.402])[cell.cell.seed]
        own = 0.1 * (noise.permutation(len(ITEMS)) - (len(ITEMS) - 1) / 2) / len(ITEMS)
        values = dict(zip(ITEMS, (rate + own).tolist(), strict=True))
        rows.append(replace(_row(cell, rate), preferences=values, by_item={"rating": values}))
    grid = pool(rows)
    return comparison_table(grid, expected), grid


def test_further_numbers_are_compared_as_the_win_rate_is() -> None:
    table, grid = _table({"dpo": [0.5, 0.503, 0.501], "ipo": [0.45, 0.452, 0.449]})
    assert grid.other_pairs == {"rating": grid.pairs} and len(grid.pairs) == 3
    for group in grid.groups:
        own = {"rating": group.against_start} if group.against_start else {}
        assert group.others_against_start == own
    lines = other_numbers(grid)
    assert [line["family"] for line in lines] == ["start"] * 2 + ["pairs"] * 3
    assert lines[0]["first"] == "dpo" and lines[0]["second"] == "start" and lines[0]["combined_value"] > 0.05
    assert any(line.startswith("other_numbers.csv compares rating ") for line in table.note_lines)


def test_one_seed_says_that_p_is_of_these_trainings_and_several_print_their_spread(
    rows: list[CellRow],
) -> None:
    one = comparison_table(pool([row for row in rows if row.cell.cell.seed == 0]))
    assert "p (of these trainings)" in one.columns and "p (Holm)" not in one.columns
    assert any("p (of these trainings) is its two-sided p-value" in line for line in one.note_lines)
    rates = {name: [0.5, 0.502, 0.504] for name in ("dpo", "ipo", "hinge", "simpo")}
    several, _ = _table(rates | {"kto": [0.3, 0.5, 0.4]})
    (line,) = [line for line in several.note_lines if "pooled over the rows" in line]
    number = several.rows[column(several, "method").index("kto")][0]
    assert f"pooled over the rows, sd 0.1 points (three times as much or more: row {number} 10.0)." in line


def test_methods_with_several_betas_are_compared_at_equal_kl() -> None:
    """DPO's frontier is 10 points above KTO's; dpo reaches 1 to 4 nats, kto 2 to 6: 2 to 4 are shared."""
    reached = {("dpo", 0.1): 4.0, ("dpo", 1.0): 1.0, ("kto", 0.1): 6.0, ("kto", 1.0): 2.0}
    rows = []
    for cell in plans("method=dpo,kto", "method.beta=0.1,1", "seed=0,1,2"):
        kl = reached.get((cell.cell.method.name, getattr(cell.cell.method, "beta", 0.0)), 0.0)
        one = _row(cell, 0.3 + 0.02 * kl + 0.1 * (cell.cell.method.name == "dpo"))
        rows.append(replace(one, metrics={**one.metrics, "kl": kl}))
    lines = [line for line in comparison_table(pool(rows)).note_lines if line.startswith("At equal KL")]
    assert len(lines) == 1 and "(2.00 to 4.00 nats" in lines[0] and "dpo less kto +10.0" in lines[0]


def test_planned_orders_are_a_family_of_their_own_and_later_ones_are_said_to_be_post_hoc() -> None:
    rates = {"dpo": [0.5, 0.503, 0.501], "ipo": [0.45, 0.452, 0.449], "kto": [0.402, 0.4, 0.4]}
    planned = Expectation(better={"method": "dpo"}, worse={"method": "ipo"})
    later = Expectation(better={"method": "dpo"}, worse={"method": "kto"}, post_hoc=True)
    table, grid = _table(rates, planned, later)
    (first, second), (one, two) = table.notes["Expectations"], verify([planned, later], grid)
    assert "yes" in first and "Holm-corrected over the planned orders" in first
    assert (
        second.startswith("Expected after results were seen (post hoc): ")
        and "over all pairs of rows" in second
    )
    assert one.difference is not None and two.difference is not None
    assert one.p_holm == one.difference.p, "one planned order has nothing to be corrected for"
    assert two.p_holm is not None and two.difference.p is not None and two.p_holm >= two.difference.p


def test_equal_is_said_where_equivalence_is_shown_and_not_where_a_margin_is_too_small() -> None:
    rates = {"dpo": [0.5, 0.501, 0.499], "ipo": [0.499, 0.501, 0.5]}
    order = {"better": {"method": "dpo"}, "worse": {"method": "ipo"}}
    table, _ = _table(rates, Expectation(**order), Expectation(**order, margin=0.01))
    wide, narrow = table.notes["Expectations"]
    assert "Result: no, equal within 2 points (two one-sided tests at 5 %), difference" in wide
    assert "Result: not decided, difference" in narrow


def test_a_seed_far_from_the_others_is_marked_in_its_row_and_named() -> None:
    table, _ = _table({"dpo": [0.5, 0.501, 0.4], "ipo": [0.5, 0.499, 0.5], "kto": [0.45, 0.452, 0.451]})
    seeds = dict(zip(column(table, "method"), column(table, "seeds"), strict=True))
    assert seeds == {"start": "3", "dpo": "3 !", "ipo": "3", "kto": "3"}
    far, why = table.notes["Findings"]
    assert "seed 2, 1 of 3 seeds, lies 10.0 points below the row's others" in far
    assert "one training in five" in why


def test_a_difference_says_on_how_many_items_it_stands() -> None:
    (one, *others) = plans("method=dpo")
    rows = [_row(one, 0.5), *(_row(cell, 0.4) for cell in others)]
    lost = dict(rows[0].preferences) | dict.fromkeys(ITEMS[:4])
    table = comparison_table(pool([replace(rows[0], preferences=lost), *rows[1:]]))
    assert any("(on 36 of 40)" in text for text in column(table, "vs start"))
