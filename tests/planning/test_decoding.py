"""How long the completions are that a judge gets and that KL is measured on, for every judge and scale."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from outer import some_outer

from bench import methods
from bench.cli.compose import open_command
from bench.cli.words import CONF
from bench.config import JUDGES, evaluated
from bench.planning.cells import plan_cell
from bench.store.stage_settings import GenerateSettings

Problems = Callable[..., list[str]]

SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
# (tokens, temperature) of the judged completions at a real scale
BENCHMARKS = {
    "alpaca_eval": (2048, 0.7),
    "alpaca_eval_gpt4": (2048, 0.7),
    "local": (2048, 0.7),
    "reward_model": (2048, 0.7),
    "pair_ranker": (2048, 0.7),
    "jury": (2048, 0.7),
    "mt_bench": (1024, 0.7),
    "arena_hard": (4096, 0.0),
}
JURY = "judge.judges={a: {judge: alpaca_eval, model: x}, b: {judge: alpaca_eval, model: y}}"


def generated(*words: str) -> list[dict[str, GenerateSettings]]:
    """The generate stages' settings by label, for each cell of a command."""
    opened = open_command(words)
    plans = [
        plan_cell(cell, sources, methods.chain)
        for cell, sources in zip(opened.cells, opened.sources, strict=True)
    ]
    return [
        {s.label: s.settings for s in plan.stages if isinstance(s.settings, GenerateSettings)}
        for plan in plans
    ]


