"""What may be set: records are closed, frozen and strict, every file in conf/ passes, every field is read by something."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from outer import MARKS
from published import PUBLISHED, data_words, publish
from pydantic import BaseModel, ValidationError

from bench import config
from bench.cli.compose import CheckedCommand
from bench.cli.help import bases, fields, first_sentence, own_settings, settings
from bench.config import Cell, Session, misfits
from bench.config.base import meanings

ROOT = Path(__file__).parent.parent.parent
CONF, SWEEPS = ROOT / "conf", ROOT / "sweeps"


def _records() -> Iterator[type[BaseModel]]:
    for record in vars(config).values():
        if isinstance(record, type) and issubclass(record, config.Settings):
            yield record


# Files ---------------------------------------------------------------------------------------------------------------


def _choices() -> list[tuple[str, str]]:
    return [(str(path.parent.relative_to(CONF)), path.stem) for path in sorted(CONF.rglob("*/*.yaml"))]


def _needs_model(judge: str) -> bool:
    """Whether a judge's file, or the one that it builds on, leaves its model to the user."""
    written = yaml.safe_load((CONF / "judge" / f"{judge}.yaml").read_text())
    if "model" in (own := written.get("judge") or written):
        return own["model"] == "???"
    names = [name for name in written.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    return any(_needs_model(name) for name in names if (CONF / "judge" / f"{name}.yaml").exists())


# The files of models and of datasets are alike: the plain run composes a fifth of them, CI all.
@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(
            *names, marks=MARKS if names[0] in ("model", "data") and place % 5 else (), id="=".join(names)
        )
        for place, names in enumerate(_choices())
    ],
)
def test_every_file_in_conf_composes_and_passes(
    group: str, choice: str, opened: Callable[..., CheckedCommand], model_folder: Path, pairs_file: Path
) -> None:
    words = {f"{group}={choice}"}
    if group == "model" and not choice.startswith("world"):
        words |= {f"model.path={model_folder}", "data=world"}
    if choice == "llm":
        words |= {f"model={model_folder}", "data=local", f"data.path={pairs_file}"}
    if group == "scale" and (
        brought := yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()).get("brings")
    ):
        words |= {f"model.path={model_folder}", *data_words(model_folder.parent / choice, brought["data"])}
    if group == "data" and (copied := data_words(model_folder.parent / choice, choice)):
        words |= {"model=local", f"model.path={model_folder}", *copied}
    if group == "sft" and choice != "none":
        words |= {"model=local", f"model.path={model_folder}", "data=local", f"data.path={pairs_file}"}
    if (group == "sft" and choice not in ("none", "chosen")) or (group, choice) == ("scale", "llama2_7b"):
        files = (
            publish(model_folder.parent / "ultrachat", "ultrachat_200k")
            / PUBLISHED["ultrachat_200k"].files["train"]
        )
        words |= {f"sft.path={files}"}
    if (group, choice) == ("data", "local"):
        words |= {"model=local", f"model.path={model_folder}", f"data.path={pairs_file}"}
    if group == "judge" and choice in ("alpaca_eval", "mt_bench", "arena_hard"):
        words |= {"judge.model=some-model"}
    if choice in ("vllm", "qlora", "lm_eval"):
        words |= {"do=plan"}
    if (group, choice) == ("do", "why"):
        words |= {"cell=0123abcd"}
    if (group, choice) == ("do", "export"):
        words |= {"cell=0123abcd", f"out={model_folder.parent / 'exported'}"}
    if (group, choice) == ("do", "bundle"):
        words |= {f"out={model_folder.parent / 'sweep.tar.gz'}"}
    if (group, choice) == ("hardware", "gpu"):
        words |= {f"hardware.{name}=1" for name in ("peak_tflops", "memory_gb", "bandwidth_gbs")} | {
            "hardware.name=mine"
        }
    if (group, choice) == ("judge", "alpaca_eval_gpt4"):
        items = model_folder.parent / "items.json"
        items.write_text('[{"instruction": "Say it.", "output": "It."}]')
        words |= {f"judge.items={items}"}  # in place of the hub
    if group == "judge" and "judge.model=some-model" not in words and _needs_model(choice):
        words |= {f"judge.model={model_folder}"}
    if (group, choice) in (("judge", "jury"), ("judge", "suite")):
        words |= {
            f"judge.judges={{truth: {{judge: gold}}, reward: {{judge: reward_model, model: '{model_folder}'}}}}"
        }
    if group == "judge" and choice in ("alignment_suite", "open_suite"):
        words |= {"judge.model=" + str(model_folder)} if choice == "open_suite" else set()
        words |= _benchmark_words(model_folder.parent)
        words |= {
            "model=local",
            f"model.path={model_folder}",
            "data=local",
            f"data.path={pairs_file}",
            "scale=llm",
        }
    done = opened(*words)
    assert len(done.cells) == 1


