"""What is asked beyond all reason is refused before a run, at once and with the setting that changes the bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bench.cli.sweep_files import n_points, parse_command_line, points
from bench.cli.words import CONF
from bench.config import MAX_CELLS
from bench.machine import cores

Problems = Callable[..., list[str]]
HEAD = "# @package _global_\n"
# nine levels of nine references each: 3.9 GB of text once written out
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


def own_sweep(folder: Path, text: str, name: str = "mine", group: str = "sweep") -> str:
    (folder / group).mkdir(exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text, encoding="utf-8")
    return f"--config-dir={folder}"


@pytest.fixture(autouse=True)
def _at_once() -> object:
    """No refusal takes long, whatever was asked for."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 30


def test_the_bound_on_cells_is_the_one_of_the_config() -> None:
    assert yaml.safe_load((CONF / "config.yaml").read_text())["max_cells"] == MAX_CELLS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=range(0,100000)"], "it is a range of 100000 values, more than max_cells=10000 allows"),
        (
            ["seed=range(0,1000000000000)"],
            "it is a range of 1000000000000 values, more than max_cells=10000 allows",
        ),
        (["seed=shuffle(range(0,20000))"], "it is a range of 20000 values, more than max_cells=10000 allows"),
        (
            ["method.beta=range(0,1,1e-9)"],
            "it is a range of 1000000000 values, more than max_cells=10000 allows",
        ),
        (["method.beta=range(0,inf)"], "a range from 0 to inf in steps of 1 has no end"),
        (["seed=range(0,5,0)"], "a range from 0 to 5 in steps of 0 has no end"),
        (
            ["seed=" + ",".join(map(str, range(20000)))],
            "seed has about 20000 values on the command line, more than max_cells=10000 allows",
        ),
        (
            ["seed=choice(" + ",".join(map(str, range(20000))) + ")"],
            "seed has about 20000 values on the command line, more than",
        ),
        (["seed=range(0,30)", "max_cells=20"], "it is a range of 30 values, more than max_cells=20 allows"),
        (
            ["seed=range(0,1000)", "method.beta=range(0.1,100,0.1)"],
            "999000 cells are more than max_cells=10000: leave out values",
        ),
        (
            ["seed=1,2,3", "method.beta=0.1,0.2", "max_cells=5"],
            "6 cells are more than max_cells=5: leave out values of axes, or",
        ),
        (["seed=glob(*)"], "an axis must list its values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_too_many_cells_are_refused_before_any_is_made(
    problems: Problems, words: list[str], said: str
) -> None:
    found = problems(*words, "tracker=none")
    assert any(said in problem for problem in found), found
    assert all(len(problem) < 400 for problem in found)


def test_too_many_cells_of_a_file_are_refused_before_any_is_made(problems: Problems, tmp_path: Path) -> None:
    """Three axes of a thousand values: a thousand million cells."""
    axes = "".join(
        f"  {key}: [{', '.join(str(n) for n in range(1, 1001))}]\n"
        for key in ("seed", "method.beta", "data.n_prompts")
    )
    folder = own_sweep(tmp_path, f"{HEAD}axes:\n{axes}")
    assert problems(folder, "+sweep=mine", "tracker=none") == [
        "1000000000 cells are more than max_cells=10000: leave out values of axes, or set max_cells=1000000000"
    ]


def test_ranges_have_the_values_that_hydra_gives_them() -> None:
    words = [
        "seed=range(3)",
        "method.beta=range(0.1,0.5,0.1)",
        "data.n_prompts=range(9,1,-3)",
        "method.name=range(5,5)",
    ]
    read = parse_command_line(words)
    assert read.given == {
        "seed": [0, 1, 2],
        "method.beta": [0.1, 0.2, 0.30000000000000004, 0.4],
        "data.n_prompts": [9, 6, 3],
    }
    assert read.problems == [
        "method.name has no values (method.name=range(5,5) on the command line): give it one value or more"
    ]


@pytest.mark.parametrize(
    "given",
    [{}, {"completions": ["a", "b"]}, {"completions": ["a"], "method": ["dpo"], "judge": ["gold", "none"]}],
)
@pytest.mark.parametrize("of_sweep", [True, False])
def test_points_are_as_many_as_were_counted(given: dict[str, list[str]], of_sweep: bool) -> None:
    grids = [{"seed": [0, 1], "judge": ["gold", "mt_bench"]}, {"seed": [2], "method": ["kto"]}]
    assert n_points(grids, given, of_sweep=of_sweep) == len(points(grids, given, of_sweep=of_sweep))


