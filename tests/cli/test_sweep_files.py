"""Sweeps to cells: products, grids, the command line over them, each cell once and with one identity wherever it is asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compose import write_sweep
from tiny import make_model

from bench import methods
from bench.cli.compose import BadConfig, CheckedCommand, open_command
from bench.cli.sweep_files import (
    BadSweep,
    parse_command_line,
    question,
    replace_axes,
    resolved,
    unfold,
    varied,
)
from bench.commands.planned_sweep import with_start_cells
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan
from bench.report.groups import matches
from bench.report.rows import seedless
from bench.store.keys import hash_key

ROOT = Path(__file__).parent.parent.parent
SWEEPS = sorted((ROOT / "sweeps").glob("**/*.yaml"))

GOLDEN = ROOT / "tests" / "golden" / "sweeps.json"

Open = Callable[..., CheckedCommand]


def first_command(path: Path) -> str:
    """The words of a sweep file's first command, without the sweep."""
    (words,) = re.findall(
        rf"^# python -m bench \+sweep={path.stem}\b([^#\n]*)", path.read_text(), flags=re.M
    )[:1]
    return words.strip()


def planned(done: CheckedCommand) -> list[CellPlan]:
    return [
        plan_cell(cell, sources, methods.chain)
        for cell, sources in zip(done.cells, done.sources, strict=True)
    ]


def names(done: CheckedCommand) -> set[str]:
    return {cell.name for cell in planned(done)}


# Every file ----------------------------------------------------------------------------------------------------------


OF_WORLD = [path for path in SWEEPS if "do=plan" not in first_command(path)]


def keys_of(cells: Iterable[CellPlan]) -> str:
    """One digest of the keys of a sweep's cells; `python tests/cli/test_sweep_files.py` writes it for sweeps that have none."""
    return hash_key([cell.key for cell in cells])


@pytest.mark.parametrize("path", OF_WORLD, ids=lambda path: path.stem)
def test_every_sweep_file_composes_and_passes_with_the_keys_of_its_committed_results(
    path: Path, opened: Open
) -> None:
    done = opened(f"+sweep={path.stem}")
    cells = planned(done)
    assert len(cells) > 1 and len({cell.name for cell in cells}) == len(cells)
    assert not done.replaced and done.command == f"+sweep={path.stem}"
    assert json.loads(GOLDEN.read_text())[path.stem] == keys_of(cells)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_file_opens_with_question_expectation_and_command(path: Path) -> None:
    parts = [r"# Question: .+\?.*\n(#   .+\n)*", r"# Expected: .+\n(#   .+\n)*"]
    told = r"(# (Came out|Chosen|Tried)\b.+\n(#   .+\n)*)*"  # what was tried, and what came of it
    command = rf"# python -m bench \+sweep={path.stem}"
    parts.append(rf"{told}{command}( .+)?\n({command} .+\n)*{told}[^#]")
    wanted = f"{path} must open with comments `# Question: ...?`, `# Expected: ...` and `# python -m bench +sweep={path.stem}`"
    assert re.match("".join(parts), path.read_text()), wanted
    assert question(path).endswith(("?", ")"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_both_sides_of_an_expectation_are_groups_of_the_files_table(
    path: Path, opened: Open, model_folder: Path
) -> None:
    words = first_command(path).replace("DIR", str(model_folder)).split()
    done = opened(f"+sweep={path.stem}", *words)
    cells = with_start_cells(planned(done), done.sources)
    groups = {seedless(cell.cell): cell.cell for cell in cells}.values()
    for expectation in done.expectations:
        for side in (expectation.better, expectation.worse):
            assert sum(matches(group, side) for group in groups) == 1, f"{side} of {path}"
        assert expectation.better != expectation.worse


def test_a_question_ends_where_the_expectation_begins(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "# @package _global_\n# Question: is it so,\n#   or not?\n# Expected: so.\n# python -m bench\n# Other\naxes: {}\n"
    )
    assert question(file) == "is it so, or not?"
    file.write_text("axes: {}\n# Question: too late?\n")
    assert question(file) == ""


# Unfolding -----------------------------------------------------------------------------------------------------------

AXES = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), max_size=4
)


@given(AXES)
def test_a_grid_has_as_many_points_as_its_axes_multiply_to(grid: dict[str, list[int]]) -> None:
    points = unfold([grid])
    assert len(points) == math.prod(map(len, grid.values()))
    assert all(set(point) == set(grid) and all(point[key] in grid[key] for key in grid) for point in points)


@given(st.lists(AXES, max_size=3))
def test_a_point_of_several_grids_appears_once_where_it_first_stood(
    grids: list[dict[str, list[int]]],
) -> None:
    points = unfold([*grids, *reversed(grids)])
    assert points == unfold(grids)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)


