"""What all methods have in common: a chain on common ground, a scale for rewards, a learning rate in every preset."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny import plans

from bench.cli.sweep_files import register_sweeps
from bench.config import METHODS, is_loop
from bench.planning.inputs import CellPlan
from bench.store.keys import Stage, canonical_json

TRAINED = [name for name, kind in METHODS.items() if kind.trains]
ONE_SHOT = [name for name in TRAINED if not is_loop(name)]


@pytest.fixture(scope="module")
def cells() -> dict[str, CellPlan]:
    return {cell.cell.method.name: cell for cell in plans(f"method={','.join(TRAINED)}")}


def test_every_method_trains_from_one_start_on_the_same_rows_and_reference(
    cells: dict[str, CellPlan],
) -> None:
    assert set(cells) == {*TRAINED, "none"}
    trained = [cells[name].roles["train"] for name in ONE_SHOT]
    assert len({stage.key for stage in trained}) == len(ONE_SHOT)
    for role in ("model", "preferences"):
        assert len({stage.inputs[role] for stage in trained}) == 1
    assert len({stage.inputs["reference_logps"] for stage in trained if stage.label != "reward model"}) == 1


def test_rewards_of_a_method_without_beta_are_in_nats(cells: dict[str, CellPlan]) -> None:
    scales = {name: cells[name].score.settings.beta for name in cells}  # type: ignore[attr-defined]
    assert scales["none"] is scales["best_of_n"] is None  # the latter's are its reward model's
    assert {name for name, scale in scales.items() if scale == 1.0} == {
        "sft_chosen",
        "slic",
        "orpo",
        "csft",
        "offline_ppo",
    }
    assert (scales["dpo"], scales["cpo"], scales["simpo"]) == (0.1, 0.1, 2.0)


def test_whatever_reads_csfts_policy_asks_with_its_control_token_and_nothing_else_does(
    cells: dict[str, CellPlan],
) -> None:
    for name, cell in cells.items():
        policy = cell.roles.get("train")
        asked = {stage.label for stage in cell.stages if getattr(stage.settings, "control", None) is not None}
        assert {getattr(stage.settings, "control", None) for stage in cell.stages} <= {None, "<|good|>"}
        readers = (
            {stage.label for stage in cell.stages if policy in stage.inputs.values()} if policy else set()
        )
        assert asked == (readers if name == "csft" else set())
    assert (
        len(asked_by_csft := [s for s in cells["csft"].stages if getattr(s.settings, "control", None)]) == 5
    )
    assert {stage.kind for stage in asked_by_csft} == {"generate", "logps"}


def test_a_control_token_moves_keys_and_its_absence_does_not(cells: dict[str, CellPlan]) -> None:
    stage = next(s for s in cells["csft"].stages if s.kind == "generate")
    without = Stage(
        stage.kind,
        stage.version,
        stage.settings.model_copy(update={"control": None}),
        stage.inputs,
        stage.label,
    )
    assert without.key != stage.key
    assert "control" not in canonical_json(without.settings) and "<|good|>" in canonical_json(stage.settings)


CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("preset", ["world", "llm"])
def test_a_scale_preset_has_a_learning_rate_for_every_method(preset: str) -> None:
    for name in TRAINED:
        rates = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())["rates"]
        assert preset in rates, name
        assert set(rates) <= {path.stem for path in (CONF / "scale").glob("*.yaml")}, name


@pytest.mark.parametrize(
    ("scale", "rates"),
    [
        ("world_quick", {"dpo": 1e-3, "slic": 3e-4}),  # its base's
        ("phi_2", {"dpo": 5e-6, "iterative_dpo": 5e-6, "cpo": 5e-7}),  # its own, its base's
        ("archangel", {"kto": 5e-7, "orpo": 5e-7, "simpo": 3e-7}),
    ],
)
def test_a_scale_made_from_another_has_its_own_rates_and_else_that_ones(
    scale: str, rates: dict[str, float]
) -> None:
    register_sweeps()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=[f"scale={scale}", "method=dpo"]))
    assert isinstance(config, dict) and set(config["scale"]["learning_rate"]) == set(TRAINED)
    assert {name: config["scale"]["learning_rate"][name] for name in rates} == rates
    assert "rates" not in config["method"]


def test_which_methods_need_pairs() -> None:
    assert set(TRAINED) - {"kto", "csft", "offline_ppo"} == {
        name for name, kind in METHODS.items() if kind.needs_pairs()
    }
