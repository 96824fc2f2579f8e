"""How a start model is loaded, and the part of it that is trained: all weights, or a LoRA adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bench.config.base import AsList, Count, Positive, Settings

Attention = Literal[
    "auto", "eager", "sdpa", "flash_attention_2"
]  # auto: transformers chooses for the architecture
Checkpointing = Literal["auto"] | bool  # of gradients; auto: see shapes.checkpoints


class Loading(Settings):
    """How every stage of a cell loads its causal LMs, so that a reference is computed as the policy is."""

    attention: Attention = "auto"
    """Attention kernel; auto: the one that transformers takes for the architecture."""
    quantized: Literal["nf4"] | None = None
    """Format of the base model's linear layers; nf4: four bits (QLoRA), None: the model's dtype."""


class NoAdapter(Settings):
    """Full fine-tuning."""

    name: Literal["none"] = "none"


class Adapter(Settings):
    """LoRA (Hu et al. 2021): W + (alpha / rank) B A with frozen weights W; QLoRA (Dettmers et al. 2023): W in
    four bits."""

    name: Literal["lora", "qlora"]
    rank: Count
    """Rank of the low-rank update; usual 8 to 64."""
    alpha: Positive
    """Scale of the update, alpha / rank times B A; usual 16 to 64."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout before the update, a probability; usual 0 to 0.1."""
    target_modules: Annotated[tuple[str, ...], AsList]
    """Names of the linear layers that get an update, as in [q_proj, v_proj]; []: all but the output
    embeddings."""
