"""LoRA adapters in transformers' models (PEFT): put in, written, and read beside their base.

A training keeps the adapter alone. Its weights are float32 whatever the dtype: they are small, and rounding would lose their updates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.config import Adapter
from bench.models.model_config import ADAPTER
from bench.text_files import read_object


def add_adapter(model: PreTrainedModel, settings: Adapter, seed: int) -> None:
    """A new adapter, the same for the same seed, that changes nothing yet (B is 0) and is all that is trained of the model.

    Raises ValueError for target modules that the model does not have, or that are its output embeddings, which losses read directly.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides by it
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )
    linear = sorted({name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)})
    heads = [name for name, layer in model.named_modules() if layer is model.get_output_embeddings()]
    if unknown := [name for name in settings.target_modules if name not in linear or name in heads]:
        known = ", ".join(name for name in linear if name not in heads)
        raise ValueError(f"adapter.target_modules must name linear layers of the model, got {', '.join(unknown)}; known: {known}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def own_dropout_off(model: PreTrainedModel) -> None:
    """The model's own dropout off, as TRL does it where no adapter is trained; an adapter's stays as it was set."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Dropout) and "lora_dropout" not in name:
            layer.p = 0.0


def is_adapted(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises FloatingPointError, which names a tensor, where weights hold NaN or infinities: such a model is not to be kept."""
    bad = {name: value for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()}
    if bad:
        name, value = next(iter(bad.items()))
        n_nan, n_infinite = int(value.isnan().sum()), int(value.isinf().sum())
        what = f"{name} holds {n_nan} NaN and {n_infinite} infinite values of {value.numel()}"
        more = f", {len(bad) - 1} more of {len(weights)} tensors are alike" if len(bad) > 1 else ""
        raise FloatingPointError(f"the trained weights are not finite ({what}{more}): lower the learning rate")


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """The model, or of an adapted one the adapter, with the tokenizer that it was trained with. `weights`: where the model is in parts.

    Raises FloatingPointError for weights that are not finite."""
    check_finite(model.state_dict() if weights is None else weights)
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    if (path := folder / ADAPTER).exists():
        config = read_object(path)
        config["base_model_name_or_path"] = None  # a path of this machine; the base is an input of whoever reads the adapter
        path.write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
