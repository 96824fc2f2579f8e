"""What a causal LM costs, from its config.json alone: parameters, FLOPs a token, bytes of memory. Pure numbers, no weights.

FLOPs a token (Kaplan et al. 2020, table 1; Hoffmann et al. 2022, appendix F): forward 2 N + 4 · layers · d_attention · context, and
backward twice that. N counts the weights that a token is multiplied with: all but the input embedding. The second term is QK^T and AV
over the whole context, as unmasked kernels do it; a causal kernel saves half of it.

Memory (Rajbhandari et al. 2020, ZeRO; Korthikanti et al. 2022, eq. 2, without dropout masks and stored attention scores): training
holds float32 weights, gradients and optimizer states whatever the dtype (engines/hf.py), and bfloat16 copies of the weights by autocast.
Activations are an estimate: 34 bytes a token, layer and hidden unit, or 2 with gradient checkpointing and one layer's whole.
Checkpointing goes forward a second time (Chen et al. 2016): time, that is, but no work of the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Sharding = Literal["none", "zero2", "zero3"]

ACTIVATION_BYTES, CHECKPOINT_BYTES = 34, 2
OPTIMIZER_BYTES = {"adamw_torch": 8, "rmsprop": 4}  # a weight: two float32 moments, or one
BYTES = {"float32": 4, "bfloat16": 2}
CHECKPOINTED_FROM = 10**9  # parameters: below, activations are small beside what a GPU has


def checkpoints(setting: bool | Literal["auto"], parameters: float) -> bool:
    """Whether a training of a model keeps no activations but computes them again."""
    return parameters >= CHECKPOINTED_FROM if setting == "auto" else setting


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. `multiplied`: weights that each token is multiplied with; `attention` and `kv`: heads times their size."""

    parameters: int
    multiplied: int
    hidden: int
    layers: int
    attention: int
    kv: int
    vocabulary: int

    def forward_flops(self, context: float) -> float:
        """A token's, where it looks at `context` tokens."""
        return 2 * self.multiplied + 4 * self.layers * self.attention * context

    def trained_flops(self, context: float) -> float:
        """Forward and backward, without a second forward for gradient checkpointing."""
        return 3 * self.forward_flops(context)

    def kv_bytes(self, dtype: str) -> int:
        """A token's keys and values, kept while text is written."""
        return 2 * self.layers * self.kv * BYTES[dtype]


def read_shape(config: Mapping[str, Any]) -> Shape:
    """Raises ValueError for an architecture whose sizes are not known here, or a config without them."""
    kind = str(config.get("model_type"))
    if kind not in LAYERS:
        raise ValueError(f"sizes are known of {', '.join(sorted(LAYERS))}, got model_type {kind}")
    try:
        hidden, layers, vocabulary = (int(config[name]) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head = int(config.get("head_dim") or hidden // heads)
        sizes = _Sizes(hidden, heads * head, kv_heads * head, head, int(config["intermediate_size"]), config)
    except KeyError as error:
        raise ValueError(f"the config of a {kind} model needs {error}") from error
    layer = LAYERS[kind](sizes)
    norm = 2 * hidden if kind in ("phi", "gpt_neox") else hidden  # LayerNorm has biases, RMSNorm none
    embedding, tied = vocabulary * hidden, bool(config.get("tie_word_embeddings", False))
    head_weights = embedding + (vocabulary if kind == "phi" else 0)
    body = layers * layer + norm
    return Shape(
        parameters=embedding + body + (0 if tied else head_weights),
        multiplied=body + head_weights,
        hidden=hidden,
        layers=layers,
        attention=sizes.attention,
        kv=sizes.kv,
        vocabulary=vocabulary,
    )


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    attention: int
    kv: int
    head: int
    inner: int
    config: Mapping[str, Any]

    def on(self, name: str, default: bool) -> bool:
        return bool(self.config.get(name, default))


def _gated(s: _Sizes) -> int:
    """Grouped-query attention, a gated MLP, two RMSNorms: Llama and its kin."""
    return s.hidden * (2 * s.attention + 2 * s.kv) + 3 * s.hidden * s.inner + 2 * s.hidden


def _llama(s: _Sizes) -> int:
    of_attention = (s.attention + 2 * s.kv + s.hidden) * s.on("attention_bias", False)
    return _gated(s) + of_attention + (2 * s.inner + s.hidden) * s.on("mlp_bias", False)


def _qwen2(s: _Sizes) -> int:
    return _gated(s) + s.attention + 2 * s.kv


def _qwen3(s: _Sizes) -> int:
    return _gated(s) + 2 * s.head + (s.attention + 2 * s.kv + s.hidden) * s.on("attention_bias", False)


def _phi(s: _Sizes) -> int:
    attention = (s.hidden + 1) * (s.attention + 2 * s.kv) + (s.attention + 1) * s.hidden
    return attention + 2 * s.hidden * s.inner + s.inner + s.hidden + 2 * s.hidden + 4 * s.head * s.on("qk_layernorm", False)


def _gpt_neox(s: _Sizes) -> int:
    attention = 4 * s.hidden * s.hidden + 4 * s.hidden * s.on("attention_bias", True)
    return attention + 2 * s.hidden * s.inner + s.inner + s.hidden + 4 * s.hidden


# Weights of a layer, by model_type.
LAYERS = {"llama": _llama, "mistral": _gated, "qwen2": _qwen2, "qwen3": _qwen3, "phi": _phi, "phi3": _gated, "gpt_neox": _gpt_neox}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `activations` is an estimate, the rest is counted; `otherwise`: activations with the other choice of gradient
    checkpointing, of a training."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    otherwise: float = 0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def kept_activations(shape: Shape, tokens: float, checkpointing: bool) -> float:
    """Bytes that `tokens` leave for their backward pass."""
    layer = ACTIVATION_BYTES * tokens * shape.hidden
    return CHECKPOINT_BYTES * tokens * shape.hidden * shape.layers + layer if checkpointing else layer * shape.layers


def training_memory(
    shape: Shape,
    *,
    dtype: str,
    optimizer: str,
    sequences: int,
    length: int,
    checkpointing: bool,
    sharding: Sharding = "none",
    devices: int = 1,
) -> Memory:
    """`sequences` of `length` tokens a device and step."""
    n = shape.parameters
    copies = n * BYTES[dtype] if dtype != "float32" else 0  # autocast's
    weights = (4 * n + copies) / (devices if sharding == "zero3" else 1)
    split = 1 if sharding == "none" else devices
    kept, otherwise = (kept_activations(shape, sequences * length, choice) for choice in (checkpointing, not checkpointing))
    return Memory(weights, 4 * n / split, OPTIMIZER_BYTES[optimizer] * n / split, kept, otherwise)


def writing_memory(shape: Shape, *, dtype: str, sequences: int, length: int) -> Memory:
    """Weights, and the keys and values of a batch (counted among the activations)."""
    kv = sequences * length * shape.kv_bytes(dtype)
    return Memory(shape.parameters * BYTES[dtype], 0, 0, kv)


def scoring_memory(shape: Shape, *, sequences: int, length: int) -> Memory:
    """Float32 weights, and one layer's activations: nothing is kept for a backward pass."""
    one = ACTIVATION_BYTES * sequences * length * shape.hidden
    return Memory(4 * shape.parameters, 0, 0, one)
