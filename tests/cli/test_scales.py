"""A sweep in every scale: what stands under `world:` and `real:` in its file, and what each scale makes of each sweep."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the hub's client is imported
    sys.path.insert(0, str(Path(__file__).parent.parent))
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nowhere"}

import huggingface_hub.constants
import pytest
from outer import some_outer
from test_compose import write_sweep

from bench.cli.compose import BadConfig, CheckedCommand, open_command
from bench.cli.sweep_files import parts_of
from bench.config import Cell

Open = Callable[..., CheckedCommand]
Problems = Callable[..., list[str]]

TWO_PARTS = """
method: {beta: 0.2}
axes: {method: [dpo, kto]}
expect: [{better: {method: dpo}, worse: {method: kto}}]
world:
  data: {n_prompts: 300}
  expect: [{better: {method: kto}, worse: {method: none}}]
real:
  method: {num_train_epochs: 2.0}
  grids: [{method: [ipo, kto_pair, dpo], method.beta: 0.3}]
"""


def real(model_folder: Path, pairs_file: Path) -> tuple[str, ...]:
    return ("scale=llm", f"model={model_folder}", "data=local", f"data.path={pairs_file}")


def test_a_part_is_merged_over_the_file_for_scales_of_its_kind(
    opened: Open, tmp_path: Path, model_folder: Path, pairs_file: Path
) -> None:
    flag = write_sweep(tmp_path, TWO_PARTS)
    world = opened(flag, "+sweep=mine")
    assert [(cell.method.name, cell.method.beta, cell.data.n_prompts) for cell in world.cells] == [  # type: ignore[union-attr]
        ("dpo", 0.2, 300),
        ("kto", 0.2, 300),
    ]
    assert [one.better["method"] for one in world.expectations] == ["dpo", "kto"]
    done = opened(flag, "+sweep=mine", *real(model_folder, pairs_file))
    methods: list[Any] = [cell.method for cell in done.cells]
    assert [(m.name, m.beta, m.num_train_epochs) for m in methods] == [
        (name, 0.3, 2.0) for name in ("ipo", "kto_pair", "dpo")
    ]
    assert [one.better["method"] for one in done.expectations] == ["dpo"]


def test_settings_of_the_worlds_section_are_no_part() -> None:
    parts = parts_of({"world": {"eval_seed": 3}, "seed": 1}, "x")
    assert parts.common == {"world": {"eval_seed": 3}, "seed": 1} and not parts.of_kind
    parts = parts_of({"world": {"eval_seed": 3, "seed": 2}}, "x")
    assert parts.common == {"world": {"eval_seed": 3}} and parts.of_kind == {"world": {"seed": 2}}


def test_mistakes_in_a_part_are_told_with_their_place(
    problems: Problems, tmp_path: Path, model_folder: Path, pairs_file: Path
) -> None:
    flag = write_sweep(tmp_path, "axes: {seed: [0, 1]}\nreal: {method: {bete: 3}, modell: 1}")
    assert not problems(flag, "+sweep=mine")
    found = problems(flag, "+sweep=mine", *real(model_folder, pairs_file))
    file = tmp_path / "sweep" / "mine.yaml"
    assert any(text.startswith(f"unknown section 'modell' (modell in {file})") for text in found), found
    assert any("'method.bete'" in text and str(file) in text for text in found), found
    write_sweep(tmp_path, "axes: {seed: [0, 1]}\nreal: [1]")
    assert problems(flag, "+sweep=mine") == [
        f"{file}: real must hold sections for scales of that kind, got [1]"
    ]


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("world: {axes: {seed: [0]}}", "scale=zephyr_7b", "is only about the controlled world, got scale=zephyr_7b: use scale=world"),
        ("real: {axes: {seed: [0]}}", "", "is only about pretrained models, got scale="),
        ("axes: {data: world_habits}", "scale=zephyr_7b model.path=DIR", "is for pretrained models, and data=world_habits (data in "),
        ("axes: {seed: [0]}", "scale=llm", "scale=llm is for pretrained models, and model=world_medium and data=world for "),
        ("axes: {seed: [0]}", "scale=llm model=DIR", "scale=llm is for pretrained models, and data=world for the"),
        ("real: {seed: 1}\naxes: {seed: [0]}", "scale=world,llm model=DIR data=world", "world, and scale=llm for pretrained models"),
        ("axes: {seed: [0]}", "scale=zephyr_7b,world_quick", "scale=world_quick is for the controlled world, and scale=zephyr_7b for"),
        ("axes: {seed: [0]}", "scale=world model=zephyr_7b_sft data=world", "and model=zephyr_7b_sft is one of the hub: leave scale out"),
        ("axes: {scale: [world, zephyr_7b]}", "", "world, and scale=zephyr_7b for pretrained models: run one"),
        ("axes: {seed: [0]}", "model=world_small,mistral_7b data=world", "and scale=zephyr_7b (with model=mistral_7b) for p"),
    ],
)  # fmt: skip
def test_a_scale_that_a_sweep_cannot_have_is_one_line(
    problems: Problems, tmp_path: Path, model_folder: Path, text: str, words: str, told: str
) -> None:
    flag = write_sweep(tmp_path, text)
    found = problems(flag, "+sweep=mine", *words.replace("DIR", str(model_folder)).split())
    assert len(found) == 1 and told in found[0], found


@pytest.mark.usefixtures("_nothing_here")
def test_several_scales_of_a_kind_have_each_its_own_cells(
    opened: Open, problems: Problems, tmp_path: Path
) -> None:
    """Also where models bring them; an axis that reads the scale has each scale's own values."""
    text = "axes: {model: '${scale.models}', method: dpo}\nreal: {method: {num_train_epochs: 2.0}}"
    flag, plan = write_sweep(tmp_path, text), ("do=plan", f"results={tmp_path}")
    cells = opened(flag, "+sweep=mine", "scale=zephyr_7b,llama3_8b", *plan).cells
    assert [cell.model.name for cell in cells] == ["zephyr_7b_sft", "llama3_8b_sft"]
    assert [cell.method.num_train_epochs for cell in cells] == [2, 2]  # type: ignore[union-attr]
    both, *alone = (
        opened("+sweep=pref_tuning", f"scale={scales}", *plan).cells
        for scales in ("zephyr_7b,openhermes", "zephyr_7b", "openhermes")
    )
    assert set(both) == {*alone[0], *alone[1]} and len(both) == 60
    write_sweep(tmp_path, "axes: {seed: [0]}\nreal: {axes: {method: [dpo, ipo]}}")
    words = (flag, "+sweep=mine", "data=ultrafeedback_binarized", *plan)
    of_models = opened(*words, "model=mistral_7b,openhermes_2_5").cells
    assert [(cell.model.name, cell.method.name) for cell in of_models] == [
        (model, method) for model in ("mistral_7b", "openhermes_2_5") for method in ("dpo", "ipo")
    ]
    write_sweep(tmp_path, "axes: {scale: [phi_2, phi_3_medium], method: dpo}\nreal: {seed: 7}")
    cells = opened(flag, "+sweep=mine", *plan).cells
    assert [(cell.model.name, cell.seed) for cell in cells] == [("phi_2_sft", 7), ("phi_3_medium", 7)]


