"""KTO's loss with the partners that the data stage fixed, first losses, rows and steps of whole trainings, on a real run.

That every trainer computes its paper's equation, on a tiny model, is shown in tests/conformance.
Log-probabilities by hand: one row at a time, unpadded, from the plain forward of a float64 model. Nothing of TRL takes part.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import smoke_cell, smoke_folder
from transformers import AutoModelForCausalLM, TrainerCallback

from bench.engines.hf import load_model
from bench.methods import load
from bench.models.tokenize import Ids, load_tokenizer, model_folder, preference_ids
from bench.records import Logps, Pair, Unpaired, read_logps, read_rows
from bench.store.stage_run import Progress
from bench.store.stage_settings import TrainSettings
from bench.training.trainers import Recorder, TrainingJob

MAX_LENGTH = 192


@pytest.fixture(scope="module")
def train() -> Any:
    return smoke_cell("kto", 0.1).roles["train"]


@pytest.fixture(scope="module")
def start(train: Any) -> Path:
    return smoke_folder(train.inputs["model"])


@pytest.fixture(scope="module")
def policy() -> Path:
    """A model that is some way from the start model: DPO's."""
    return smoke_folder(smoke_cell("dpo", 0.1).roles["train"])


@pytest.fixture(scope="module")
def rows(train: Any) -> list[Pair]:
    return read_rows(smoke_folder(train.inputs["preferences"]) / "train.jsonl")[:48]  # type: ignore[return-value]


@functools.cache
def _exact(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder(folder), dtype=torch.float64)


