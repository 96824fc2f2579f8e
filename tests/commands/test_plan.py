"""do=plan of cells whose rows or prompts a model has to write first, and of cells without labelled rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_model, make_preferences, write_rows

from bench.cli.compose import open_command
from bench.commands import plan

LOOP = ("method.n_prompts=20", "method.iteration=1")
SPA = ("method=spa", "data.fraction=0", "method.seed_training=null", "method.judging_reference=base", *LOOP)
COMMANDS = {
    "prompts that a model writes": (
        "data=local",
        "method=self_rewarding",
        "method.new_prompts=self_instruct",
        "method.iteration=2",
    ),
    "spa without a label": ("data=local", *SPA, "method.prompts=PROMPTS"),
    "spin without a label": ("data=local", "method=spin", "data.fraction=0", *LOOP, "method.prompts=PROMPTS"),
    "spa on a dataset's prompts": ("data=dataset", "data.train_files=[rows.jsonl]", *SPA),
    "spa on a dataset's prompts, train rows dropped": (
        "data=dataset",
        "data.train_files=[rows.jsonl]",
        "data.overlap=drop",
        *SPA,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    make_model(place / "model")
    make_preferences(place / "rows.jsonl", paired=True, messages=True)
    asked = [
        {
            "prompt": [{"role": "user", "content": f"ask {n}"}],
            "completion": [{"role": "assistant", "content": "yes"}],
        }
        for n in range(60)
    ]
    write_rows(place / "prompts.jsonl", asked)
    (place / "items.json").write_text(json.dumps([{"instruction": "a b", "output": "c"}]))
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_a_plan_needs_no_rows_that_are_not_there(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = place / "prompts.jsonl"
    words = [word.replace("PROMPTS", str(prompts)) for word in COMMANDS[name]]
    words += [
        f"model={place / 'model'}",
        f"model.base={place / 'model'}",
        f"data.path={place / 'rows.jsonl'}",
    ]
    words += ["judge=alpaca_eval", "judge.model=gpt-4.1", f"judge.items={place / 'items.json'}"]
    assert plan.main(open_command([*words, "do=plan", "size=stages", f"results={place / 'results'}"])) == 0
    shown = capsys.readouterr().out
    assert "tokens   at most" in shown and "GPU-hours" in shown
