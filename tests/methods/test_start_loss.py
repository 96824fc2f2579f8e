"""The first loss of every method, as its settings know it, from real trainers on a tiny model; a wrong reference is found by it. Ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model, make_preferences, plans
from transformers import TrainerCallback

from bench.engines.hf import load_model
from bench.methods import load
from bench.models.tokenize import load_tokenizer, preference_ids
from bench.planning.inputs import CellPlan
from bench.records import Logps, Pair, completion_columns
from bench.report.findings import Evidence, known_start, wrong_start
from bench.store.stage_settings import TrainSettings
from bench.training.trainers import TrainingJob, share_right
from bench.training.unpaired import log_accuracy

MAX_LENGTH = 100
KNOWN = ("dpo", "ipo", "kto", "cdpo", "robust", "ipo_summed", "hinge", "kto_pair")
UNKNOWN = ("slic", "simpo", "orpo", "cpo", "sft_chosen", "csft", "offline_ppo")
ROWS = [
    Pair(
        f"{i}",
        [{"role": "user", "content": f"please name {i}"}],
        f"the dog {i}",
        f"a red horse {i}",
        f"the dog {(i + 1) % 8}",
        "a horse",
    )
    for i in range(8)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cell(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CellPlan]:
    pairs = make_preferences(tmp_path_factory.mktemp("rows") / "rows.jsonl", paired=True, messages=True)

    def make(*words: str) -> CellPlan:
        own = (
            f"model.path={model}",
            f"model.max_length={MAX_LENGTH}",
            "data=local",
            f"data.path={pairs}",
            "method.batch_size=16",
        )
        return plans("model=local", *own, *words)[-1]

    return make


def reference(model: Path, rows: list[Pair], off: Mapping[str, float]) -> dict[str, Logps]:
    """Log-probabilities of the model, wrong by so much for completions of a column."""
    loaded, tokenizer, found = load_model(model, "float32"), load_tokenizer(model), {}
    for row in rows:
        for column, ids in preference_ids(tokenizer, row, MAX_LENGTH).items():
            with torch.no_grad():
                logits = loaded(input_ids=torch.tensor([ids.prompt + ids.completion])).logits[
                    0, len(ids.prompt) - 1 : -1
                ]
            value = (
                torch.log_softmax(logits, -1).gather(1, torch.tensor(ids.completion)[:, None]).sum().item()
            )
            name = f"train/{row.id}/{column}"
            found[name] = Logps(name, value + off.get(column, 0.0), len(ids.completion))
    return found


def first(
    cell: CellPlan, model: Path, tmp_path: Path, rows: list[Pair] = ROWS, **off: float
) -> tuple[float, dict[str, Any]]:
    """Loss and metrics of the first batch."""
    settings = cell.roles["train"].settings
    assert isinstance(settings, TrainSettings)
    job = TrainingJob(
        settings,
        load_model(model, "float32"),
        load_tokenizer(model),
        rows,
        reference(model, rows, off),
        tmp_path,
        TrainerCallback(),
    )
    trainer: Any = load(settings.method.name).make_trainer(job)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()
    return loss, trainer._metrics["train"]


def findings(cell: CellPlan, loss: float) -> list[str]:
    found = wrong_start(Evidence([{"step": 1, "loss": loss}], {}, {}, start_loss=known_start(cell)))
    return [] if found is None else [found.name]


@pytest.mark.parametrize("method", [*KNOWN, *UNKNOWN])
def test_a_first_loss_is_what_the_method_knows_and_a_wrong_reference_is_found(
    method: str, cell: Callable[..., CellPlan], model: Path, tmp_path: Path
) -> None:
    of_method = cell(f"method={method}")
    loss, _ = first(of_method, model, tmp_path)
    assert findings(of_method, loss) == []
    if method in KNOWN:
        assert loss == pytest.approx(known_start(of_method), rel=1e-4)
        wrong, _ = first(
            of_method, model, tmp_path, chosen=10.0, mismatched_chosen=10.0
        )  # as of another day's prompt
        assert findings(of_method, wrong) == ["start loss"]
    else:
        assert known_start(of_method) is None


@pytest.mark.parametrize(
    "words",
    [
        ("method=dpo", "method.sft_weight=1"),
        ("method=kto", "method.weight_ratio=1.3"),
        ("method=kto", "method.desirable_weight=2"),
        ("method=best_of_n",),
    ],
)
def test_a_start_that_hangs_on_the_data_is_not_known(
    words: tuple[str, ...], cell: Callable[..., CellPlan]
) -> None:
    assert known_start(cell(*words)) is None


def test_a_curve_whose_first_step_is_missing_has_no_start() -> None:
    for curve in ([], [{"step": 2, "loss": 9.0}], [{"step": 1, "kl": 9.0}]):
        assert wrong_start(Evidence(curve, {}, {}, start_loss=0.5)) is None


# Ties -----------------------------------------------------------------------------------------------------------------


def test_a_tie_is_half_right() -> None:
    assert share_right(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])).tolist() == [
        0.0,
        0.5,
        1.0,
    ]
    metrics: dict[str, list[float]] = {"rewards/accuracies": []}
    log_accuracy(metrics, torch.tensor([1.0, 2.0, 2.0]), torch.tensor([True, True, False]))
    assert metrics["rewards/accuracies"] == [0.25]  # of (1, 2) and (2, 2): wrong, and a tie


@pytest.mark.parametrize("method", ["dpo", "cdpo"])
def test_pairs_whose_rewards_are_equal_are_half_right_while_training(
    method: str, cell: Callable[..., CellPlan], model: Path, tmp_path: Path
) -> None:
    same = [Pair(row.id, row.prompt, row.chosen, row.chosen, row.chosen, row.chosen) for row in ROWS]
    assert {len(completion_columns(row)) for row in same} == {4}
    _, metrics = first(cell(f"method={method}"), model, tmp_path, same)
    assert metrics["rewards/accuracies"] == [0.5] and metrics["rewards/margins"] == [0.0]