@functools.cache
@torch.no_grad()
def _logps(folder: Path, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    logps = torch.log_softmax(_exact(folder)(input_ids=torch.tensor([[*prompt, *completion]])).logits[0], -1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return sum(logps[place, token].item() for place, token in zip(places, completion, strict=True))


def logps(folder: Path, ids: Ids) -> float:
    return _logps(folder, tuple(ids.prompt), tuple(ids.completion))


def reference_of(folder: Path, rows: Sequence[Pair | Unpaired]) -> dict[str, Logps]:
    """What a logps stage leaves, computed by hand."""
    tokenizer = load_tokenizer(folder)
    found = {}
    for row in rows:
        for column, ids in preference_ids(tokenizer, row, MAX_LENGTH).items():
            found[f"train/{row.id}/{column}"] = Logps(
                f"train/{row.id}/{column}", logps(folder, ids), len(ids.completion)
            )
    return found


class Silent(TrainerCallback):
    pass


Rows = Sequence[Pair] | Sequence[Unpaired]


def trainer_of(
    name: str,
    model: Path,
    rows: Rows,
    reference: dict[str, Logps],
    out: Path,
    callback: Any = None,
    **method: Any,
) -> Any:
    """The method's real trainer, from a folder's weights."""
    settings: TrainSettings = smoke_cell(name, 0.1).roles["train"].settings  # type: ignore[assignment]
    settings = settings.model_copy(
        update={"method": settings.method.model_copy(update={"batch_size": 16, **method})}
    )
    loaded = load_model(model, "float32")
    job = TrainingJob(settings, loaded, load_tokenizer(model), rows, reference, out, callback or Silent())
    trainer = load(name).make_trainer(job)
    trainer.model.train()
    return trainer


def batches(trainer: Any) -> Iterator[dict[str, torch.Tensor]]:
    yield from trainer.get_train_dataloader()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Step 0: the policy is the reference ----------------------------------------------------------------------------------


FIRST_LOSSES = [("dpo", 0.1, math.log(2)), ("ipo", 0.1, 25.0), ("kto", 0.1, 0.5), ("kto", 1.0, 0.5)]


@pytest.mark.parametrize(("method", "beta", "expected"), FIRST_LOSSES)
def test_the_first_logged_loss_is_that_of_equal_models(method: str, beta: float, expected: float) -> None:
    """IPO: (0 - 1 / (2 x 0.1))² = 25. Shared reference log-probs equal the trainer's own, or the rewards would not be 0."""
    folder = smoke_folder(smoke_cell(method, beta).roles["train"])
    first = json.loads((folder / "history.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(expected, rel=1e-6)
    for name in ("rewards/chosen", "rewards/rejected"):
        assert abs(first[name]) < 1e-5 * max(1, beta)


def test_ktos_weights_scale_its_first_loss(start: Path, rows: list[Pair], tmp_path: Path) -> None:
    """0.5 x the mean weight of the batch's rows."""
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.4}
    trainer = trainer_of("kto", start, rows, reference_of(start, rows), tmp_path, **weights)
    for inputs in batches(trainer):
        share = inputs["label"].float().mean().item()
        expected = 0.5 * (1.5 * share + 0.4 * (1 - share))
        assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(expected, rel=1e-5)


def test_stored_reference_log_probs_equal_those_by_hand(train: Any, start: Path, rows: list[Pair]) -> None:
    stored, by_hand = read_logps(smoke_folder(train.inputs["reference_logps"])), reference_of(start, rows)
    for name, expected in by_hand.items():
        assert stored[name].logps == pytest.approx(expected.logps, rel=1e-5, abs=1e-4)
        assert stored[name].n_tokens == expected.n_tokens


# A policy away from its reference -------------------------------------------------------------------------------------


def test_kto_is_equation_8_with_the_fixed_partners(
    start: Path, policy: Path, rows: list[Pair], tmp_path: Path
) -> None:
    """λ_D (1 - σ(β (r - z0))) or λ_U (1 - σ(β (z0 - r))), z0 = max(0, mean of r(y'|x)). Both ways round, so that z0 is clamped and not."""
    tokenizer = load_tokenizer(start)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    clamped = set()
    for model, against in ((policy, start), (start, policy)):
        trainer = trainer_of("kto", model, rows, reference_of(against, rows), tmp_path, beta=0.5, **weights)
        for inputs in batches(trainer):
            found = _kto_rows(inputs, rows, tokenizer)
            z0 = sum(logps(model, partner) - logps(against, partner) for _, partner, _ in found) / len(found)
            clamped.add(z0 < 0)
            z0 = max(0.0, z0)
            rewards = [(logps(model, ids) - logps(against, ids), label) for ids, _, label in found]
            losses = [
                1.3 * (1 - sigmoid(0.5 * (r - z0))) if label else 0.7 * (1 - sigmoid(0.5 * (z0 - r)))
                for r, label in rewards
            ]
            assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(
                sum(losses) / len(losses), rel=1e-5
            )
            metrics = trainer._metrics["train"]
            assert metrics["kl"][-1] == pytest.approx(z0, rel=1e-4, abs=1e-5)
            orders = [a > b for a, wanted in rewards for b, other in rewards if wanted and not other]
            assert metrics["rewards/accuracies"][-1] == pytest.approx(sum(orders) / len(orders))
            wanted = [r for r, label in rewards if label]
            assert metrics["rewards/chosen"][-1] == pytest.approx(
                0.5 * sum(wanted) / len(wanted), rel=1e-4, abs=1e-5
            )
    assert clamped == {True, False}


def _kto_rows(
    inputs: Mapping[str, torch.Tensor], rows: Sequence[Pair], tokenizer: Any
) -> list[tuple[Ids, Ids, bool]]:
    """(completion, its partner as the data stage fixed it, label) of each row of a batch; checks that the batch holds that partner."""
    expected = {}
    for row in rows:
        ids = preference_ids(tokenizer, row, MAX_LENGTH)
        for side, label in (("chosen", True), ("rejected", False)):
            expected[tuple(ids[side].prompt + ids[side].completion), label] = (
                ids[side],
                ids[f"mismatched_{side}"],
            )
    found = []
    for i, label in enumerate(inputs["label"].tolist()):
        whole = tuple(inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist())
        ids, partner = expected[whole, bool(label)]
        assert (
            inputs["KL_input_ids"][i][inputs["KL_attention_mask"][i].bool()].tolist()
            == partner.prompt + partner.completion
        )
        assert partner.completion != ids.completion
        found.append((ids, partner, bool(label)))
    return found


# Data -----------------------------------------------------------------------------------------------------------------


def test_partners_are_completions_of_other_prompts(train: Any) -> None:
    rows = read_rows(smoke_folder(train.inputs["preferences"]) / "train.jsonl")
    by_chosen: dict[str, set[str]] = {}
    for row in rows:
        assert isinstance(row, Pair)
        by_chosen.setdefault(row.chosen, set()).add(row.prompt[-1]["content"])
    for row in rows:
        assert isinstance(row, Pair)
        assert by_chosen[row.mismatched_chosen] - {row.prompt[-1]["content"]}


def test_ktos_batches_mix_both_labels(train: Any, start: Path, tmp_path: Path) -> None:
    rows = read_rows(smoke_folder(train.inputs["preferences"]) / "train.jsonl")
    reference = read_logps(smoke_folder(train.inputs["reference_logps"]))
    trainer = trainer_of("kto", start, rows, reference, tmp_path, batch_size=32)
    shares = [inputs["label"].float().mean().item() for inputs in batches(trainer)]
    assert all(0.15 < share < 0.85 for share in shares)


def test_dpo_and_ipo_refuse_unpaired_rows_and_kto_takes_them(
    start: Path, rows: list[Pair], tmp_path: Path
) -> None:
    unpaired = [
        Unpaired(row.id, row.prompt, row.chosen, i % 2 == 0, row.mismatched_chosen)
        for i, row in enumerate(rows)
    ]
    reference = reference_of(start, unpaired)
    for name in ("dpo", "ipo"):
        with pytest.raises(
            ValueError,
            match=f"{name} learns from pairs, but the data are unpaired. Use paired data, or method=kto",
        ):
            trainer_of(name, start, unpaired, reference, tmp_path)
    trainer = trainer_of("kto", start, unpaired, reference, tmp_path)
    losses = [trainer.compute_loss(trainer.model, inputs).item() for inputs in batches(trainer)]
    assert losses == pytest.approx([0.5] * 3, rel=1e-5)


# A whole training -----------------------------------------------------------------------------------------------------


Batch = list[tuple[int, ...]]


def trained(
    name: str, start: Path, rows: Sequence[Pair], tmp_path: Path, **method: Any
) -> tuple[Recorder, list[Batch]]:
    """The curve, and what each forward of the loss saw, of a whole training."""
    recorder = Recorder(Progress(tmp_path / "progress.jsonl"))
    trainer = trainer_of(name, start, rows, reference_of(start, rows), tmp_path, recorder, **method)
    seen: list[Batch] = []
    compute = trainer.compute_loss

    def watch(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        seen.append(
            [
                tuple(ids[mask.bool()].tolist())
                for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            ]
        )
        return compute(model, inputs, *rest, **more)

    trainer.compute_loss = watch
    trainer.train()
    return recorder, seen


def test_every_row_once_an_epoch_in_another_order_the_next(
    start: Path, rows: list[Pair], tmp_path: Path
) -> None:
    recorder, seen = trained("kto", start, rows, tmp_path, num_train_epochs=2.0, learning_rate=1e-9)
    epochs = seen[:6], seen[6:]  # 96 rows in batches of 16
    assert [len(batch) for batch in seen] == [16] * 12
    flat = [[ids for batch in epoch for ids in batch] for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[1])
    assert flat[0] != flat[1]
    assert len(flat[0]) == 2 * len(rows)
    assert len(recorder.history) == 12
    again = trained("kto", start, rows, tmp_path, num_train_epochs=2.0, learning_rate=1e-9)[1]
    assert again == seen


def test_gradients_are_accumulated_as_a_mean_and_logged_once_a_step(
    start: Path, rows: list[Pair], tmp_path: Path
) -> None:
    """48 pairs in batches of 16, two a step: steps of 32 and 16 rows; loss and gradient norm of the first by hand."""
    method = {
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1e9,
        "warmup_ratio": 0.0,
    }
    recorder, seen = trained("ipo", start, rows, tmp_path, **method)
    assert [row["step"] for row in recorder.history] == [1, 2]
    assert len(seen) == 3
    assert recorder.history[0]["loss"] == pytest.approx(25.0, rel=1e-5)
    fresh = trainer_of("ipo", start, rows, reference_of(start, rows), tmp_path, **method)
    for inputs in list(batches(fresh))[:2]:
        (fresh.compute_loss(fresh.model, inputs) / 2).backward()
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in fresh.model.parameters() if p.grad is not None))
    assert recorder.history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert recorder.history[0]["num_tokens"] == sum(len(ids) for batch in seen[:2] for ids in batch)
    still, _ = trained("ipo", start, rows, tmp_path, **{**method, "learning_rate": 1e-12})
    assert [row["loss"] for row in still.history] == pytest.approx(
        [25.0, 25.0], rel=1e-5
    )  # the short last step too


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.25, [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),  # 2 of 8 steps, then linear to 0
        (0.0, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (0.01, [0, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),  # rounded up to one step
        (1.0, [i / 8 for i in range(8)]),
    ],
)
def test_warm_up_is_a_share_of_all_steps(
    start: Path, rows: list[Pair], tmp_path: Path, ratio: float, expected: list[float]
) -> None:
    recorder, _ = trained(
        "dpo", start, rows[:32], tmp_path, batch_size=4, warmup_ratio=ratio, learning_rate=1e-4
    )
    assert [row["learning_rate"] / 1e-4 for row in recorder.history] == pytest.approx(expected, abs=1e-9)


def test_the_curve_has_every_number_that_is_promised(train: Any) -> None:
    promised = {
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    }
    for method in ("dpo", "ipo", "kto"):
        folder = smoke_folder(smoke_cell(method, 0.1).roles["train"])
        texts = [(folder / name).read_text() for name in ("history.jsonl", "speed.jsonl")]
        history, speed = ([json.loads(line) for line in text.splitlines()] for text in texts)
        assert (
            [row["step"] for row in history]
            == [row["step"] for row in speed]
            == list(range(1, len(history) + 1))
        )
        for row in history:
            assert promised | {"grad_norm", "learning_rate"} <= set(row)
            assert all(math.isfinite(value) for value in row.values())
            assert "tokens_per_second" not in row  # differs from run to run
        assert all(row["tokens_per_second"] > 0 for row in speed)
