"""SPA's training: the running threshold by hand, the refined loss and the extrapolated confidence of real models in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import smoke_cell, smoke_folder
from transformers import AutoModelForCausalLM, TrainerCallback

from bench.config import RefinedDpo, Training
from bench.engines.hf import load_model
from bench.methods import load
from bench.methods.spa import RunningThreshold
from bench.models.tokenize import load_tokenizer, model_folder, preference_ids
from bench.records import Pair, Trust, read_jsonl, read_logps, read_rows
from bench.store.stage_settings import TrainSettings
from bench.training import losses
from bench.training.trainers import TrainingJob


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_the_threshold_of_fifty_confidences_lies_between_the_fifth_and_the_sixth() -> None:
    """.50, .51, ... .99: 10 % of 50 are five, .50 to .54; the threshold is halfway to .55."""
    threshold = RunningThreshold(0.1, 50, "pairs")
    assert threshold.value is None
    assert (
        threshold.distrusts([logit(0.5 + i / 100) for i in range(50)]) == [False] * 50
    )  # nothing was known before them
    assert threshold.value == pytest.approx(0.545)
    assert threshold.distrusts([logit(0.54), logit(0.55)]) == [True, False]


def test_only_the_latest_confidences_count() -> None:
    """A window of 4 and a quarter: halfway between the lowest and the next of .6 .7 .8 .9, then of .8 .9 .2 .3."""
    threshold = RunningThreshold(0.25, 4, "pairs")
    threshold.distrusts([logit(p) for p in (0.1, 0.6, 0.7, 0.8, 0.9)])
    assert threshold.value == pytest.approx(0.65)
    assert threshold.distrusts([logit(0.2), logit(0.3)]) == [True, True]
    assert threshold.value == pytest.approx(0.25)


def test_the_releases_threshold_is_of_batch_means_and_zero_until_the_window_is_full() -> None:
    """Margins. Means 1, 3, 2, 4 of batches of two: a quarter is halfway between 1 and 2."""
    threshold = RunningThreshold(0.25, 4, "batch_means")
    assert threshold.distrusts([-1.0, 3.0]) == [True, False]
    assert threshold.distrusts([0.0, 6.0]) == [True, False]  # at the threshold too
    for mean in (2.0, 4.0):
        threshold.distrusts([mean - 1, mean + 1])
    assert threshold.value == pytest.approx(1.5)
    assert threshold.distrusts([1.5, 1.6]) == [True, False]


def test_equal_confidences_distrust_nothing() -> None:
    threshold = RunningThreshold(0.1, 50, "pairs")
    for _ in range(3):
        assert threshold.distrusts([0.0] * 32) == [False] * 32


# Real models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start() -> Path:
    return smoke_folder(smoke_cell("dpo", 0.1).roles["train"].inputs["model"])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def policy() -> Path:
    return smoke_folder(smoke_cell("dpo", 0.1).roles["train"])


def trainer_of(policy: Path, start: Path, out: Path, **refined: Any) -> tuple[Any, Sequence[Pair]]:
    train = smoke_cell("dpo", 0.1).roles["train"]
    rows: Any = read_rows(smoke_folder(train.inputs["preferences"]) / "train.jsonl")[:16]  # type: ignore[arg-type]
    given: dict[str, Any] = {
        "beta": 0.1,
        "alpha": 0.3,
        "distrusted": 0.5,
        "window": 8,
        "threshold": "pairs",
        "delay": 0.0,
    }
    common = train.settings.method.model_dump(include=set(Training.model_fields)) | {"batch_size": 8}  # type: ignore[attr-defined]
    method = RefinedDpo(name="spa", **common | given | {"decoupling": 0.5} | refined)
    settings = TrainSettings(method=method, max_length=192, dtype="float32", seed=0)
    reference = read_logps(smoke_folder(train.inputs["reference_logps"]))  # type: ignore[arg-type]
    job = TrainingJob(
        settings,
        load_model(policy, "float32"),
        load_tokenizer(policy),
        rows,
        reference,
        out,
        TrainerCallback(),
        start,
    )
    trainer = load("spa").make_trainer(job)
    trainer.model.train()
    return trainer, rows


@torch.no_grad()
def imagined(policy: Any, reference: Any, ids: Any, extent: float) -> float:
    """log-probability of a completion under (1 + λ) h - λ h_ref, one row, unpadded."""
    row = torch.tensor([ids.prompt + ids.completion])
    h, h_ref = (model(input_ids=row).logits[0] for model in (policy, reference))
    logps = torch.log_softmax((1 + extent) * h - extent * h_ref, dim=-1)
    start = len(ids.prompt) - 1
    return math.fsum(logps[start + i, token].item() for i, token in enumerate(ids.completion))


def test_the_extrapolated_confidence_and_the_refined_loss_of_real_models(
    policy: Path, start: Path, tmp_path: Path
) -> None:
    trainer, rows = trainer_of(policy, start, tmp_path)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(model_folder(path), dtype=torch.float64)
        for path in (policy, start)
    )
    by_ids, threshold = {}, RunningThreshold(0.5, 8, "pairs")
    for row in rows:
        ids = preference_ids(trainer.processing_class, row, 192)
        by_ids[tuple(ids["chosen"].prompt + ids["chosen"].completion)] = ids
    seen = set()
    for inputs in trainer.get_train_dataloader():
        expected, margins = [], []
        for i in range(len(inputs["input_ids"]) // 2):
            ids = by_ids[tuple(inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist())]
            sums = [
                [imagined(ours, theirs, ids[side], extent) for side in ("chosen", "rejected")]
                for extent in (0.5, 0.0, -1.0)
            ]
            mixed, plain, reference = (
                chosen - rejected for chosen, rejected in sums
            )  # λ -1 is the reference
            margins.append(0.1 * (mixed - reference))
            expected.append(0.1 * (plain - reference))
        distrusted = threshold.distrusts(margins)
        seen |= set(distrusted)
        total = math.fsum(
            (1 - share) * math.log1p(math.exp(-x)) + share * math.log1p(math.exp(x))
            for x, share in zip(expected, (0.3 * z for z in distrusted), strict=True)
        )
        assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(
            total / len(expected), rel=1e-5
        )
        metrics = trainer._metrics["train"]
        assert metrics["spa/distrusted"][-1] == pytest.approx(sum(distrusted) / len(distrusted))
        confidence = math.fsum(1 / (1 + math.exp(-margin)) for margin in margins) / len(margins)
        assert metrics["spa/confidence"][-1] == pytest.approx(confidence, rel=1e-5)
    assert seen == {True, False}


def test_before_the_delay_is_over_no_label_is_smoothed(policy: Path, start: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(policy, start, tmp_path, delay=0.5, decoupling=0.0)
    trainer.state.max_steps = 10
    inputs = list(trainer.get_train_dataloader())
    for step, smoothed in ((0, False), (4, False), (5, True)):
        trainer.state.global_step = step
        trainer.compute_loss(trainer.model, inputs[0])
        trainer.compute_loss(trainer.model, inputs[1])
        assert any(share > 0 for share in trainer._metrics["train"]["spa/distrusted"][-2:]) == smoothed


def test_what_was_trained_is_what_a_fresh_model_with_its_weights_says(
    policy: Path, start: Path, tmp_path: Path
) -> None:
    """TRL replaces forward by a closure: the model in memory after training, and one loaded from what it saved, are one. Every label that
    a step after the delay came to is recorded."""
    trainer, rows = trainer_of(
        policy, start, tmp_path, delay=0.5, learning_rate=1e-3, num_train_epochs=2.0, warmup_ratio=0.0
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    trainer.model.save_pretrained(tmp_path / "model")
    fresh, trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval(), trainer.model.eval()
    old = load_model(policy, "float32").eval()
    for row in rows[:4]:
        ids = preference_ids(trainer.processing_class, row, 192)["chosen"]
        with torch.no_grad():
            ours, anew, then = (
                model(input_ids=torch.tensor([ids.prompt + ids.completion])).logits
                for model in (trained, fresh, old)
            )
        assert torch.equal(ours, anew)
        assert not torch.allclose(ours, then, atol=1e-3)
    trust = list(read_jsonl(tmp_path / "trust.jsonl", Trust))  # the second of two epochs, two steps each
    assert sorted(said.id for said in trust) == sorted(row.id for row in rows)
    assert all(0 < said.confidence < 1 for said in trust)
    assert {said.distrusted for said in trust} == {True, False}


def test_decoupling_without_a_reference_model_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the reference's logits"):
        trainer_of(policy, None, tmp_path)  # type: ignore[arg-type]


def test_extrapolating_by_nothing_is_the_policy() -> None:
    h, h_ref = torch.randn(2, 3, 7, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    tokens, mask = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.ones(2, 3)
    own = torch.log_softmax(h, -1).gather(-1, tokens[..., None]).squeeze(-1).sum(1)
    assert torch.equal(losses.extrapolated_logps(h, h_ref, tokens, mask, 0.0), own)
