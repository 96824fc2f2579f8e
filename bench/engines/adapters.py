"""LoRA adapters (PEFT) in transformers' models: adding a new one, and saving it.

A training saves only the adapter, without its base model. The adapter's weights are float32 for every dtype:
they are few, and rounding would lose their updates.
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
    """Add a new adapter to a model. Only the adapter is trained.

    It is the same for the same seed, and it does not change the model's outputs yet (B is 0). Raises
    ValueError for target modules that the model does not have, and for its output embeddings, because losses
    read those directly.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT only divides by it.
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        }
    )
    heads = [name for name, layer in model.named_modules() if layer is model.get_output_embeddings()]
    if unknown := [name for name in settings.target_modules if name not in linear or name in heads]:
        known = ", ".join(name for name in linear if name not in heads)
        raise ValueError(
            f"adapter.target_modules must name linear layers of the model, got {', '.join(unknown)}; known: {known}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def own_dropout_off(model: PreTrainedModel) -> None:
    """Turn the model's own dropout off; the adapter's dropout stays as it is.

    TRL does the same where no adapter is trained.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Dropout) and "lora_dropout" not in name:
            layer.p = 0.0


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether a model has a PEFT adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises FloatingPointError if weights hold NaN or infinite values; the error names one tensor."""
    bad = {
        name: value
        for name, value in weights.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    }
    if bad:
        name, value = next(iter(bad.items()))
        n_nan, n_infinite = int(value.isnan().sum()), int(value.isinf().sum())
        count = f"{name} holds {n_nan} NaN and {n_infinite} infinite values of {value.numel()}"
        more = f", and {len(bad) - 1} more of {len(weights)} tensors have such values" if len(bad) > 1 else ""
        raise FloatingPointError(
            f"the trained weights are not finite ({count}{more}). Lower the learning rate."
        )


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save a model, or only its adapter if it has one, with its tokenizer.

    `weights`: saved instead of the model's, where it is sharded. Raises FloatingPointError for weights that
    are not finite.
    """
    check_finite(model.state_dict() if weights is None else weights)
    # Trainers turn it off, and a model saved without it generates five times slower.
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    if (path := folder / ADAPTER).exists():
        config = read_object(path)
        # It is a path of this machine; the base model is an input of its own.
        config["base_model_name_or_path"] = None
        path.write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