@pytest.mark.parametrize("group", ["sweep", "method", "hydra/launcher"])
def test_aliases_that_write_out_to_millions_are_refused_wherever_a_config_comes_from(
    problems: Problems, tmp_path: Path, group: str
) -> None:
    (tmp_path / group).mkdir(parents=True)
    folder = own_sweep(tmp_path, HEAD * (group == "sweep") + LAUGHS, group=group)
    found = problems(folder, "+sweep=mine" if group == "sweep" else f"{group}=mine", "tracker=none")
    said = "its aliases (*name) expand to more than 100000 values"
    assert any(f"{tmp_path}/{group}/mine.yaml" in problem and said in problem for problem in found), found


def test_aliases_of_reason_are_read(opened: Callable[..., object], tmp_path: Path) -> None:
    folder = own_sweep(
        tmp_path, f"\ufeff{HEAD}# Question: which?\naxes:\n  seed: &few [1, 2]\n  method.beta: *few\n"
    )
    assert len(opened(folder, "+sweep=mine", "tracker=none").cells) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "a: *nobody", "axes: {seed: [1]", f"axes: {'[' * 200}{']' * 200}", "a: 1\na: 2"]
)
def test_a_sweep_file_that_is_none_is_said_in_one_line(problems: Problems, tmp_path: Path, text: str) -> None:
    (found,) = problems(own_sweep(tmp_path, HEAD + text), "+sweep=mine", "tracker=none")
    assert found.startswith(f"{tmp_path}/sweep/mine.yaml cannot be read: ") and "\n" not in found


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/x", "a/b", ".hidden", "-x", "a b", "", "a" * 101, "\x1b[2J"]
)
def test_a_sweep_is_called_by_a_name(problems: Problems, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.yaml").write_text(HEAD)
    found = problems(own_sweep(tmp_path, HEAD), f"+sweep='{name}'", "tracker=none")
    assert any("sweep must be a name of letters, digits, dots, +, - and _" in problem for problem in found), (
        found
    )
    assert not any("outside.yaml" in problem for problem in found)


@pytest.mark.parametrize("key", ["model.name", "judge.provider", "data.name"])
@pytest.mark.parametrize("name", ["../x", "a/b", "a\nb", "x" * 101])
def test_all_names_have_one_pattern(problems: Problems, key: str, name: str) -> None:
    found = problems("judge=alpaca_eval", f'{key}="{name}"', "tracker=none")
    assert any(f"{key} must be a name of letters, digits" in problem for problem in found), found


@pytest.mark.parametrize(
    ("url", "well"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("https://api.example.com", True),
        ("http://[::1]:8000/v1", True),
        ("nonsense", False),
        ("file:///etc/passwd", False),
        ("http://", False),
        ("http:///v1", False),
        ("ftp://host/v1", False),
        ("http://host:99999/v1", False),
        ("http://host:port/v1", False),
        ("http://a b/v1", False),
        ("//host/v1", False),
    ],
)
def test_where_a_judge_is_asked_is_a_url(problems: Problems, url: str, well: bool) -> None:
    found = problems("judge=alpaca_eval", f'judge.base_url="{url}"', "tracker=none")
    said = [
        problem
        for problem in found
        if problem.startswith("judge.base_url must be an http:// or https:// URL with a host")
    ]
    assert (said == []) is well, found


@pytest.mark.parametrize("n", [1024, 1025, 1_000_000])
def test_requests_under_way_at_once_are_bounded(problems: Problems, n: int) -> None:
    found = problems("judge=alpaca_eval", f"judge.concurrency={n}", "tracker=none")
    assert any("judge.concurrency must be <= 1024" in problem for problem in found) is (n > 1024), found


@pytest.mark.parametrize(("launcher", "key"), [("local", "workers"), ("ray", "here_workers")])
def test_more_workers_than_cores_bear_are_asked_for_by_name(
    problems: Problems, launcher: str, key: str
) -> None:
    words = (f"hydra/launcher={launcher}", "tracker=none", "do=plan")
    few, many = f"hydra.launcher.{key}={4 * cores()}", f"hydra.launcher.{key}=100000"
    assert problems(few, *words) == []
    (found,) = problems(many, *words)
    assert (
        f"hydra.launcher.{key} must be at most 4 for each of {cores()} cores" in found
        and f"({many} on the command line)" in found
    )
    assert problems(many, "hydra.launcher.workers_per_core=100000", *words) == []


@pytest.mark.parametrize(
    "key",
    ["judge.timeout_s", "judge.batch_wait_s", "hydra.launcher.stage_timeout_s", "accelerate.checkpoint_s"],
)
@pytest.mark.parametrize("seconds", ["0", "-1", "0.0", ".inf", ".nan"])
def test_waits_are_positive_and_end(problems: Problems, key: str, seconds: str) -> None:
    found = problems("judge=alpaca_eval", f"{key}={seconds}", "tracker=none")
    assert any(problem.startswith(f"{key} must be") for problem in found), found