@given(AXES, AXES)
def test_a_command_line_replaces_axes_and_adds_the_others(
    grid: dict[str, list[int]], asked: dict[str, list[int]]
) -> None:
    assert replace_axes([grid], asked) == [grid | asked]


def test_the_order_is_the_files_with_the_last_axis_fastest() -> None:
    assert unfold([{"b": [2, 1], "a": ["x", "y"]}]) == [
        {"b": 2, "a": "x"},
        {"b": 2, "a": "y"},
        {"b": 1, "a": "x"},
        {"b": 1, "a": "y"},
    ]


GRIDS = [
    {"method": ["kto"], "method.beta": [0.02, 5.0]},
    {"method": ["dpo"], "method.beta": [0.1]},
    {"method": ["none"]},
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, GRIDS),
        ({"method": ["kto"]}, GRIDS[:1]),
        ({"method": ["dpo", "kto"]}, GRIDS[:2]),
        ({"method.beta": [0.3]}, [{**grid, "method.beta": [0.3]} for grid in GRIDS]),
        ({"method": ["kto"], "method.beta": [0.3]}, [{"method": ["kto"], "method.beta": [0.3]}]),
        ({"method": ["ipo"]}, [{**grid, "method": ["ipo"]} for grid in GRIDS]),  # with the axes of all
        ({"method": ["kto", "ipo"]}, [GRIDS[0], *({**grid, "method": ["ipo"]} for grid in GRIDS)]),
        ({"seed": [0, 1]}, [{**grid, "seed": [0, 1]} for grid in GRIDS]),
        ({"judge": ["none"]}, [{**grid, "judge": ["none"]} for grid in GRIDS]),
    ],
)
def test_a_group_choice_picks_the_grids_that_make_it(
    asked: dict[str, list[object]], expected: list[dict[str, list[object]]]
) -> None:
    assert replace_axes(GRIDS, asked) == expected


# The command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=3", [3]),
        ("seed=0,1,2", [0, 1, 2]),
        ("seed=range(0,3)", [0, 1, 2]),
        ("method.beta=choice(0.1,1)", [0.1, 1]),
        ("method.beta=1e-2", [0.01]),
        ("+method.beta=0.1", [0.1]),
        ("data.path='a,b.jsonl'", ["a,b.jsonl"]),
        ('data.path="/my files/x=1.jsonl"', ["/my files/x=1.jsonl"]),
        ("data.path='a,b','c d'", ["a,b", "c d"]),
        ("world.categories=[math,coding]", [["math", "coding"]]),
        ("world.categories=[math],[coding,stem]", [["math"], ["coding", "stem"]]),
        ("judge.preference={n_items: 8}", [{"n_items": 8}]),
        ("data.path=null", [None]),
    ],
)
def test_a_word_gives_its_values_with_types(word: str, values: list[object]) -> None:
    read = parse_command_line([word])
    (key,) = read.given
    assert (read.problems, read.given[key], read.words[key]) == ([], values, word)
    assert [type(value) for value in read.given[key]] == [type(value) for value in values]


def test_words_are_sorted_by_whom_they_concern(tmp_path: Path) -> None:
    words = [
        "-m",
        "+sweep=a",
        f"--config-dir={tmp_path}",
        "hydra.verbose=true",
        "hydra/launcher=local",
        "do=plan",
        "seed=1",
        "--multirun",
    ]
    read = parse_command_line(words)
    assert (read.sweep, read.folders, read.hydra, read.problems) == (
        "a",
        [tmp_path],
        ["hydra.verbose=true"],
        [],
    )
    assert read.given == {"hydra/launcher": ["local"], "do": ["plan"], "seed": [1]}
    assert read.cell_words == f"--config-dir={tmp_path} +sweep=a seed=1"
    assert (
        read.sets_cells
        and not parse_command_line(["+sweep=a", "do=plan", "results=x", "tracker.mode=offline"]).sets_cells
    )


# Cells ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=4)
@given(
    st.lists(st.sampled_from(["dpo", "ipo", "kto"]), min_size=1, unique=True),
    st.lists(st.sampled_from([0.05, 0.1, 1.0, 3]), min_size=1, unique=True),
    st.integers(1, 4),
)
def test_a_command_has_as_many_cells_as_its_axes_multiply_to(
    method: list[str], beta: list[float], seeds: int
) -> None:
    from bench.cli.compose import open_command

    done = open_command(
        [f"method={','.join(method)}", f"method.beta={','.join(map(str, beta))}", f"seed=range({seeds})"]
    )
    assert len(done.cells) == len(set(done.cells)) == len(method) * len(beta) * seeds


