"""A trained model to give away: it loads, writes what the cell's policy wrote, and its card is a card."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import Ran, bench, copy_results, make_model, make_preferences, smoke, smoke_cell, smoke_folder

from bench.records import Completion, read_jsonl, read_logps
from bench.runner import evict
from bench.store.keys import Stage
from bench.store.store import Store


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    out = tmp_path_factory.mktemp("given") / "kto"
    ran = bench("do=export", f"cell={smoke_cell('kto', 0.1).key[:8]}", f"out={out}", results=smoke().results)
    assert ran.code == 0, ran.err
    return ran, out


def test_the_folder_loads_and_is_the_cells_policy(exported: tuple[Ran, Path]) -> None:
    """What it makes of the policy's own samples is what the cell's log-probs say."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = exported
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    scored = smoke_cell("kto", 0.1).score.inputs["kl_policy_logps"]
    assert isinstance(scored, Stage)
    stored = read_logps(smoke_folder(scored))
    samples = smoke_folder(scored.inputs["completions"]) / "completions.jsonl"  # type: ignore[arg-type]
    for sample in list(read_jsonl(samples, Completion))[:5]:
        message = [{"role": "user", "content": sample.turns[0]}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        ids = torch.tensor([prompt + sample.ids[0]])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, :-1]
        summed = logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()
        assert summed.item() == pytest.approx(stored[sample.id].logps, abs=1e-3)


def test_the_card_is_valid_and_says_how_to_make_it_again(exported: tuple[Ran, Path]) -> None:
    from huggingface_hub import ModelCard

    _, out = exported
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.base_model is None  # the world's has no public name
    cell = smoke_cell("kto", 0.1)
    result = json.loads((smoke_folder(cell.score) / "result.json").read_text())["metrics"]
    values = {found.metric_type: found.metric_value for found in card.data.eval_results or []}
    assert values["win_rate"] == result["win_rate"]
    row = f"| win_rate | {result['win_rate']:.6g} | {result['win_rate_low']:.6g} to {result['win_rate_high']:.6g} |"
    recorded = json.loads((smoke_folder(cell.roles["train"]) / "manifest.json").read_text())["recorded"]
    for said in (
        row,
        "python -m bench +sweep=smoke",
        cell.key,
        recorded["revision"],
        f"trl {recorded['packages']['trl']}",
        "from TRL",
        "name: world_smoke",
    ):
        assert said in card.text
    assert str(smoke().results) not in card.content


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    key = smoke_cell("kto", 0.1).key
    results = copy_results(smoke(), tmp_path / "results")
    shutil.copytree(smoke().results / "cells", results / "cells")
    assert evict.evict("numbers", [smoke_cell("kto", 0.1)], Store(results / "store")).stages == 3
    ran = bench("do=export", f"cell={key}", f"out={tmp_path / 'out'}", results=results)
    assert ran.code == 2
    assert "its weights were deleted" in ran.err and "keep=weights" in ran.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    ran = bench("do=export", f"cell={key}", f"out={tmp_path / 'full'}", results=results)
    assert ran.code == 2
    assert "out must be a new or empty folder" in ran.err
    assert "do=export exports one cell" in bench("do=export", f"out={tmp_path / 'out'}", results=results).err


@pytest.mark.slow
def test_control_tokens_of_a_users_model_are_kept(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    model, pairs = (
        make_model(tmp_path / "policy"),
        make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True),
    )
    words = (
        f"model={model}",
        "data=local",
        f"data.path={pairs}",
        "judge=none",
        "method=csft",
        "method.warmup_ratio=0",
    )
    ran = bench(
        *words,
        "data.n_kl_prompts=4",
        "data.kl_max_new_tokens=32",
        "judge.n_items=4",
        results=tmp_path / "results",
    )
    assert ran.code == 0, ran.err + ran.out
    out = tmp_path / "out"
    (cell,) = (path.name for path in (tmp_path / "results" / "cells").glob("csft*"))
    assert bench("do=export", f"cell={cell}", f"out={out}", results=tmp_path / "results").code == 0
    assert AutoConfig.from_pretrained(out).control_tokens[0] == "<|good|>"
    assert len(AutoTokenizer.from_pretrained(out).encode("<|good|>", add_special_tokens=False)) == 1
    card = (out / "README.md").read_text()
    assert "asked with its control token" in card
    assert str(tmp_path) not in card
    start = next(path.name for path in (tmp_path / "results" / "cells").glob("start*"))
    ran = bench("do=export", f"cell={start}", f"out={tmp_path / 'no'}", results=tmp_path / "results")
    assert "nothing was trained for it" in ran.err
