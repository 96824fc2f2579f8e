"""The first minute: help, versions, and bare words that are commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from bench import __version__
from bench.cli.help import SCREEN, UnknownTopic, heading, overview, settings, topic
from bench.cli.sweep_files import parse_command_line
from bench.cli.words import CONF, SWEEPS, VERBS, choices, with_commands

RunBench = Callable[..., "CompletedProcess[str]"]


def test_no_argument_prints_one_screen_and_starts_nothing(run_bench: RunBench) -> None:
    done = run_bench()
    assert (done.returncode, done.stdout, done.stderr) == (0, SCREEN, "")
    assert len(SCREEN.splitlines()) <= 24 and SCREEN.count("python -m bench") >= 5


def test_help_among_the_words_of_a_command_shows_everything_and_starts_nothing(run_bench: RunBench) -> None:
    done = run_bench("method.beta=0.1", "--help")
    assert (
        done.returncode == 0 and done.stdout.startswith("Usage: ") and "Groups (GROUP=CHOICE):" in done.stdout
    )
    unknown = run_bench("help", "methd")
    assert (unknown.returncode, unknown.stdout) == (2, "") and "did you mean method" in unknown.stderr


def test_the_version_names_the_program_and_what_it_stands_on(run_bench: RunBench) -> None:
    lines = run_bench("--version").stdout.splitlines()
    assert lines[0].startswith(f"bench {__version__} (revision ")
    assert [line.split()[0] for line in lines[1:]] == ["hydra-core", "torch", "transformers", "trl"]


def test_help_loads_nothing_that_takes_time(run_bench: RunBench) -> None:
    code = "import bench.cli.help as h, sys; h.overview(); print(sorted({'hydra', 'torch', 'pydantic', 'numpy'} & sys.modules.keys()))"
    assert run_bench(python=("-c", code)).stdout.strip() == "[]"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_help_fits_two_screens_and_names_every_command_group_and_choice(width: int) -> None:
    text = overview(width)
    lines = text.splitlines()
    assert len(lines) <= (60 if width == 80 else 50)
    assert all(len(line) <= max(width, 125) for line in lines)
    words = set(text.replace(",", " ").split())
    named = set(VERBS)
    for group in (path for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "do")):
        named |= set(choices(group.name))
    assert named <= words and "bench help sweep lists them" in text
    assert all(path.stem in topic("sweep", width) for path in SWEEPS.glob("*.yaml"))


def test_every_choice_has_a_heading_and_every_topic_a_text() -> None:
    for path in [*CONF.rglob("*/*.yaml"), *SWEEPS.glob("*.yaml")]:
        assert heading(path), f"{path} opens with no comment that says what it is"
    for group in (
        "do",
        "method",
        "model",
        "data",
        "judge",
        "scale",
        "hydra/launcher",
        "tracker",
        "engine",
        "adapter",
    ):
        assert topic(group).count("\n") == len(choices(group))
        for choice in choices(group):
            assert heading(CONF / group / f"{choice}.yaml").split()[0] in topic(f"{group}.{choice}")


def test_a_choice_is_shown_with_its_settings_their_values_and_bounds() -> None:
    text = topic("method.kto", 100)
    assert "method.beta = from scale= (settings.kto.beta)   (> 0)" in text
    assert "By scale: world 0.1; llm 0.1; llama3_8b 0.05 (its authors' after SFT);" in text
    assert "method.weight_ratio = null" in text and "lambda_D n_D" in text
    assert "method.learning_rate = " in text and "method.batch_size = " in text
    assert topic("method=kto", 100) == text
    assert "size = auto   (auto | stages | cells)" in topic("plan", 100)
    assert settings(CONF / "method" / "dpo.yaml")["sft_weight"].value == "0.0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("methd", "did you mean method"), ("method.ktoo", "did you mean kto"), ("sweep.x", "known: ")],
)
def test_an_unknown_topic_names_what_is_near(name: str, expected: str) -> None:
    with pytest.raises(UnknownTopic, match=expected):
        topic(name)


@pytest.mark.parametrize("verb", VERBS)
def test_a_bare_word_that_is_a_command_means_do(verb: str) -> None:
    assert with_commands([verb, "+sweep=smoke"]) == ([f"do={verb}", "+sweep=smoke"], [])
    assert parse_command_line([verb]).given == {"do": [verb]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pla"], "did you mean plan?"),
        (["kto_beta"], "a sweep is +sweep=kto_beta"),
        (["kto_bet"], "did you mean +sweep=kto_beta?"),
        (["zzz"], "commands: audit, bundle"),
    ],
)
def test_another_bare_word_is_refused_with_what_is_near(words: list[str], expected: str) -> None:
    (problem,) = with_commands(words)[1]
    assert expected in problem


def test_the_value_of_a_flag_is_no_bare_word() -> None:
    assert with_commands(["--config-dir", "mine", "plan"]) == (["--config-dir", "mine", "do=plan"], [])
    assert with_commands(["--cfg", "job", "method=dpo"]) == (["--cfg", "job", "method=dpo"], [])


def test_two_commands_are_refused(run_bench: RunBench) -> None:
    done = run_bench("plan", "status")
    assert done.returncode == 2 and "do is given twice" in done.stderr


def test_a_mistyped_command_ends_with_what_is_near_and_exit_code_2(run_bench: RunBench) -> None:
    done = run_bench("statsu", "+sweep=smoke")
    assert (done.returncode, done.stderr) == (
        2,
        "unknown word 'statsu' (command line); did you mean status?\n",
    )
    assert "Traceback" not in done.stderr and sys.executable
