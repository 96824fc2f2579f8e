"""A golden key for every method and every judge: what their settings, chains and stages come to in the controlled world.

After adding one:

    python tests/planning/test_choices.py

writes the lines that are missing and changes none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench import methods
from bench.cli.sweep_files import CONF, register_sweeps
from bench.config import JUDGES, METHODS, Cell, GoldJudge, Written
from bench.planning.cells import plan_cell
from bench.planning.inputs import JudgeSources, Sources
from bench.store.keys import Source

GOLDEN = Path(__file__).parent.parent / "golden"
CHOICES = [f"method/{name}" for name, kind in METHODS.items() if kind is not Written] + [
    f"judge/{name}" for name in JUDGES
]
ASKED = Source(Path("/prompts"), "digest of prompts")
MODEL = Source(Path("/models/judge"), "digest of a judging model")


def section(group: str, name: str) -> dict[str, Any]:
    """A choice of a group as it is composed; what it must be told is told."""
    register_sweeps()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", overrides=[f"{group}={name}"])
    found: Any = OmegaConf.to_container(
        OmegaConf.create({"scale": whole.scale, group: whole[group]}), resolve=True
    )
    told = {"model": "/models/judge"} if found[group].get("model") == "???" else {}
    return dict(found[group]) | told


def key(choice: str) -> str:
    """The key of a cell of keys.json with another method or judge."""
    group, _, name = choice.partition("/")
    cell = json.loads((GOLDEN / "keys.json").read_text(encoding="utf-8"))["world"]["cell"]
    chosen = section(group, name)
    if chosen.get("judges") == "???":
        chosen["judges"] = {
            label: section("judge", member)
            for label, member in (("truth", "gold"), ("reward", "reward_model"))
        }
    judged_by_folder = JUDGES[name].classifier if group == "judge" else None
    judge = JudgeSources(ASKED, "parser", MODEL if judged_by_folder else None)
    if group == "judge" and JUDGES[name].of_several:
        judge = JudgeSources(None, "", members={"reward": JudgeSources(ASKED, "parser", MODEL)})
    is_asked = group == "judge" and JUDGES[name] is not GoldJudge
    return plan_cell(
        Cell.model_validate(cell | {group: chosen}), Sources(judge=judge if is_asked else None), methods.chain
    ).key


def golden() -> dict[str, str]:
    return json.loads((GOLDEN / "choices.json").read_text(encoding="utf-8"))


def test_every_method_and_judge_has_a_golden_line() -> None:
    assert set(golden()) == set(CHOICES), "python tests/planning/test_choices.py"


@pytest.mark.parametrize("choice", CHOICES)
def test_the_key_of_a_choice_is_what_it_was(choice: str) -> None:
    assert key(choice) == golden()[choice]


if __name__ == "__main__":
    known = golden() if (GOLDEN / "choices.json").exists() else {}
    lines = {choice: known.get(choice) or key(choice) for choice in CHOICES}
    (GOLDEN / "choices.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