# Every sweep at every scale -------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent.parent
TABLE = ROOT / "tests" / "golden" / "scales.json"
SWEEPS, SCALES = (
    sorted(path.stem for path in (ROOT / folder).glob("*.yaml")) for folder in ("sweeps", "conf/scale")
)
# The scales of the experiments that sweeps/README.md lists; the others are compared in the slow test.
PAPERS = {
    "dpo_after_sft": ["llama2_7b", "llama2_7b_chinese"],
    "halos": ["archangel"],
    "imbalance": ["archangel"],
    "kto_beta": ["llama3_8b"],
    "length_bias": ["zephyr_7b"],
    "pref_tuning": ["zephyr_7b", "openhermes"],
    "self_rewarding": ["llama2_70b", "llama2_7b"],
    "simpo_table": ["zephyr_7b", "llama3_8b", "llama3_8b_instruct"],
    "spa": ["zephyr_7b", "world_quick"],
    "spa_ablation": ["zephyr_7b"],
    "spa_models": [""],
    "spa_no_seed": [""],
    "spa_seed_fraction": ["zephyr_7b"],
    "spin": ["zephyr_7b"],
}


def told(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(f"{v:g}" if isinstance(v, float) else str(v) for v in values))


def facts(cells: Sequence[Cell]) -> str:
    """What a command's cells do, as far as a paper prints it; a number that differs between cells has its values."""
    methods: list[Any] = [cell.method for cell in cells]
    loops = [method for method in methods if hasattr(method, "iteration")]
    judges: list[Any] = [cell.judge for cell in cells]
    lengths = (getattr(judge, "decoding", None) or judge.preference.decoding for judge in judges)
    found = {
        "cells": str(len(cells)),
        "models": told(cell.model.name for cell in cells),
        "data": told(cell.data.name for cell in cells),
        "sft": told(cell.sft.name for cell in cells if cell.sft),
        "fractions": told(cell.data.fraction for cell in cells),
        "rates": told(f"{m.name} {m.learning_rate:g}" for m in methods),
        "betas": told(
            f"{m.name} {told([getattr(m, 'betas', m.beta)])}" for m in methods if hasattr(m, "beta")
        ),
        "rows a step": told(m.batch_size * m.gradient_accumulation_steps for m in methods),
        "schedule": told(f"{m.optimizer} {m.lr_scheduler_type}, warm-up {m.warmup_ratio:g}" for m in methods),
        "epochs": told(m.num_train_epochs for m in methods),
        "rounds": told(m.iteration for m in loops),
        "prompts of a round": told(m.n_prompts for m in loops),
        "tokens of a sample": told(m.sample_max_new_tokens for m in loops),
        "judge": told(f"{cell.judge.name}" for cell in cells),
        "judged tokens": told(length.max_new_tokens for length in lengths),
        "seeds": told(cell.seed for cell in cells),
    }
    return "; ".join(f"{name}: {text}" for name, text in found.items() if text)


