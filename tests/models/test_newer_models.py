"""Start models of today: a tiny folder of each architecture opens, and its rows are what its template writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import PLANNED, make
from tiny import make_preferences, plans, write_rows

from bench.forecast.row_counts import data_lines
from bench.models.tokenize import load_tokenizer, prompt_ids
from bench.store.store import Store

# A model of conf/model/ for each architecture.
NAMES = {
    "qwen3": "qwen3_0_6b",
    "gemma2": "gemma2_2b_it",
    "gemma3_text": "gemma3_1b_it",
    "olmo2": "olmo2_1b_sft",
}


@pytest.mark.parametrize("name", PLANNED)
def test_a_folder_of_the_architecture_opens_under_its_name(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path / name)
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True, n=20)
    *_, cell = plans(
        f"model={NAMES[name]}", f"model.path={folder}", "model.hub=null", "data=local", f"data.path={data}",
        "data.heldout_fraction=0.3", "method=dpo", "model.max_length=64", f"results={tmp_path / 'results'}",
    )  # fmt: skip
    lines, refusals = data_lines([cell], Store(tmp_path / "store"))
    assert not refusals and lines[0].startswith(f"{cell.cell.data.name}: ")


def test_qwen3_is_asked_and_taught_without_a_thought(tmp_path: Path) -> None:
    from bench.cli.folders import template_file

    tokenizer = load_tokenizer(make("qwen3", tmp_path / "qwen3"))
    tokenizer.chat_template = template_file("qwen3").read_text()
    asked = tokenizer.decode(prompt_ids(tokenizer, [{"role": "user", "content": "Why?"}]))
    assert asked == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    taught = str(tokenizer.apply_chat_template(turns, tokenize=False))
    assert taught.count("<think>") == 1 and taught.endswith("<think>\n\n</think>\n\nb<|im_end|>\n")


def test_gemma_takes_no_system_message(tmp_path: Path) -> None:
    folder = make("gemma2", tmp_path / "gemma2")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    plain = [{"prompt": turns[1:] if i else turns, **answers} for i in range(30)]
    for i, row in enumerate(plain[1:]):
        row["prompt"] = [{"role": "user", "content": f"Why {i}?"}]
    data = write_rows(tmp_path / "pairs.jsonl", plain)
    words = (
        f"model={folder}", "data=local", f"data.path={data}", "data.heldout_fraction=0.3", "method=dpo",
        "model.max_length=64", f"results={tmp_path / 'results'}",
    )  # fmt: skip
    (_, refusals), (lines, none) = (
        data_lines(plans(*words, f"data.unwritable={way}"), Store(tmp_path / "store"))
        for way in ("refuse", "drop")
    )
    assert "System role not supported" in refusals[0] and not none
    assert any("1 not writable with the chat template" in line for line in lines)