def test_values_that_are_one_number_are_one_cell(opened: Open) -> None:
    assert len(opened("method.beta=1,1.0,1e0").cells) == 1


@pytest.mark.parametrize("sweep", ["kto_beta", "smoke"])
def test_a_cell_alone_and_in_a_sweep_has_one_key_and_one_folder(sweep: str, opened: Open) -> None:
    """Every cell of the sweep, asked for alone with the words that a person would type."""
    done = opened(f"+sweep={sweep}")
    swept = {
        cell: plan_cell(cell, sources, methods.chain)
        for cell, sources in zip(done.cells, done.sources, strict=True)
    }
    for cell, plan in swept.items():
        settings = [f"method={cell.method.name}", f"method.beta={cell.method.beta}", f"seed={cell.seed}"]  # type: ignore[union-attr]
        file = [f"+sweep={sweep}"] if sweep == "smoke" else []  # its models are small
        alone = opened(*file, *settings)
        (found,) = (plan_cell(c, s, methods.chain) for c, s in zip(alone.cells, alone.sources, strict=True))
        assert (found.key, found.name, found.score.key) == (plan.key, plan.name, plan.score.key)


def test_one_start_cell_is_added_before_all_that_start_from_it(opened: Open) -> None:
    """Fractions share it, seeds do not; a `none` that was asked for is the same cell."""
    done = opened("method=dpo,none,kto", "data.fraction=0.1,1.0", "seed=0,1")
    cells = with_start_cells(
        [plan_cell(c, s, methods.chain) for c, s in zip(done.cells, done.sources, strict=True)], done.sources
    )
    assert [cell.name.rsplit("-", 1)[0] for cell in cells] == [
        "start-world_medium-s0",
        "dpo-beta0.1-frac0.1-world_medium-s0",
        "start-world_medium-s1",
        "dpo-beta0.1-frac0.1-world_medium-s1",
        "dpo-beta0.1-world_medium-s0",
        "dpo-beta0.1-world_medium-s1",
        "kto-beta0.1-frac0.1-world_medium-s0",
        "kto-beta0.1-frac0.1-world_medium-s1",
        "kto-beta0.1-world_medium-s0",
        "kto-beta0.1-world_medium-s1",
    ]


def test_the_axes_are_the_keys_that_differ_over_the_points() -> None:
    """A key with one value in every grid is none; one that only some grids set, or set otherwise, is. A file of completions sets none."""
    one = [{"method": ["dpo"], "method.beta": [0.1, 0.3], "seed": [0]}]
    assert varied(unfold(one)) == ("method.beta",)
    two = [*one, {"method": ["kto"], "method.beta": [0.1, 0.3], "method.batch_size": [64], "seed": [0]}]
    assert varied(unfold(two)) == ("method", "method.beta", "method.batch_size")
    assert varied(unfold([{**grid, "method.beta": [0.1]} for grid in two])) == ("method", "method.batch_size")
    assert varied([*unfold(one), {"completions": "a.jsonl"}]) == ("method.beta",)
    assert varied([{}]) == ()


# Short forms ---------------------------------------------------------------------------------------------------------


def test_a_file_of_completions_is_judged_on_the_prompts_of_its_neighbours(
    opened: Open, tmp_path: Path
) -> None:
    """The scale, the judge and the data of the grid are the file's too, whatever the file's own name; `seed` and method are not."""
    file = tmp_path / "f.jsonl"
    file.write_text('{"prompt": "Say hello.", "completion": "Hello."}\n')
    words = ("scale=world_quick", "judge.preference.temperature=2.0", f"completions={file}")
    for command in (("+sweep=simpo_table", *words), words):
        cells = opened(*command).cells
        written = [cell for cell in cells if cell.method.name == "completions"]
        assert (
            len(written) == 1
            and written[0].judge == cells[0].judge
            and written[0].judge.preference.n_items == 300
        )
    assert len(cells) == 1


def test_a_folder_is_a_model_by_its_path(opened: Open, tmp_path: Path) -> None:
    make_model(tmp_path / "mine")
    (cell,) = opened(f"model={tmp_path}/mine", "method=none", "data=world").cells
    assert (cell.model.name, cell.model.path) == ("mine", f"{tmp_path}/mine")
    (named,) = opened(f"model={tmp_path}/mine", "method=none", "data=world", "model.name=other").cells
    assert named.model.name == "other"
    with pytest.raises(BadConfig, match=r"already names the folder: leave out model\.path=/x"):
        opened(f"model={tmp_path}/mine", "method=none", "data=world", "model.path=/x")
    with pytest.raises(BadConfig, match="no such folder"):
        opened("model=/nope/x", "method=none", "data=world")