def composed(sweep: str, scale: str, results: Path) -> str:
    """What a sweep is at a scale, planned with nothing but this checkout: its facts, or what the door says."""
    words = [f"+sweep={sweep}", *([f"scale={scale}"] if scale else []), "do=plan", f"results={results}"]
    try:
        return facts(open_command(words).cells)
    except BadConfig as error:
        return f"refused: {' | '.join(error.problems)}"


@pytest.fixture
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("_nothing_here")
@pytest.mark.parametrize("sweep", some_outer(PAPERS, ["dpo_after_sft", "spin", "pref_tuning"]))
def test_a_papers_experiment_has_its_settings(sweep: str, tmp_path: Path) -> None:
    """The table in golden/scales.json, which `python tests/cli/test_scales.py [SWEEP ...] [SCALE ...]` writes anew."""
    table = json.loads(TABLE.read_text())[sweep]
    assert {scale: composed(sweep, scale, tmp_path) for scale in PAPERS[sweep]} == {
        scale: table[scale] for scale in PAPERS[sweep]
    }


def test_every_experiment_of_the_readme_is_in_the_table() -> None:
    rows = [line for line in (ROOT / "sweeps" / "README.md").read_text().splitlines() if "`+sweep=" in line]
    assert len(rows) > 8
    for row in rows:
        (sweep, *_), scales = re.findall(r"\+sweep=(\w+)", row), re.findall(r"\bscale=(\w+)", row)
        assert set(scales or [""]) <= set(PAPERS[sweep]), row


def test_the_readme_lists_the_planned_settings_beside_the_papers() -> None:
    table = json.loads(TABLE.read_text())
    row = re.compile(r"\| `\+sweep=(\w+) scale=(\w+)` \| (\w[\w ]*: .+?) \| .+ \|")
    listed = row.findall((ROOT / "sweeps" / "README.md").read_text())
    assert len(listed) == 9
    for sweep, scale, settings in listed:
        assert scale in PAPERS[sweep]
        assert set(settings.split("; ")) <= set(table[sweep][scale].split("; ")), (sweep, scale)


def test_every_sweep_at_every_scale_is_an_experiment_or_says_what_it_needs() -> None:
    """The same table: a sweep is of one world, and what it lacks is a line (two where model and data are missing)."""
    table = json.loads(TABLE.read_text())
    assert sorted(table) == SWEEPS
    for sweep, by_scale in table.items():
        assert sorted(scale for scale in by_scale if scale) == SCALES, sweep
        for scale, found in by_scale.items():
            if found.startswith("refused: "):
                assert len(problems := found.split(" | ")) <= 2, (sweep, scale, found)
                assert all(len(problem) < 200 for problem in problems), (sweep, scale, found)
            elif scale and not scale.startswith("world"):
                assert "world" not in found, (sweep, scale)


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_here")
@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_table_of_every_sweep_at_every_scale_is_true(sweep: str, tmp_path: Path) -> None:
    for scale, found in json.loads(TABLE.read_text())[sweep].items():
        assert composed(sweep, scale, tmp_path) == found, scale


if __name__ == "__main__":
    table, names = json.loads(TABLE.read_text()) if TABLE.exists() else {}, sys.argv[1:]
    for sweep in [name for name in names if name in SWEEPS] or SWEEPS:
        scales = [name for name in names if name in SCALES] or {*SCALES, *PAPERS.get(sweep, [])}
        found = {scale: composed(sweep, scale, Path("/nowhere")) for scale in scales}
        table[sweep] = dict(sorted((table.get(sweep, {}) | found).items()))
        TABLE.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