def _benchmark_words(folder: Path) -> set[str]:
    """Words that name items of AlpacaEval, MT-Bench and Arena-Hard."""
    question = '{"role": "user", "content": "Solve."}'
    texts = {
        "alpaca_eval.items": '[{"instruction": "Say it.", "output": "It."}]',
        "mt_bench.items": '{"question_id": 1, "category": "math", "turns": ["Count.", "Again."]}',
        "mt_bench.references": '{"question_id": 1, "choices": [{"index": 0, "turns": ["1", "1"]}]}',
        "arena_hard.items": '{"uid": "u", "category": "hard", "prompt": "Solve."}',
        "arena_hard.baseline": '{"uid": "u", "model": "m", "messages": ['
        + question
        + ', {"role": "assistant", '
        '"content": {"answer": "Solved."}}]}',
    }
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text)
    return {f"judge.judges.{name}={folder / name}.jsonl" for name in texts}


def test_only_paths_of_own_files_have_no_default() -> None:
    must = {
        f"{path.parent.name}.{key}".replace("model.model.", "model.").replace("data.data.", "data.")
        for path in CONF.rglob("*.yaml")
        for key, value in _leaves(yaml.safe_load(path.read_text()))
        if value == "???"
    }
    of_gpu = {
        f"hardware.{name}" for name in ("name", "peak_tflops", "memory_gb", "bandwidth_gbs")
    }  # hardware=gpu, which is any
    assert must == of_gpu | {
        "model.path",
        "data.path",
        "judge.model",
        "judge.judges",
        "data.sources",
        *(f"judge.judges.mt_bench.{file}" for file in ("items", "references")),
        *(f"judge.judges.arena_hard.{file}" for file in ("items", "baseline")),
    }  # which judge is asked and what is mixed is nobody's default


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, tree


def _yaml_files() -> list[Path]:
    return sorted(path for path in CONF.rglob("*.yaml") if path.name != "trusted_code.yaml")


@pytest.mark.parametrize("path", _yaml_files(), ids=lambda path: path.relative_to(CONF).as_posix())
def test_the_comment_of_a_key_is_the_first_sentence_of_its_docstring(path: Path) -> None:
    known = fields(path)
    for key, setting in own_settings(path).items():
        meaning = known.get(key, ("", ""))[0]
        if meaning and setting.comment:
            assert setting.comment.rstrip(".") == first_sentence(meaning), (
                f"{key} in {path.relative_to(CONF)}"
            )


