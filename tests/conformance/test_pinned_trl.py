"""What the methods take from TRL, and what they had to bring themselves, in the version that is pinned (see conformance/table.py)."""

from __future__ import annotations

import importlib.util
import inspect
import random
import re

import pytest
import trl
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from bench.config import Dpo, SftChosen
from bench.conformance.checks import Bench, method, random_rows
from bench.conformance.references import Row
from bench.conformance.table import TRL_VERSION

DPO_LOSSES = {
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
}
DPO_LOSSES |= {"apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"}


def test_the_table_speaks_of_the_version_that_is_installed() -> None:
    assert trl.__version__ == TRL_VERSION


def test_which_losses_there_are() -> None:
    """No cDPO, SLiC-HF or kto_pair, no CSFT, no offline PPO."""
    assert set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss))) == DPO_LOSSES
    assert KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"] == ["kto", "apo_zero_unpaired"]


@pytest.mark.parametrize(
    ("name", "there"), [("cpo", True), ("orpo", True), ("online_dpo", True), ("ppo", False), ("bco", False)]
)
def test_which_experimental_trainers_there_are(name: str, there: bool) -> None:
    assert (importlib.util.find_spec(f"trl.experimental.{name}") is not None) == there


@pytest.mark.parametrize("config", [DPOConfig, KTOConfig])
def test_defaults(config: type) -> None:
    defaults = {name: field.default for name, field in config.__dataclass_fields__.items()}  # type: ignore[attr-defined]
    wanted = {
        "beta": 0.1,
        "learning_rate": 1e-6,
        "max_length": 1024,
        "disable_dropout": True,
        "gradient_checkpointing": True,
        "bf16": None,
    }
    assert {name: defaults[name] for name in wanted} == wanted  # bf16 None: on
    assert "max_prompt_length" not in defaults


def test_sigmoid_ignores_label_smoothing(trainers: Bench) -> None:
    """Which is why cDPO is a loss of ours."""
    rows = random_rows(random.Random(1), 4)
    m = method(Dpo, {"beta": 0.37})  # a trainer of this test's own
    plain = trainers.prescribed(m, rows)[0].item()
    trainers.prepared(m).label_smoothing = 0.3
    assert trainers.prescribed(m, rows)[0].item() == plain


def test_sft_pools_the_tokens_of_a_batch(trainers: Bench) -> None:
    """Which is why DPO's SFT term is a loss of ours: 2 and 60 nats over 1 and 20 tokens are 62 / 21 pooled, (2 + 3) / 2 by completion."""
    rows = [Row(-2, -5, -2, -5, 1, 3), Row(-60, -5, -60, -5, 20, 3)]
    m = method(Dpo, {"beta": 0.73})
    trainer = trainers.prepared(m)
    trainer.loss_types = ["sft"]
    assert trainers.prescribed(m, rows)[0].item() == pytest.approx(62 / 21)
    assert trainers.prescribed(method(SftChosen, {}), rows)[0].item() == pytest.approx(2.5)


def test_kto_refuses_batches_of_one_and_logs_no_accuracies() -> None:
    source = inspect.getsource(KTOTrainer)
    assert "per_device_train_batch_size <= 1" in source and "train_sampling_strategy" in source
    assert "rewards/accuracies" not in source