@pytest.fixture
def own(model_folder: Path, pairs_file: Path, tmp_path: Path) -> tuple[str, ...]:
    """Words for a model and data of the user's."""
    (model_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return (
        f"model={model_folder}",
        "data=local",
        f"data.path={pairs_file}",
        f"results={tmp_path}",
        "method=dpo",
    )


def judged_by(judge: str, model: Path, tmp_path: Path) -> list[str]:
    """Words for a judge with a file of items in its benchmark's form."""
    items = tmp_path / f"{judge}.json"
    if judge == "mt_bench":
        items.write_text(json.dumps({"question_id": 1, "category": "math", "turns": ["a", "b"]}))
    else:
        items.write_text(json.dumps([{"instruction": "a", "output": "b", "generator": "c"}]))
    folder = judge in ("local", "reward_model", "pair_ranker")
    judging = JURY if judge == "jury" else f"judge.model={model if folder else 'x'}"
    return [f"judge={judge}", f"judge.items={items}", judging]


def test_every_judge_is_listed_here() -> None:
    assert {path.stem for path in (CONF / "judge").glob("*.yaml")} - {
        "suite",
        "alignment_suite",
        "open_suite",
    } == {
        *BENCHMARKS,
        "gold",
        "none",
    }


@pytest.mark.parametrize("judge", some_outer(BENCHMARKS, ["alpaca_eval", "mt_bench", "jury", "pair_ranker"]))
def test_a_real_model_is_judged_as_its_benchmark_judges(
    judge: str, own: tuple[str, ...], tmp_path: Path
) -> None:
    """At a real scale: the benchmark's own length and temperature; KL's length is the data's."""
    model = Path(own[0].removeprefix("model="))
    cells = generated(*own, *judged_by(judge, model, tmp_path), "scale=llm,zephyr_7b")
    assert len(cells) == 2
    for stages in cells:
        kl, judged = stages.pop("samples for KL"), list(stages.values())
        assert [(s.decoding.max_new_tokens, s.decoding.temperature) for s in judged] == [BENCHMARKS[judge]]
        assert (kl.decoding.max_new_tokens, kl.decoding.temperature) == (256, 1.0)
    if judge == "mt_bench":
        assert judged[0].temperatures["math"] == 0.0 and judged[0].temperatures["writing"] == 0.7
    facts = JUDGES[str(OmegaConf.load(CONF / "judge" / f"{judge}.yaml").get("name", "alpaca_eval"))]
    assert facts.answer_tokens == BENCHMARKS[judge][0]


def test_every_scale_has_the_lengths_of_its_kind() -> None:
    for scale in SCALES:
        config = OmegaConf.load(CONF / "scale" / f"{scale}.yaml")
        if scale not in ("llm", "world"):  # a preset of a paper changes no length of a benchmark
            assert (config.defaults[0] == "world") == (
                scale == "world_quick"
            )  # others begin at llm, or at one that does
            assert not {"judged_tokens", "judged_temperature"} & set(config)


@pytest.mark.parametrize("judge", some_outer(BENCHMARKS, ["alpaca_eval_gpt4", "mt_bench", "reward_model"]))
def test_the_worlds_prompts_have_the_worlds_length_at_any_scale(
    judge: str, own: tuple[str, ...], tmp_path: Path
) -> None:
    model = Path(own[0].removeprefix("model="))
    words = [word for word in judged_by(judge, model, tmp_path) if not word.startswith("judge.items")]
    of_world = ("data=world", "method=dpo", f"results={tmp_path}", *words, "judge.items=null")
    cells = generated(*of_world, own[0], "scale=world") + generated(*of_world, own[0], "scale=llm")
    cells += generated(*of_world, "model=world_small")
    long = 2048 if judge == "alpaca_eval_gpt4" else 48  # the published annotator's length stands in its file
    for stages in cells:
        assert {
            (s.decoding.max_new_tokens, s.decoding.temperature)
            for label, s in stages.items()
            if label != "samples for KL"
        } == {(long, 0.7)}


def test_items_of_a_user_are_not_answered_in_the_worlds_length(
    own: tuple[str, ...], tmp_path: Path, problems: Problems
) -> None:
    model = Path(own[0].removeprefix("model="))
    for judge in ("mt_bench", "jury"):
        words = (*own, *judged_by(judge, model, tmp_path), "scale=world")
        (problem,) = problems(*words)
        n = BENCHMARKS[judge][0]
        assert problem.startswith(f"judge.items={tmp_path / judge}.json would be answered in 48 tokens")
        assert problem.endswith(f"or set judge.decoding.max_new_tokens={n}") and "scale=llm" in problem
        assert problems(*words, "judge.decoding.max_new_tokens=48") == []
        completions = tmp_path / "completions.jsonl"
        completions.write_text('{"prompt": "a", "completion": "b"}\n')
        assert problems(*words[-4:], f"completions={completions}", f"results={tmp_path}") == []


def test_a_length_that_is_set_wins_and_kl_keeps_its_own(own: tuple[str, ...], tmp_path: Path) -> None:
    words = (*own, *judged_by("mt_bench", tmp_path, tmp_path))
    (stages,) = generated(*words, "judge.decoding.max_new_tokens=100")
    assert {label: s.decoding.max_new_tokens for label, s in stages.items()} == {
        "samples for KL": 256,
        "rating completions": 100,
    }
    (longer,) = generated(*words, "data.kl_max_new_tokens=2048")
    assert longer["samples for KL"].decoding.max_new_tokens == 2048
    assert longer["rating completions"].decoding.max_new_tokens == 1024


def test_each_evaluation_of_a_suite_has_its_own_length(
    own: tuple[str, ...], tmp_path: Path, problems: Problems
) -> None:
    names = ("alpaca_eval", "mt_bench", "arena_hard")
    words = [*own, f"judge=[{','.join(names)}]", "judge.model=x"]
    for name in names:
        judged_by(name, tmp_path, tmp_path)
        words.append(f"judge.judges.{name}.items={tmp_path / name}.json")
    (cell,) = open_command(words).cells
    assert {label: one.judge.decoding.max_new_tokens for label, one in evaluated(cell).items()} == {
        name: BENCHMARKS[name][0] for name in names
    }
    found = problems(*words, "scale=world")
    assert [problem.partition("=")[0] for problem in found] == [
        f"judge.judges.{name}.items" for name in names
    ]
    of_world = [word for word in words if ".items=" not in word and not word.startswith(("data", "scale"))]
    (cell,) = open_command([*of_world, "data=world"]).cells
    assert {one.judge.decoding.max_new_tokens for one in evaluated(cell).values()} == {48}
