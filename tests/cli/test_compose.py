"""The door: everything that is wrong with a command in one message - what, where, what is known - before torch is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from outer import outer
from tiny import CHATML, make_model, make_preferences, write_rows

from bench.cli.compose import CheckedCommand, open_command
from bench.cli.folders import with_template
from bench.config import METHODS, NAME_WORDS
from bench.store.keys import tree_stamp

ROOT = Path(__file__).parent.parent.parent

RunBench = Callable[..., "subprocess.CompletedProcess[str]"]
Problems = Callable[..., list[str]]
Open = Callable[..., CheckedCommand]


def write_sweep(folder: Path, text: str, name: str = "mine") -> str:
    """A user's sweep file under a folder for --config-dir; returns the flag."""
    (folder / "sweep").mkdir(exist_ok=True, parents=True)
    (folder / "sweep" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return f"--config-dir={folder}"


# The real command ----------------------------------------------------------------------------------------------------


MODELS = (Path(__file__).parent.parent.parent / "conf" / "model").glob("*.yaml")


def test_four_faults_at_once_are_four_lines_and_exit_code_2(run_bench: RunBench) -> None:
    done = run_bench("method.beta=-1", "method.betta=0.1", "model=nope", "data.fraction=2")
    assert (done.returncode, done.stdout) == (2, "")
    lines = sorted(done.stderr.splitlines())
    assert lines == [
        "data.fraction must be <= 1, got 2 (data.fraction=2 on the command line)",
        "method.beta must be > 0, got -1 (method.beta=-1 on the command line)",
        "unknown key 'method.betta' (method.betta=0.1 on the command line); did you mean method.beta? known in method: batch_size, beta, "
        "desirable_weight, gradient_accumulation_steps, learning_rate, lr_scheduler_type, max_grad_norm, name, num_train_epochs, "
        "optimizer, undesirable_weight, warmup_ratio, weight_decay, weight_ratio",
        f"unknown model 'nope' (model=nope on the command line); known: {', '.join(sorted(path.stem for path in MODELS))}",
    ]


@pytest.mark.parametrize("word", ["method.beta=-1", "method.betta=0.1", "model=nope", "data.fraction=2"])
def test_each_fault_alone_is_one_line(problems: Problems, word: str) -> None:
    (problem,) = problems(word)
    assert f"({word} on the command line)" in problem


def test_the_checks_of_a_command_load_no_torch() -> None:
    code = """
import sys
from bench.cli.compose import BadConfig, open_command
open_command(["+sweep=kto_beta"])
try:
    open_command(["method.beta=-1"])
except BadConfig:
    print(sorted({"torch", "transformers", "trl", "datasets", "wandb", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_good_command_goes_through_hydra(run_bench: RunBench, tmp_path: Path, model_folder: Path) -> None:
    """With -m or not, with axes, and with a key that Hydra's own composing would refuse: only the sweep's model has it."""
    flag = write_sweep(tmp_path / "mine", "axes: {model: [local], method.beta: [0.1, 0.3]}")
    done = run_bench(
        "-m",
        flag,
        "+sweep=mine",
        f"model.path={model_folder}",
        "data=world",
        "method=ipo,kto",
        "do=plan",
        "tracker=none",
    )
    assert done.returncode == 0, done.stderr
    assert "ipo-beta0.3-local-s0" in done.stdout and "kto-beta0.1-local-s0" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "my_model"}  # a plan leaves nothing behind


def test_what_hydra_answers_by_itself_still_works(run_bench: RunBench) -> None:
    printed = run_bench("--cfg", "job", "-m", "method=dpo")
    assert printed.returncode == 0 and "name: dpo" in printed.stdout
    completed = run_bench("--shell-completion", "install=bash")
    assert completed.returncode == 0 and "hydra_bash_completion" in completed.stdout
    informed = run_bench("--info", "defaults")
    assert informed.returncode == 0 and "method/kto" in informed.stdout
    wrong = run_bench("--cfg", "job", "method=nope")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_the_console_script_is_the_same_door(run_bench: RunBench) -> None:
    script = "import sys; sys.argv[0] = 'bench'; from bench.__main__ import main; main()"
    done = run_bench("method.beta=-1", python=("-c", script))
    assert (done.returncode, done.stderr) == (
        2,
        "method.beta must be > 0, got -1 (method.beta=-1 on the command line)\n",
    )


# What is wrong with single words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method.beta=abc"], ["method.beta must be a valid number, got 'abc' (method.beta=abc on the command line)"]),
        (["method.beta="], ["method.beta must be a valid number, got '' (method.beta= on the command line)"]),
        (["method.beta=true"], ["method.beta must be a valid number, got True (method.beta=true on the command line)"]),
        (["method.beta=null"], ["method.beta must be a valid number, got None (method.beta=null on the command line)"]),
        (["seed=1.5"], ["seed must be a valid integer, got 1.5 (seed=1.5 on the command line)"]),
        (["seed=-1"], ["seed must be >= 0, got -1 (seed=-1 on the command line)"]),
        (["seed=4294967296"], ["seed must be < 4294967296, got 4294967296 (seed=4294967296 on the command line)"]),
        (
            ["method.beta=[0.1,0.2]"],
            [
                "method.beta must be a valid number, got [0.1, 0.2] (method.beta=[0.1,0.2] on the command line); "
                "an axis is written method.beta=0.1,0.2"
            ],
        ),
        (
            ["+foo=1"],
            [
                "unknown key 'foo' (+foo=1 on the command line); known: adapter, data, engine, forgetting, judge, method, model, seed, "
                "sft, world"
            ],
        ),
        (
            ["foo=1"],
            [
                "unknown key 'foo' (foo=1 on the command line); known: adapter, data, engine, forgetting, judge, method, model, seed, "
                "sft, world"
            ],
        ),
        (
            ["beta=0.1"],
            [
                "unknown key 'beta' (beta=0.1 on the command line); did you mean method.beta? known: adapter, data, engine, forgetting, "
                "judge, method, model, seed, sft, world"
            ],
        ),
        (["seed.x=1"], ["seed.x cannot be set: seed is 0 here (seed.x=1 on the command line)"]),
        (
            ["model.sft={stepz: 3}"],
            [
                "unknown key 'model.sft.stepz' (model.sft={stepz: 3} on the command line); did you mean model.sft.steps? "
                "known in model.sft: batch_size, gradient_accumulation_steps, learning_rate, steps"
            ],
        ),
        (["model.sft=3"], ["model.sft must be a valid dictionary or instance of SftTraining, got 3 (model.sft=3 on the command line)"]),
        (
            ["do=plan,run", "tracker=wandb,none"],
            [
                "do takes one value, since it cannot be an axis; got 2 (do=plan,run on the command line)",
                "tracker takes one value, since it cannot be an axis; got 2 (tracker=wandb,none on the command line)",
            ],
        ),
        (["results=a,b"], ["results takes one value, since it cannot be an axis; got 2 (results=a,b on the command line)"]),
        (
            ["do=pln"],
            [
                "unknown do 'pln' (do=pln on the command line); did you mean plan? "
                "known: audit, bundle, conformance, export, plan, report, rescore, run, scoreboard, status, verify, view, why"
            ],
        ),
        (
            ["+sweep=kto_beta,smoke"],
            ["a command runs one sweep, got kto_beta, smoke (command line): run the command once for each"],
        ),
        (
            ["method.beta=0.1", "method.beta=0.2"],
            ["method.beta is given twice (method.beta=0.1 and method.beta=0.2 on the command line)"],
        ),
        (["~method.beta"], ["cannot delete 'method.beta' (~method.beta on the command line): set another value instead"]),
        (["seed=range(3,0)"], ["seed has no values (seed=range(3,0) on the command line): give it one value or more"]),
        (["hydra/launcher=nope"], ["unknown hydra/launcher 'nope' (hydra/launcher=nope on the command line); known: local, ray, slurm"]),
        (
            ["hydra.launcher.workers=0"],
            ["hydra.launcher.workers must be >= 1, got 0 (hydra.launcher.workers=0 on the command line)"],
        ),
        (
            ["hydra.launcher.wrokers=2"],
            [
                "unknown key 'hydra.launcher.wrokers' (hydra.launcher.wrokers=2 on the command line); did you mean hydra.launcher.workers? "
                "known in hydra.launcher: name, retries, stage_timeout_s, threads, workers, workers_per_core"
            ],
        ),
        (
            ["hydra.mode=RUN"],
            [
                "cannot set hydra.mode (hydra.mode=RUN on the command line): bench makes the cells of a command itself; "
                "leave this word out"
            ],
        ),
        (["hydra/sweeper=basic"], ["cannot set hydra/sweeper (hydra/sweeper=basic on the command line): bench makes the cells of a command "
                                   "itself; leave this word out"]),
        (["hydra.foo=1"], ["cannot compose hydra.foo=1: Could not override 'hydra.foo'. To append to your config use +hydra.foo=1"]),
        (["--config-dir=/nope"], ["--config-dir must be a folder of configs, got /nope: no such folder"]),
        (["--config-dir"], ["--config-dir must be a folder of configs, got nothing: no such folder"]),
        (["tracker.mode=no"], ["tracker.mode must be 'auto', 'online' or 'offline', got 'no' (tracker.mode=no on the command line)"]),
        (["results=3"], ["results must be a valid string, got 3 (results=3 on the command line)"]),
        (
            ["model.name=a/b"],
            [f"model.name must be {NAME_WORDS}, got 'a/b' (model.name=a/b on the command line)"],
        ),
        (
            ["method.name=foo"],
            [
                "method.name must be one of 'none', 'completions', 'sft_chosen', 'dpo', 'cdpo', 'robust', 'ipo', 'ipo_summed', 'hinge', "
                "'slic', 'simpo', 'orpo', 'cpo', 'kto', 'kto_pair', 'csft', 'offline_ppo', 'best_of_n', "
                "'iterative_dpo', 'spa', 'spin', 'self_rewarding', got 'foo' (method.name=foo on the command line)"
            ],
        ),
        (["scale.batch_size=x"], ["scale.batch_size must be a valid integer, got 'x' (scale.batch_size=x on the command line)"]),
        (
            ["method.beta=${scale.foo}"],
            ["method.beta: Interpolation key 'scale.foo' not found (method.beta=${scale.foo} on the command line)"],
        ),
        (["model=local", "data=world"], ["model.path must be set: add model.path=... (model.path of model=local)"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and not value[0].count(" ") else "",
)  # fmt: skip
def test_a_fault_says_what_where_and_what_is_known(
    problems: Problems, words: list[str], expected: list[str]
) -> None:
    assert problems(*words) == expected


@pytest.mark.parametrize(
    "word", ["method.beta=interval(0,1)", "method=glob(*)", "method.beta=(", "results=a=b", "--run", ""]
)
def test_words_that_cannot_be_read_are_a_problem_with_a_way_out(problems: Problems, word: str) -> None:
    (problem,) = problems(word)
    assert problem.startswith(f"cannot read {word!r} on the command line: ")
    assert problem.endswith(
        "expected key=value or key=a,b; quote a value with special characters: 'key=\"...\"'"
    )


def test_one_bad_word_hides_no_other(problems: Problems) -> None:
    found = problems(
        "+sweep=nope",
        "scale=x",
        "foo",
        "hydra.launcher.workers=0",
        "data.fraction=2",
        "data=local",
        "hydra/launcher=y",
    )
    starts = ["unknown word 'foo'"]
    starts += [
        "unknown sweep 'nope'",
        "unknown scale 'x'",
        "unknown hydra/launcher 'y'",
        "hydra.launcher.workers must",
    ]
    for start in [
        *starts,
        "data.fraction must be <= 1, got 2",
        "data.path must be set",
        "model=world_medium knows only",
    ]:
        assert sum(problem.startswith(start) for problem in found) == 1, (start, found)


def test_an_unknown_sweep_names_the_nearest_and_all(problems: Problems) -> None:
    (problem,) = problems("+sweep=kto_bta")
    assert problem.startswith(
        "unknown sweep 'kto_bta' (+sweep=kto_bta on the command line); did you mean kto_beta? known: "
    )
    assert "kto_beta, length_bias" in problem


def test_a_command_without_faults_opens(opened: Open) -> None:
    done = opened(
        "+sweep=kto_beta",
        "method.beta=0.1,0.3",
        "tracker=none",
        "results=r",
        "hydra.launcher.workers=3",
        "do=plan",
    )
    assert done.command == "+sweep=kto_beta method.beta=0.1,0.3"
    assert (done.sweep, done.replaced) == ("kto_beta", True)
    assert (
        done.session.launcher.workers == 3
        and done.session.do.name == "plan"
        and done.session.tracker.name == "none"
    )
    assert done.title.startswith("which beta does KTO want")
    assert not opened("+sweep=kto_beta", "do=plan", "hydra/launcher=local").replaced


@pytest.mark.parametrize(
    ("words", "axes"),
    [
        (["+sweep=kto_beta"], ("method", "method.beta")),
        (["+sweep=kto_beta", "method=kto", "method.beta=0.1", "seed=0,1"], ("seed",)),
        (["method=dpo,kto", "seed=0,1", "judge.split=development"], ("method", "seed")),
        (["method=dpo"], ()),
    ],
)
def test_what_the_cells_differ_in_on_purpose_is_kept(
    opened: Open, words: list[str], axes: tuple[str, ...]
) -> None:
    assert opened(*words).axes == axes


def test_the_command_that_is_kept_can_be_typed_again(opened: Open, tmp_path: Path) -> None:
    flag = write_sweep(tmp_path / "my configs", "axes: {seed: [0, 1]}")
    done = opened(
        flag, "+sweep=mine", "method.beta=choice(0.1,0.3)", "judge.preference={n_items: 8}", "do=plan"
    )
    assert (
        done.command
        == f"'{flag}' +sweep=mine 'method.beta=choice(0.1,0.3)' 'judge.preference={{n_items: 8}}'"
    )


# Impossible combinations ---------------------------------------------------------------------------------------------


def test_a_file_for_the_worlds_model_and_judge_is_impossible(problems: Problems, pairs_file: Path) -> None:
    assert problems("data=local", f"data.path={pairs_file}", "judge=gold") == [
        "model=world_medium knows only the controlled world's words and needs its data, got data=local; use model=local model.path=DIR "
        "(model=world_medium)",
        "judge=gold knows the truth of the controlled world only and needs its data, got data=local; use judge=none "
        "(judge=gold on the command line)",
    ]


def test_impossible_combinations_are_said_beside_other_faults(problems: Problems) -> None:
    found = problems("data.form=unpaired", "method=dpo", "method.beta=-1")
    assert found == [
        "method.beta must be > 0, got -1 (method.beta=-1 on the command line)",
        "method=dpo learns from pairs, got unpaired rows; use method=kto, csft or offline_ppo, or paired data "
        "(data.form=unpaired on the command line)",
    ]


def test_best_of_n_refuses_unpaired_rows_and_samples_that_are_all_the_same(problems: Problems) -> None:
    assert problems(
        "method=best_of_n", "data.form=unpaired", "judge.rating.decoding.temperature=0", "method.n=1"
    ) == [
        "method.n must be >= 2, got 1 (method.n=1 on the command line)",
        "method=best_of_n learns from pairs, got unpaired rows; use method=kto, csft or "
        "offline_ppo, or paired data (data.form=unpaired on the command line)",
        "method=best_of_n chooses among samples, and at temperature 0 they are all the same; set a temperature above 0 "
        "(judge.rating.decoding.temperature=0 on the command line)",
    ]


def test_ktos_weights_are_set_in_one_way(problems: Problems) -> None:
    assert problems("method=kto", "method.weight_ratio=1.33", "method.undesirable_weight=2") == [
        "weight_ratio sets both weights, so leave them at 1, got desirable_weight=1 and undesirable_weight=2 "
        "(method.weight_ratio=1.33 on the command line)"
    ]
    assert problems("method=kto", "method.weight_ratio=1.33") == []


def test_a_method_for_pairs_refuses_a_file_of_unpaired_rows(
    problems: Problems, model_folder: Path, unpaired_file: Path
) -> None:
    words = ["model=local", f"model.path={model_folder}", "data=local", f"data.path={unpaired_file}"]
    assert problems(*words, "method=ipo,kto") == [
        "method=ipo learns from pairs, got unpaired rows; use method=kto, csft or offline_ppo, or paired data "
        f"(data.path={unpaired_file} on the command line)"
    ]


# Files of the user ---------------------------------------------------------------------------------------------------


def test_own_model_and_file_pass_through_the_same_door(
    opened: Open, model_folder: Path, pairs_file: Path
) -> None:
    words = [
        "model=local",
        f"model.path={model_folder}",
        "data=local",
        f"data.path={pairs_file}",
        "method=dpo,kto",
    ]
    done = opened(*words)
    assert [cell.method.name for cell in done.cells] == ["dpo", "kto"]
    assert done.cells[0].judge.name == "none" and done.cells[0].world is None
    assert done.cells[0].method.learning_rate == 5e-7  # type: ignore[union-attr]  # of scale=llm, which model=local brings
    assert {source.model.path for source in done.sources if source.model} == {model_folder}
    assert {source.data.path for source in done.sources if source.data} == {pairs_file}


def test_both_files_that_are_missing_are_said_beside_other_faults(problems: Problems) -> None:
    found = problems("model=local", "model.path=/nope", "data=local", "data.path=/no.jsonl", "method.beta=-1")
    assert found == [
        "model.path must be a folder of a causal LM, got /nope: no such folder (model.path=/nope on the command line)",
        "data.path must be a preference file, got /no.jsonl: no such file (data.path=/no.jsonl on the command line)",
        "method.beta must be > 0, got -1 (method.beta=-1 on the command line)",
    ]


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer files"),
        ("model.safetensors", "*.safetensors"),
    ],
)
def test_a_model_folder_that_lacks_something_is_refused(
    problems: Problems, model_folder: Path, removed: str, missing: str
) -> None:
    (model_folder / removed).unlink()
    (problem,) = problems("model=local", "data=world", f"model.path={model_folder}")
    assert problem.startswith(
        "model.path must hold config.json, a tokenizer and weights as safetensors, got "
    )
    assert f"without {missing} (it holds " in problem


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"NaN", "expected an object, got null (or a number that is not finite)"),
        (b"[]", "expected an object, got a list of 0"),
        (b"[" * 200_000, "nested deeper than 100 lists and objects"),
        ('{"a": 1}'.encode("utf-16"), "expected UTF-8, got UTF-16: save the file as UTF-8"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"),
        (b'{"a": 1, "a": 2}', "an object holds 'a' twice"),
    ],
    ids=["nan", "list", "deep", "utf16", "cut", "twice"],
)
def test_a_config_that_is_no_object_is_refused_by_name(
    problems: Problems, model_folder: Path, content: bytes, why: str
) -> None:
    (model_folder / "config.json").write_bytes(content)
    words = [f"model.path={model_folder}", "model=local", "data=world", "judge=gold", "method=none"]
    assert problems(*words) == [
        f"{model_folder / 'config.json'}: {why} (model.path={model_folder} on the command line)"
    ]


@pytest.mark.parametrize(
    "spelt", [b"\xef\xbb\xbf{{ messages }}\n", b"{{ messages }}\r\n"], ids=["mark", "crlf"]
)
def test_a_mark_and_line_ends_change_no_chat_template(
    model_folder: Path, tmp_path: Path, spelt: bytes
) -> None:
    words = [
        f"model.path={model_folder}",
        "model=local",
        "data=world",
        "judge=gold",
        "method=none",
        f"results={tmp_path / 'results'}",
    ]
    found = []
    for content in (b"{{ messages }}\n", spelt):
        (tmp_path / "t.jinja").write_bytes(content)
        model = open_command([*words, f"model.chat_template={tmp_path / 't.jinja'}"]).sources[0].model
        assert model and (model.path / "chat_template.jinja").read_bytes() == b"{{ messages }}\n"
        found.append(model.key)
    assert found[0] == found[1]


def test_a_path_of_a_user_who_is_not_known_is_refused(
    problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = problems("results='~nobody-of-that-name/x'")
    assert problem.startswith(
        "results=~nobody-of-that-name/x is in the home of a user unknown on this machine: set results=DIR"
    )
    for word, said in (
        (
            "completions='~nobody-of-that-name/x'",
            "completions must be a file, got ~nobody-of-that-name/x: no such file",
        ),
        ("judge.calibration='~nobody-of-that-name/x'", "no such file"),
    ):
        assert any(
            said in found
            for found in problems(*(["judge=alpaca_eval", "judge.model=m"] if "judge" in word else []), word)
        )
    monkeypatch.setenv("BENCH_RESULTS", "~nobody-of-that-name/x")
    assert any("set results=DIR or BENCH_RESULTS" in found for found in problems("method=dpo"))


def test_a_model_that_is_asked_in_messages_needs_a_chat_template(
    problems: Problems, model_folder: Path
) -> None:
    (model_folder / "chat_template.jinja").unlink()
    words = [f"model.path={model_folder}", "model=local", "data=world", "judge=gold", "method=none"]
    assert problems(*words) == [
        f"{model_folder} gets prompts as messages, but its tokenizer has no chat template: set model.chat_template "
        f"(qwen3, tulu, zephyr, or a Jinja file) (model.path={model_folder} on the command line)"
    ]
    (model_folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert problems(*words) == []
    (model_folder / "tokenizer_config.json").unlink()
    (problem,) = problems("judge=local", f"judge.model={model_folder}", "judge.n_items=4")
    assert "has no chat template: add chat_template.jinja (judge" in problem


def test_a_chat_template_is_a_name_or_a_file_and_moves_the_key(
    problems: Problems, model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / "chat_template.jinja").unlink()
    words = [
        f"model.path={model_folder}",
        "model=local",
        "data=world",
        "judge=gold",
        "method=none",
        f"results={tmp_path}",
    ]
    (problem,) = problems(*words, "model.chat_template=alpaca")
    assert problem.startswith(
        "model.chat_template must be one of qwen3, tulu, zephyr or a Jinja file, got alpaca: no such file ("
    )
    tulu, zephyr, again = (
        open_command([*words, f"model.chat_template={name}"]).sources[0].model
        for name in ("tulu", "zephyr", "tulu")
    )
    assert tulu and zephyr and again and tulu.key == again.key != zephyr.key
    assert (tulu.path / "model.safetensors").read_text() == (model_folder / "model.safetensors").read_text()
    assert tulu.path.parent.parent == tmp_path / "models"


def test_a_template_that_no_stage_could_read_is_refused(
    problems: Problems, model_folder: Path, tmp_path: Path
) -> None:
    words = [
        f"model.path={model_folder}",
        "model=local",
        "data=world",
        "judge=gold",
        "method=none",
        f"results={tmp_path}",
    ]
    words.append(f"model.chat_template={(mine := tmp_path / 'mine.jinja')}")
    open_loop = b"{{ messages }}\n{% for m in messages %}"
    syntax = f"model.chat_template={mine} cannot be used: TemplateSyntaxError: Unexpected end of template."
    for written, said in ((open_loop, syntax), (b"\xe9", f"{mine}: expected UTF-8, got other bytes")):
        mine.write_bytes(written)
        (problem,) = problems(*words)
        assert problem.startswith(said)
    mine.write_text(
        "{% for m in messages %}{% generation %}{{ m['content'] }}{%- endgeneration -%}{% break %}{% endfor %}"
    )
    assert problems(*words) == []


def test_another_command_leaves_a_folder_with_another_template_as_it_is(
    model_folder: Path, tmp_path: Path
) -> None:
    """Stages of the first command that still run, and checkpoints, hold the times of its files against those of their start."""
    base = shutil.copytree(model_folder, tmp_path / "base")
    words = [
        f"model.path={model_folder}",
        "model=local",
        f"model.base={base}",
        "data=world",
        "judge=gold",
        f"results={tmp_path}",
    ]
    words += ["method=dpo,kto", "model.chat_template=tulu"]
    first = open_command(words).sources
    open_command(words)
    for source in (found for cell in first for found in (cell.model, cell.base)):
        assert (
            source
            and source.path.parent.parent == tmp_path / "models"
            and source.stamp == tree_stamp(source.path)
        )


def test_a_folder_with_another_template_follows_its_model(model_folder: Path, tmp_path: Path) -> None:
    template, under = "{{ messages }}", tmp_path / "models"
    (model_folder / "generation_config.json").write_text("{}")
    made = with_template(model_folder, template, under)
    (made / "chat_template.jinja").write_text("damaged")
    (model_folder / "generation_config.json").unlink()
    (model_folder / "added.json").write_text("{}")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: with_template(model_folder, template, under), range(16))) == {made}
    assert {path.name for path in made.iterdir()} == {path.name for path in model_folder.iterdir()}
    assert (made / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (made / "added.json").read_text() == "{}"


def test_several_models_have_a_folder_each(
    problems: Problems, opened: Open, model_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model_folder, tmp_path / "other")
    both = f"model=zephyr_7b_sft:{model_folder},mistral_7b:{other}"
    for words, names in (
        (("model=zephyr_7b_sft,mistral_7b", f"model.path={model_folder}"), "zephyr_7b_sft, mistral_7b"),
        ((both.replace(str(other), str(model_folder)),), "zephyr_7b_sft, mistral_7b"),
        (("scale=zephyr_7b,openhermes", f"model.path={model_folder}"), "zephyr_7b_sft, openhermes_2_5"),
        (
            ("+sweep=spa_models", f"model.path={model_folder}"),
            "phi_2_sft, llama3_8b_instruct, phi_3_medium",
        ),
    ):
        (problem,) = problems(*words, "data=world")
        own = ",".join(f"{name}:DIR{n}" for n, name in enumerate(names.split(", "), 1))
        assert problem == (
            f"model.path={model_folder} would be one model under {names.count(',') + 1} names ({names}): name each "
            f"one's folder instead, model={own}"
        )
    cells = opened(
        both.replace("mistral_7b", "openhermes_2_5"), "scale=zephyr_7b,openhermes", "data=world"
    ).cells
    assert [(cell.model.name, cell.model.path) for cell in cells] == [
        ("zephyr_7b_sft", str(model_folder)),
        ("openhermes_2_5", str(other)),
    ]
    cells = opened(both, "data=world", "method=dpo").cells
    assert [(cell.model.name, cell.model.path) for cell in cells] == [
        ("zephyr_7b_sft", str(model_folder)),
        ("mistral_7b", str(other)),
    ]
    (problem,) = problems(f"model=zephir:{model_folder}", "data=world")
    assert problem.startswith("unknown model 'zephir'") and "zephyr_7b_sft" in problem


@outer
def test_a_base_reads_prompts_by_the_template_of_the_model_that_was_tuned_from_it(
    problems: Problems, opened: Open, tmp_path: Path
) -> None:
    """A base without a template, one whose template ends answers otherwise, one with another vocabulary, and one
    with another end token."""
    tuned = make_model(tmp_path / "tuned")
    bare, other, foreign = (shutil.copytree(tuned, tmp_path / name) for name in ("bare", "other", "foreign"))
    (bare / "chat_template.jinja").unlink()
    (other / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    tokenizer = json.loads((foreign / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = make_preferences(tmp_path / "rows.jsonl", paired=True, messages=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(f'{{"prompt": [{{"role": "user", "content": "ask {n}"}}]}}\n' for n in range(8))
    )
    words = [f"model={tuned}", "data=local", f"data.path={rows}", "data.fraction=0", f"results={tmp_path}"]
    words += [
        "method=spa",
        "method.seed_training=null",
        "method.judging_reference=base",
        "method.iteration=1",
    ]
    words += [f"method.prompts={prompts}", "method.n_prompts=8"]
    for base in (bare, other):
        (sources,) = opened(*words, f"model.base={base}").sources
        assert (sources.base.path / "chat_template.jinja").read_text() == CHATML
    (sources,) = opened(*words, f"model.base={tuned}").sources
    assert sources.base.path == tuned
    (problem,) = problems(*words, f"model.base={foreign}")
    assert problem.startswith(
        f"method.judging_reference=base compares log-probs of the same tokens, and {foreign} reads an answer as other tokens"
    )
    for name, key in (("tokenizer_config.json", "eos_token"), ("config.json", "eos_token_id")):
        settings = json.loads((bare / name).read_text())
        settings[key] = "<|endoftext|>" if key == "eos_token" else 0
        (bare / name).write_text(json.dumps(settings))
    (bare / "generation_config.json").unlink(missing_ok=True)
    (problem,) = problems(*words, f"model.base={bare}")
    assert problem == (
        f"method.judging_reference=base reads answers by the chat template of {tuned}, which ends them with '<|im_end|>', "
        f"no end token of {bare}: add it to eos_token_id in {bare}/generation_config.json, or set model.base to the model "
        f"that it was tuned from (model.base={bare} on the command line)"
    )
    (bare / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert not problems(*words, f"model.base={bare}")


@pytest.mark.parametrize("rows", ["file", "dataset", "sft"])
def test_rows_of_messages_need_a_chat_template_before_anything_runs(
    rows: str, problems: Problems, model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / "chat_template.jinja").unlink()
    texts, messages = (
        make_preferences(tmp_path / f"{m}.jsonl", paired=True, messages=m) for m in (False, True)
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    conversations = write_rows(tmp_path / "sft.jsonl", [{"messages": talk}])
    own = ("model=local", f"model.path={model_folder}", "method=dpo")
    assert (
        problems(*own, "data=local", f"data.path={texts}")
        == problems(*own, "data=dataset", f"data.path={texts}")
        == []
    )
    words = {
        "file": ("data=local", f"data.path={messages}"),
        "dataset": ("data=dataset", f"data.path={messages}"),
        "sft": ("data=local", f"data.path={texts}", "sft=conversations", f"sft.path={conversations}"),
    }[rows]
    (problem,) = problems(*own, *words)
    why = "gets prompts as messages, but its tokenizer has no chat template: set model.chat_template ("
    assert problem.startswith(f"{model_folder} {why}")


@outer
def test_a_plan_reads_and_shows_texts_of_any_language_in_any_locale(
    run_bench: RunBench, tmp_path: Path
) -> None:
    """ASCII is what Python takes for text where the locale is C and nothing else is said."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    model = make_model(tmp_path / "model")
    words = ("model=local", f"model.path={model}", "method=dpo", "do=plan")
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    (model / "chat_template.jinja").write_text(f"{template}{{# β #}}", encoding="utf-8")
    rows = [{"prompt": f"é{i}", "chosen": "日本", "rejected": "ß"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    done = run_bench(*words, "data=local", "data.path=rows.jsonl", **ascii_only)
    assert done.returncode == 0, done.stderr
    code = "from bench import __main__ as m; m._run = lambda words: print(chr(0x3b2)); m.main()"
    shown = run_bench("seed=0", python=("-c", code), **ascii_only)
    assert (shown.returncode, shown.stdout) == (0, "\\u03b2\n"), shown.stderr


def test_bad_rows_are_said_with_line_numbers_before_anything_runs(
    run_bench: RunBench, model_folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\nnot json\n{"prompt": "a", "chosen": "", "rejected": "c"}\n'
    )
    done = run_bench("model=local", f"model.path={model_folder}", "data=local", f"data.path={bad}")
    assert done.returncode == 2
    assert f"{bad}:2: not JSON" in done.stderr and f"{bad}:3: chosen is empty" in done.stderr
    assert not (tmp_path / "results").exists()


# Sweep files ---------------------------------------------------------------------------------------------------------


def test_faults_in_a_sweep_file_name_the_file(problems: Problems, tmp_path: Path) -> None:
    flag = write_sweep(
        tmp_path, "axes: {method: [kto, ktoo], method.beta: [0.1, -1], method.betta: [1], seed: [a]}"
    )
    file = tmp_path / "sweep" / "mine.yaml"
    found = problems(flag, "+sweep=mine")
    for start, end in [
        (
            "unknown method 'ktoo'",
            f"(method in {file}); did you mean kto? known: {', '.join(sorted(METHODS.keys() - {'completions'}))}",
        ),
        ("unknown key 'method.betta'", f"(method.betta in {file}); did you mean method.beta?"),
        ("method.beta must be > 0, got -1", f"(method.beta in {file})"),
        ("seed must be a valid integer, got 'a'", f"(seed in {file})"),
    ]:
        assert [end in problem for problem in found if problem.startswith(start)] == [True], (start, found)


def test_faults_in_the_sections_of_a_sweep_file_name_the_file(problems: Problems, tmp_path: Path) -> None:
    flag = write_sweep(
        tmp_path,
        "data: {n_prompt: 3, fraction: 7}\nmodell: {hidden_size: 3}\nscale: {bach_size: 3}\naxes: {seed: [0, 1]}",
    )
    file = tmp_path / "sweep" / "mine.yaml"
    found = problems(flag, "+sweep=mine")
    assert len(found) == 2
    assert found[0].startswith(f"unknown section 'modell' (modell in {file}); did you mean model? known: ")
    assert found[1].startswith(
        f"unknown key 'scale.bach_size' (scale.bach_size in {file}); did you mean scale.batch_size?"
    )
    write_sweep(tmp_path, "data: {n_prompt: 3, fraction: 7}\naxes: {seed: [0, 1]}")
    first, second = problems(flag, "+sweep=mine")
    assert first == f"data.fraction must be <= 1, got 7 (data.fraction in {file})"
    assert second.startswith(
        f"unknown key 'data.n_prompt' (data.n_prompt in {file}); did you mean data.n_prompts?"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("axes: {seed: []}", "axis 'seed' has no values: list one or more"),
        ("axes:\n  seed:\n", "axis 'seed' has no values: list one or more"),
        (
            "axes: {method: {beta: [1]}}",
            "axis 'method' must be a list of values; write nested keys with dots (method.beta)",
        ),
        (
            "axes: {seed: [0]}\ngrids: [{seed: [1]}]",
            "a sweep has either axes or grids, got both: put the common axes into each grid",
        ),
        (
            "grids: {seed: [1]}",
            "grids must be a list of sections with `key: [values]`, and axes one such section",
        ),
        ("grids: []", "grids must be a list of sections with `key: [values]`, and axes one such section"),
        ("axes: [seed]", "grids must be a list of sections with `key: [values]`, and axes one such section"),
        (
            "axes: {do: [run, plan]}",
            "'do' cannot be an axis, because it sets how a command runs and changes no cell: set it on the command line",
        ),
        (
            "axes: {tracker.project: [a, b]}",
            "'tracker.project' cannot be an axis, because it sets how a command runs and changes no cell: set it on the command line",
        ),
    ],
)
def test_axes_that_are_no_lists_of_values_are_said(
    problems: Problems, tmp_path: Path, text: str, reason: str
) -> None:
    flag = write_sweep(tmp_path, text)
    assert problems(flag, "+sweep=mine", "method.beta=0") == [
        f"{tmp_path / 'sweep' / 'mine.yaml'}: {reason}",
        "method.beta must be > 0, got 0 (method.beta=0 on the command line)",
    ]


@pytest.mark.parametrize("text", ["axes: {seed: [0}", "- a\n- b", "a: 1\na: 2"])
def test_a_broken_sweep_file_spoils_only_itself(
    problems: Problems, opened: Open, tmp_path: Path, text: str
) -> None:
    flag = write_sweep(tmp_path, text, name="broken")
    write_sweep(tmp_path, "axes: {seed: [0, 1]}", name="whole")
    found = problems(flag, "+sweep=broken", "seed=-1")
    assert found[0].startswith(f"{tmp_path / 'sweep' / 'broken.yaml'} cannot be read: ")
    assert found[1:] == ["seed must be >= 0, got -1 (seed=-1 on the command line)"]
    assert len(opened(flag, "+sweep=whole").cells) == 2


def test_a_users_sweep_without_its_header_is_told_so(problems: Problems, tmp_path: Path) -> None:
    flag = write_sweep(tmp_path, "")
    (tmp_path / "sweep" / "mine.yaml").write_text("axes: {seed: [0, 1]}\n")
    assert problems(flag, "+sweep=mine") == [
        f"{tmp_path / 'sweep' / 'mine.yaml'} must begin with the line `# @package _global_`"
    ]


def test_a_users_sweep_must_not_be_called_like_one_of_ours(problems: Problems, tmp_path: Path) -> None:
    flag = write_sweep(tmp_path, "axes: {seed: [0, 1]}", name="smoke")
    (problem,) = problems(flag, "+sweep=smoke")
    assert problem.startswith(
        f"{tmp_path / 'sweep' / 'smoke.yaml'} has the name of a sweep that comes with bench"
    )


def test_a_users_folder_brings_sweeps_and_choices_of_groups(
    opened: Open, problems: Problems, tmp_path: Path
) -> None:
    flag = write_sweep(
        tmp_path, "# Question: mine?\n# Expected: yes\naxes: {data: [world, mine], seed: [0, 1]}"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [world]\ndata: {name: mine, n_prompts: 10}\n"
    )
    done = opened(flag, "+sweep=mine")
    assert [(cell.data.name, cell.seed) for cell in done.cells] == [
        ("world", 0),
        ("world", 1),
        ("mine", 0),
        ("mine", 1),
    ]
    assert (done.title, done.sweep) == ("mine?", "mine")
    assert opened("--config-dir", str(tmp_path), "data=mine").cells[0].data.name == "mine"
    (problem,) = problems(flag, "data=mne")
    assert "did you mean mine? known: " in problem and ", local, mine, mixture, " in problem


def test_a_sweep_file_may_choose_groups_for_all_its_cells(opened: Open, tmp_path: Path) -> None:
    flag = write_sweep(
        tmp_path,
        "defaults:\n  - override /method: dpo\n  - override /judge: none\naxes: {method.beta: [0.1, 0.3]}",
    )
    cells = opened(flag, "+sweep=mine").cells
    assert [(cell.method.name, cell.judge.name) for cell in cells] == [("dpo", "none")] * 2
    assert {cell.method.name for cell in opened(flag, "+sweep=mine", "method=ipo").cells} == {"ipo"}


def test_axes_may_be_read_from_the_scale_preset(opened: Open, problems: Problems, tmp_path: Path) -> None:
    flag = write_sweep(tmp_path, "axes: {method.learning_rate: ['${scale.learning_rate.kto}', 1e-2]}")
    assert [cell.method.learning_rate for cell in opened(flag, "+sweep=mine").cells] == [1e-3, 1e-2]  # type: ignore[union-attr]
    write_sweep(tmp_path, "axes: {method.beta: '${scale.betas}'}")
    assert problems(flag, "+sweep=mine")[0].startswith("Interpolation key 'scale.betas' not found")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("expect: 3", "expect must be a list of `better:` and `worse:`, got 3 (expect in {file})"),
        ("expect: [kto]", "expect must be a list of `better:` and `worse:`, got ['kto'] (expect in {file})"),
        (
            "expect: [{better: {seed: 0}}]",
            "expect.worse must be set: add expect.worse=... (expect.worse in {file})",
        ),
        (
            "expect: [{better: {seed: 0}, worse: {seed: 1}, than: 3}]",
            "unknown key 'expect.than' (expect.than in {file}); known in expect: better, margin, post_hoc, worse",
        ),
    ],
)
def test_an_expectation_names_a_better_and_a_worse_side(
    problems: Problems, tmp_path: Path, text: str, problem: str
) -> None:
    flag = write_sweep(tmp_path, f"{text}\naxes: {{seed: [0, 1]}}")
    assert problems(flag, "+sweep=mine") == [problem.format(file=tmp_path / "sweep" / "mine.yaml")]