def test_two_copies_of_a_file_are_refused(opened: Open, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Say hello.", "completion": "Hello."}\n')
    with pytest.raises(BadConfig, match="hold the same completions: leave out one"):
        opened(f"completions={tmp_path}/a.jsonl,{tmp_path}/b.jsonl")


# Interpolations ---------------------------------------------------------------------------------------------------------


def test_interpolations_are_written_out_as_omegaconf_does() -> None:
    tree = {
        "a": "${b.c}",
        "b": {"c": [1, "x"], "d": "${.c}", "e": "${..f}-${f}"},
        "f": "y",
        "g": "${b.c[1]}",
        "h": r"no \${f}",
    }
    found = resolved(tree)
    assert found["a"] == found["b"]["d"] == [1, "x"] and found["b"]["e"] == "y-y" and found["g"] == "x"


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (
            {f"k{i}": f"${{k{i + 1}}}${{k{i + 1}}}" for i in range(40)} | {"k40": "x"},
            "expand to more than 1,000,000 characters",
        ),
        (
            {f"k{i}": [f"${{k{i + 1}}}"] * 9 for i in range(9)} | {"k9": "x"},
            "expand to more than 1,000,000 characters",
        ),
        (
            {"a": {f"k{i}": f"${{.k{i + 1}}} ${{a.k{i + 1}}}" for i in range(40)} | {"k40": "x"}},
            "expand to more than 1,000,000",
        ),
        ({"a": "${b}", "b": "${c}", "c": "${a}"}, "leads back to itself"),
        ({"a": {"b": "${a}"}}, "leads back to itself"),
        ({"a": "${a}"}, "leads back to itself"),
        ({"a": "b", "b": "c", "d": "${${a}}"}, "must be a value or the name of a setting"),
    ],
)
def test_interpolations_without_an_end_are_refused_at_once(tree: dict[str, Any], why: str) -> None:
    with pytest.raises(BadSweep, match=why):
        resolved(tree)


if __name__ == "__main__":
    written = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    added = {
        path.stem: keys_of(planned(open_command([f"+sweep={path.stem}"])))
        for path in OF_WORLD
        if path.stem not in written
    }
    GOLDEN.write_text(json.dumps(dict(sorted((written | added).items())), indent=1) + "\n")


# A method's key on the command line, where the sweep's methods differ ------------------------------------------------

MIXED = "grids: [{method: [iterative_dpo, dpo]}, {method: kto}]"


def test_a_methods_key_on_the_command_line_goes_to_the_methods_that_have_it(
    opened: Callable[..., CheckedCommand], tmp_path: Path
) -> None:
    flag = write_sweep(tmp_path, MIXED)
    command = opened(flag, "+sweep=mine", "method.n_prompts=70,[80]", "method.beta=0.3")
    methods: list[Any] = [cell.method for cell in command.cells]
    assert [(m.name, getattr(m, "n_prompts", None), m.beta) for m in methods] == [
        ("iterative_dpo", 70, 0.3),
        ("iterative_dpo", (80,), 0.3),
        ("dpo", None, 0.3),
        ("kto", None, 0.3),
    ]
    assert command.partly == ("method.n_prompts=70,[80] changes no cell of dpo, kto: no such setting there",)
    assert opened(flag, "+sweep=mine", "method.beta=0.3").partly == ()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("method.bete=1", "unknown key 'method.bete' (method.bete=1 on the command line); did you mean method.beta?"),
        ("method=dpo method.n_prompts=3", "unknown key 'method.n_prompts' (method.n_prompts=3 on the command line)"),
        ("method.n_prompts=[]", "method.n_prompts must not be empty, got [] (method.n_prompts=[] on the command line)"),
        ("method.n_prompts=[[8,9]]", 
            "method.n_prompts must be one list of values, got a list inside it, [8, 9] (method.n_prompts=[[8,9]] on the command line); "
            "a list is written method.n_prompts=[8,9]"),
        ("method=spa method.decoupling=0.5", 
            "method.decoupling must be a list, got 0.5 (method.decoupling=0.5 on the command line); "
            "one value is written method.decoupling=[0.5]"),
        ("method=spa method.decoupling=[]", "method.decoupling must not be empty, got [] "),
        ("world.categories=[]", "world.categories must not be empty, got [] "),
        ("judge=alpaca_eval judge.model=", "judge.model must not be empty, got '' "),
    ],
)  # fmt: skip
def test_a_key_that_no_method_has_and_a_wrong_list_are_one_line(
    problems: Callable[..., list[str]], tmp_path: Path, words: str, told: str
) -> None:
    found = problems(write_sweep(tmp_path, MIXED), "+sweep=mine", *words.split())
    assert len(found) == 1 and found[0].startswith(told), found
