"""What all methods have in common: a chain on common ground, a scale for rewards, a learning rate in every preset."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny import plans

from bench import methods
from bench.config import NEEDS_PAIRS
from bench.plan import CellPlan

TRAINED = [name for name in methods.NAMES if name != "none"]


@pytest.fixture(scope="module")
def cells() -> dict[str, CellPlan]:
    return {cell.cell.method.name: cell for cell in plans(f"method={','.join(TRAINED)}")}


def test_every_method_trains_from_one_start_on_the_same_rows_and_reference(cells: dict[str, CellPlan]) -> None:
    assert set(cells) == {*TRAINED, "none"}
    trained = [cells[name].roles["train"] for name in TRAINED]
    assert len({stage.key for stage in trained}) == len(TRAINED)
    for role in ("model", "preferences", "reference_logps"):
        assert len({stage.inputs[role] for stage in trained}) == 1


def test_rewards_of_a_method_without_beta_are_in_nats(cells: dict[str, CellPlan]) -> None:
    scales = {name: cells[name].score.settings.beta for name in cells}  # type: ignore[attr-defined]
    assert scales["none"] is None
    assert {name for name, scale in scales.items() if scale == 1.0} == {"sft_chosen", "slic", "orpo", "csft", "offline_ppo"}
    assert (scales["dpo"], scales["cpo"], scales["simpo"]) == (0.1, 0.1, 2.0)


@pytest.mark.parametrize("preset", ["world", "llm"])
def test_a_scale_preset_has_a_learning_rate_for_every_method(preset: str) -> None:
    text = (Path(__file__).parents[2] / "conf" / "scale" / f"{preset}.yaml").read_text()
    assert set(yaml.safe_load(text)["learning_rate"]) == set(TRAINED)


def test_which_methods_need_pairs() -> None:
    assert set(TRAINED) - {"kto", "csft", "offline_ppo"} == NEEDS_PAIRS
