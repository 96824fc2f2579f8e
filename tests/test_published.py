"""The whole path over public datasets in small: a base model's folder, SFT on conversations, pairs, overlap, DPO, KTO and a loop."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from outer import outer
from published import publish
from tiny import bench, make_model

from bench.readers.rows import raw_rows
from bench.records import Completion, Item, read_jsonl, read_rows
from bench.store.stage_settings import LocalPairData, NextPromptData
from bench.store.store import Manifest, read_manifest

SFT = "sft.training={learning_rate:1e-3,num_train_epochs:1.0,batch_size:8,gradient_accumulation_steps:1,warmup_ratio:0.1}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A tiny base model, UltraChat for its SFT, UltraFeedback, AlpacaEval's items of which two are asked in training too."""
    root = tmp_path_factory.mktemp("published")
    pairs = publish(root / "uf", "ultrafeedback_binarized", 48, traps=True, n_heldout=12)
    model = (f"model.path={make_model(root / 'base')}", "model=local", "model.max_length=128")
    sft = ("sft=ultrachat_200k", f"sft.path={publish(root / 'uc', 'ultrachat_200k', 24)}", SFT)
    data = (
        "data=ultrafeedback_binarized",
        f"data.path={pairs}",
        "data.fraction=0.5",
        "data.n_kl_prompts=4",
        "data.kl_max_new_tokens=8",
    )
    small = (
        "method.batch_size=4",
        "method.gradient_accumulation_steps=1",
        "method.warmup_ratio=0",
        "hydra.launcher.workers=1",
    )
    return (*model, *sft, *data, *small, "judge.decoding.max_new_tokens=8")


def manifests(results: Path, settings: str) -> list[tuple[Path, Manifest]]:
    found = [
        path
        for path in results.glob("store/*/*/manifest.json")
        if json.loads(path.read_text())["settings"].get("source") == settings
    ]
    return [(path.parent, read_manifest(path)) for path in found]


@pytest.mark.slow
@pytest.mark.essential
def test_a_base_model_is_tuned_and_learns_from_pairs_by_dpo_kto_and_a_loop(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    planned = bench(*words, "method=dpo,kto", "judge.n_items=4", "do=plan", results=results)
    assert planned.code == 0, planned.err
    assert (
        "ultrafeedback_binarized: 24 train rows of 24 prompts (fraction 0.5 of 49), 12 held out"
        in planned.out
    )
    assert "dropped: 1 empty completion, 1 same completions; kept with a note: 1 equal scores" in planned.out
    assert "ultrachat_200k: 24 conversations of 24 read" in planned.out
    assert not results.exists(), "a plan runs nothing"
    ran = bench(*words, "method=dpo,kto", "judge.n_items=4", results=results)
    assert ran.code == 0, ran.err[-3000:] + ran.out
    loop = (
        "method=spa",
        "method.iteration=1",
        "method.n_prompts=8",
        "method.sample_max_new_tokens=8",
        "judge.n_items=4",
    )
    looped = bench(*words, *loop, results=results)
    assert looped.code == 0, looped.err[-3000:] + looped.out
    starts = list(results.glob("store/sft/*/manifest.json"))
    assert len(starts) == 1, "every method starts from one model"
    assert json.loads(starts[0].read_text())["counts"]["steps"] == 3
    ((prompts, _),) = manifests(results, NextPromptData.model_fields["source"].default)
    local = manifests(results, LocalPairData.model_fields["source"].default)
    labelled = [found for found, manifest in local if manifest.counts["train"] == 24]
    asked = {row.prompt[-1]["content"] for row in read_rows(labelled[0] / "train.jsonl")}
    new = {item.turns[0] for item in read_jsonl(prompts / "items.jsonl", Item)}
    assert len(new) == 8 and not new & asked
    for table in results.glob("sweeps/*/table.csv"):
        assert "reward_accuracy" in table.read_text().splitlines()[0]
    written = [
        row
        for path in results.glob("store/generate/*/completions.jsonl")
        for row in read_jsonl(path, Completion)
    ]
    assert written and all(row.completions for row in written)


@outer
def test_the_plan_counts_the_tokens_of_every_conversation(words: tuple[str, ...], tmp_path: Path) -> None:
    """Also where they are more than are looked at for their length."""

    def tokens(n: int) -> int:
        own = [word for word in words if not word.startswith("sft.path=")]
        path = f"sft.path={publish(tmp_path / str(n), 'ultrachat_200k', n)}"
        said = bench(*own, path, "method=dpo", "do=plan", "hardware=h100", results=tmp_path / "results").out
        return int(re.search(r"^sft +1 +([\d,]+)", said, re.MULTILINE)[1].replace(",", ""))  # type: ignore[index]

    assert 3.6 < tokens(960) / tokens(240) < 4.4


@outer
def test_the_plan_says_what_the_judge_asks_too(words: tuple[str, ...], tmp_path: Path) -> None:
    pairs = Path(next(word for word in words if word.startswith("data.path=")).partition("=")[2])
    train = next(pairs.glob("data/train_prefs-*"))
    asked = [take()["prompt"] for _, take in raw_rows(train)]
    items = tmp_path / "items.json"
    items.write_text(
        json.dumps(
            [{"instruction": text, "output": "x"} for text in (asked[5], f"{asked[6].upper()}!", "else")]
        )
    )
    judge = (
        "judge=alpaca_eval",
        "judge.model=some",
        "judge.base_url=http://127.0.0.1:9",
        f"judge.items={items}",
        "method=dpo",
        "do=plan",
    )
    own = [word for word in words if not word.startswith(("data.fraction", "judge."))]
    said = bench(*own, *judge, results=tmp_path / "results")
    same = (
        "2 train rows (1 word for word, 1 apart from case and spaces) have a prompt that the judge uses too"
    )
    assert f"{same}: they are trained on" in said.out, said.err
    dropped = bench(*own, *judge, "data.overlap=drop", results=tmp_path / "results").out
    assert f"{same}: dropped (data.overlap=drop)" in dropped
    refused = bench(*own, *judge, "data.overlap=refuse", results=tmp_path / "results").out
    assert "2 train rows have the question of an item of the judge (data.overlap=refuse)" in refused
