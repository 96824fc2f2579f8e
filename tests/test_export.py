"""A trained model to give away: it loads, writes what the cell's policy wrote, and its card is a card."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import Ran, bench, copy_results, smoke, smoke_cell, smoke_folder

from bench import keep
from bench.store import Store


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    out = tmp_path_factory.mktemp("given") / "kto"
    ran = bench("do=export", f"cell={smoke_cell('kto', 0.1).key[:8]}", f"out={out}", results=smoke().results)
    assert ran.code == 0, ran.err
    return ran, out


def test_the_folder_loads_and_writes_what_the_cell_wrote(exported: tuple[Ran, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = exported
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template
    completions = smoke_folder(smoke_cell("kto", 0.1).roles["preference_completions"])
    first = json.loads((completions / "completions.jsonl").read_text().splitlines()[0])
    message = [{"role": "user", "content": first["turns"][0]}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    n = len(first["ids"][0])
    decoding = smoke_cell("kto", 0.1).roles["preference_completions"].settings.decoding  # type: ignore[attr-defined]
    assert decoding.temperature == 0
    with torch.no_grad():
        written = model.generate(ids, max_new_tokens=n, do_sample=False)[0, ids.shape[1] :].tolist()
    assert written == first["ids"][0]


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
        "Deviation from TRL",
        "name: world_smoke",
    ):
        assert said in card.text
    assert str(smoke().results) not in card.content


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    key = smoke_cell("kto", 0.1).key
    results = copy_results(smoke(), tmp_path / "results")
    shutil.copytree(smoke().results / "cells", results / "cells")
    assert keep.evict("numbers", [smoke_cell("kto", 0.1)], Store(results / "store")).stages == 3
    ran = bench("do=export", f"cell={key}", f"out={tmp_path / 'out'}", results=results)
    assert ran.code == 2
    assert "its weights were evicted" in ran.err and "keep=weights" in ran.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    ran = bench("do=export", f"cell={key}", f"out={tmp_path / 'full'}", results=results)
    assert ran.code == 2
    assert "out must be a new or empty folder" in ran.err
    assert "do=export exports one cell" in bench("do=export", f"out={tmp_path / 'out'}", results=results).err