@pytest.mark.parametrize("path", _yaml_files(), ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_key_has_a_comment_in_its_file_or_where_that_builds_on(path: Path) -> None:
    known = fields(path)
    without = [
        key for key, setting in settings(path).items() if known.get(key, ("", ""))[0] and not setting.comment
    ]
    inherited = {key for key in without if _explained_below(path, key)}
    assert set(without) == inherited


def _explained_below(path: Path, key: str) -> bool:
    """Whether a file that this one builds on has a comment over the key."""
    below = [settings(base) for base in bases(path)]
    return any((key in keys and keys[key].comment) for keys in below) or any(
        _explained_below(base, key) for base in bases(path)
    )


def test_every_field_says_its_meaning_and_every_number_of_a_method_its_usual_range() -> None:
    tags = {"name", "kind", "reader"}
    for record in _records():
        texts = meanings(record)
        for name in record.model_fields:
            assert texts.get(name) or name in tags, f"{record.__name__}.{name} has no docstring"
    for method in config.METHODS.values():
        for name in method.model_fields.keys() & {
            "beta",
            "betas",
            "gamma",
            "alpha",
            "learning_rate",
            "label_smoothing",
            "delta",
        }:
            text = meanings(method).get(name, "")
            assert re.search(r"usual [\d]|usual that of|\d for", text), f"{method.__name__}.{name}: {text}"


# Fields --------------------------------------------------------------------------------------------------------------


def _names_read() -> set[str]:
    """Attributes that the code outside bench/config reads, and texts that may name one."""
    names = set()
    for path in (ROOT / "bench").rglob("*.py"):
        if path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def test_every_config_field_is_read_by_something() -> None:
    """Fields of a scale preset are read by interpolation in conf/ and sweeps/, the others in code."""
    read = _names_read()
    files = (*CONF.rglob("*.yaml"), *SWEEPS.glob("*.yaml"))
    interpolated = set(re.findall(r"\$\{scale\.(\w+)", "\n".join(path.read_text() for path in files)))
    for record in _records():
        for name in record.model_fields:
            found = interpolated | {"brings", "kind"} if record is config.Scale else read
            assert name in found, f"nothing reads {record.__name__}.{name}"


@pytest.mark.parametrize("record", list(_records()), ids=lambda record: record.__name__)
def test_records_are_closed_frozen_and_strict(record: type[BaseModel]) -> None:
    assert record.model_config.get("extra") == "forbid"
    assert record.model_config.get("frozen") and record.model_config.get("strict")
    assert not record.model_config.get("allow_inf_nan", True)


def test_a_cell_can_be_told_apart_and_kept_in_a_dict(cell: Cell) -> None:
    other = Cell.model_validate(cell.model_dump() | {"seed": 1})
    assert {cell: "a", other: "b"}[Cell.model_validate(cell.model_dump())] == "a"


def _with(cell: Cell, key: str, value: Any) -> dict[str, Any]:
    tree = cell.model_dump()
    *parents, name = key.split(".")
    section = tree
    for parent in parents:
        section = section[parent]
    section[name] = value
    return tree


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("method.beta", "0.1"),
        ("method.beta", True),
        ("method.beta", float("nan")),
        ("method.beta", 0),
        ("method.batch_size", 1),
        ("method.batch_size", 8.0),
        ("method.warmup_ratio", 1.0),
        ("data.fraction", 0),
        ("data.fraction", 1.1),
        ("data.annotator.flip_rate", -0.1),
        ("data.name", "../elsewhere"),
        ("model.name", ""),
        ("model.hidden_size", 97),
        ("world.gold.content", 0.9),
        ("world.categories", []),
        ("world.categories", ["math", "math"]),
        ("world.categories", ["maths"]),
        ("world.constraint_counts", [0.5, 0.6]),
        ("world.constraint_counts", ["0.5", 0.5]),
        ("judge.preference.decoding.top_p", 0),
        ("judge.split", "train"),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", True),
        ("engine.batch_size", 0),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(cell: Cell, key: str, bad: Any) -> None:
    with pytest.raises(ValidationError):
        Cell.model_validate(_with(cell, key, bad))


def test_whole_numbers_may_stand_for_fractions_and_lists_for_tuples(cell: Cell) -> None:
    assert Cell.model_validate(_with(cell, "method.beta", 1)) == Cell.model_validate(
        _with(cell, "method.beta", 1.0)
    )
    assert Cell.model_validate(_with(cell, "world.categories", ["math"])).world.categories == ("math",)  # type: ignore[union-attr]


def test_all_impossible_combinations_are_found_at_once(cell: Cell) -> None:
    """World model and gold judge on a file; unpaired rows for DPO is the third, of the world's data."""
    tree = cell.model_dump() | {
        "data": {"kind": "local", "name": "mine", "form": "unpaired"},
        "method": {"name": "dpo"},
    }
    assert [field for field, _ in misfits(tree)] == ["model", "judge", "data.form"]
    assert [field for field, _ in misfits(cell.model_dump() | {"world": None})] == ["world"]
    assert misfits(cell.model_dump()) == []


def test_results_lie_where_the_command_then_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: Callable[..., CheckedCommand]
) -> None:
    def results_dir(*words: str) -> Path:
        session = opened(*words).session
        assert isinstance(session, Session)
        return session.results_dir

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_RESULTS", raising=False)
    assert results_dir() == tmp_path / "results"
    monkeypatch.setenv("BENCH_RESULTS", "elsewhere")
    assert results_dir() == tmp_path / "elsewhere"
    assert results_dir("results=here") == tmp_path / "here"
    assert results_dir("results='~/there'") == Path.home() / "there"
