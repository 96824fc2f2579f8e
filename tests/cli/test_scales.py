"""A sweep in every scale: what stands under `world:` and `real:` in its file, and what each scale makes of each sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_compose import write_sweep

from bench.cli.compose import CheckedCommand
from bench.cli.sweep_files import parts_of

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
        ("axes: {data: world_habits}", "scale=zephyr_7b", "scale=zephyr_7b is for pretrained models, and data=world_habits (data in "),
        ("axes: {seed: [0]}", "scale=llm", "scale=llm is for pretrained models, and model=world_medium and data=world for "),
        ("axes: {seed: [0]}", "scale=llm model=DIR", "scale=llm is for pretrained models, and data=world for the"),
        ("real: {seed: 1}\naxes: {seed: [0]}", "scale=world,llm model=DIR data=world", "has settings of its own for pretrained models: "),
    ],
)  # fmt: skip
def test_a_scale_that_a_sweep_cannot_have_is_one_line(
    problems: Problems, tmp_path: Path, model_folder: Path, text: str, words: str, told: str
) -> None:
    flag = write_sweep(tmp_path, text)
    found = problems(flag, "+sweep=mine", *words.replace("DIR", str(model_folder)).split())
    assert len(found) == 1 and told in found[0], found
