"""LoRA: what is trained, what its settings do, and how an adapter is read again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from outer import outer
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from architectures import make
from tiny import smoke_cell, smoke_folder

from bench.config import Adapter
from bench.engines.adapters import add_adapter, own_dropout_off, save_model
from bench.engines.hf import TransformersEngine, load_model
from bench.models.tokenize import Ids, load_tokenizer
from bench.stages import train as train_stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import TrainSettings

LORA = Adapter(name="lora", rank=4, alpha=8.0, dropout=0.0, target_modules=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make("llama", tmp_path / "llama")


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def test_an_adapter_is_all_that_is_trained_and_changes_nothing_yet(folder: Path) -> None:
    """Two matrices a layer: r (in + out) numbers. B is 0."""
    model: Any = load_model(folder, "float32")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        add_adapter(model, LORA, seed=0)
        assert torch.equal(model(input_ids=ids).logits, before)
    found = trainable(model)
    assert all("lora_" in name for name in found)
    layer = {
        name.split(".")[-4]: value.numel()
        for name, value in found.items()
        if "layers.0" in name and "lora_A" in name
    }
    assert layer == dict.fromkeys(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"], 4 * 32
    ) | {"down_proj": 4 * 64}


def test_a_seed_gives_one_adapter_and_leaves_the_generator_alone(folder: Path) -> None:
    def first(seed: int) -> dict[str, torch.Tensor]:
        model = load_model(folder, "float32")
        add_adapter(model, LORA, seed)
        return trainable(model)

    state = torch.get_rng_state()
    one, same, other = first(0), first(0), first(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_target_modules_are_linear_layers_of_the_model(folder: Path) -> None:
    model = load_model(folder, "float32")
    add_adapter(model, LORA.model_copy(update={"target_modules": ("q_proj", "v_proj")}), 0)
    assert {name.split(".")[-4] for name in trainable(model)} == {"q_proj", "v_proj"}
    for wrong in ("query_key_value", "lm_head"):
        with pytest.raises(
            ValueError,
            match=f"must name linear layers of the model, got {wrong}; known: down_proj, gate_proj, k_proj",
        ):
            add_adapter(
                load_model(folder, "float32"), LORA.model_copy(update={"target_modules": (wrong,)}), 0
            )


def test_the_adapters_dropout_stays_and_the_models_own_is_off(tmp_path: Path) -> None:
    folder = make("gpt_neox", tmp_path / "neox")
    model: Any = load_model(folder, "float32")
    model.gpt_neox.emb_dropout.p = 0.5
    add_adapter(model, LORA.model_copy(update={"dropout": 0.25}), 0)
    own_dropout_off(model)
    rates = {
        ("lora" if "lora" in name else "own"): layer.p
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Dropout)
    }
    assert rates == {"lora": 0.25, "own": 0.0}


def test_an_adapter_is_read_beside_its_base_and_refused_alone(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    add_adapter(model, LORA, 0)
    with torch.no_grad():
        for name, value in trainable(model).items():
            if "lora_B" in name:
                value.normal_(std=0.1)
    save_model(model, tokenizer, tmp_path / "kept" / "model")
    rows = [Ids([1, 5, 6], [7, 8, 0])]
    expected = TransformersEngine(folder, "float32", 1)
    expected.model = model
    read = TransformersEngine(tmp_path / "kept", "float32", 1, base=folder)
    assert read.logps(rows) == pytest.approx(expected.logps(rows), rel=1e-6)
    assert read.logps(rows) != pytest.approx(TransformersEngine(folder, "float32", 1).logps(rows), rel=1e-3)
    with pytest.raises(ValueError, match="holds only an adapter: give its base model too"):
        load_model(tmp_path / "kept", "float32")


@outer
def test_an_adapter_is_trained_goes_on_being_trained_and_repeats(tmp_path: Path) -> None:
    """A loop's second round: the same matrices move on, those of the base never do."""
    dpo = smoke_cell("dpo", 0.1).roles["train"]
    inputs = {role: smoke_folder(stage) for role, stage in dpo.inputs.items()}  # type: ignore[arg-type]
    usual: TrainSettings = dpo.settings  # type: ignore[assignment]
    settings = usual.model_copy(update={"adapter": LORA.model_copy(update={"dropout": 0.1})})

    def trained(name: str, **more: Path) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir()
        train_stage.run(
            settings, StageRun(inputs | more, tmp_path / name, Progress(tmp_path / f"{name}.progress"))
        )
        return load_file(tmp_path / name / "model" / "adapter_model.safetensors")

    one, again = trained("one"), trained("again")
    assert all(torch.equal(one[name], again[name]) for name in one)
    on = trained("on", model=tmp_path / "one", base=inputs["model"])
    assert set(on) == set(one)
    assert all(not torch.equal(on[name], one[name]) for name in one)