def test_results_do_not_depend_on_the_session(opened: Open) -> None:
    """do, tracker, results, launcher: no cell changes."""
    plain = opened("+sweep=smoke")
    session = [
        "do=report",
        "tracker=none",
        "results=/tmp/other",
        "hydra.launcher.workers=7",
        "hydra.launcher.threads=2",
    ]
    assert opened("+sweep=smoke", *session).cells == plain.cells
    assert opened("+sweep=smoke", *session).replaced is False


# Adapters -------------------------------------------------------------------------------------------------------------


def test_what_an_adapter_does_not_hold_is_refused(problems: Problems) -> None:
    warm = ("judge.preference.decoding.temperature=1", "judge.rating.decoding.temperature=1")
    where = "got adapter=lora; use adapter=none (adapter=lora on the command line)"
    assert problems("method=csft,best_of_n", "adapter=lora", *warm) == [
        f"method=csft trains embeddings of its control tokens, which an adapter does not hold, {where}",
        f"method=best_of_n trains a reward model, which is trained whole, {where}",
    ]


def test_a_default_length_is_cut_to_the_models_positions_and_one_that_was_asked_for_is_refused(
    opened: Callable[..., CheckedCommand], problems: Problems, model_folder: Path, pairs_file: Path
) -> None:
    words = ["model=local", f"model.path={model_folder}", "data=local", f"data.path={pairs_file}"]
    (model_folder / "config.json").write_text('{"max_position_embeddings": 96}')
    (cell,) = opened(*words).cells
    assert cell.model.max_length == 96  # type: ignore[union-attr]
    (problem,) = problems(*words, "model.max_length=97")
    assert problem.startswith("model.max_length must be <= 96, the position limit of")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")
def test_what_needs_a_gpu_is_said_before_anything_is_loaded_and_can_be_planned(
    opened: Callable[..., CheckedCommand], problems: Problems, model_folder: Path, pairs_file: Path
) -> None:
    words = [
        "model=local",
        f"model.path={model_folder}",
        "data=local",
        f"data.path={pairs_file}",
        "model.attention=flash_attention_2",
    ]
    (problem,) = problems(*words)
    assert problem.startswith("model.attention=flash_attention_2 needs a GPU and the package flash_attn")
    assert opened(*words, "do=plan").cells


def test_qlora_without_its_package_is_refused_and_can_be_planned(
    opened: Callable[..., CheckedCommand],
    problems: Problems,
    model_folder: Path,
    pairs_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.cli.checks.importlib.util.find_spec", lambda package: None)
    words = [
        "model=local",
        f"model.path={model_folder}",
        "data=local",
        f"data.path={pairs_file}",
        "adapter=qlora",
    ]
    (problem,) = problems(*words)
    assert problem.startswith(
        "adapter=qlora needs bitsandbytes, which is not installed here: pip install -e '.[qlora]', or use"
    )
    assert opened(*words, "do=plan").cells
