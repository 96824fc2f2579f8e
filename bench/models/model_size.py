"""Size of a causal LM from its config.json alone: parameters, FLOPs per token, bytes of memory. No weights
are read.

FLOPs per token (Kaplan et al. 2020, table 1; Hoffmann et al. 2022, appendix F): the forward pass takes 2 N +
4 · layers · d_attention · context, the backward pass twice that. N counts the weights that a token is
multiplied with: all but the input embedding. The second term is QK^T and AV over the whole context, as
unmasked kernels compute it; a causal kernel saves half of it. With a LoRA adapter of `a` weights (Hu et al.
2021) the N frozen weights have no gradient: 4 N + 6 a + three times the attention term. The first layer also
needs no gradient of its input; this small saving is not counted.

Memory (Rajbhandari et al. 2020, ZeRO; Korthikanti et al. 2022, eq. 2, without dropout masks and stored
attention scores): training holds float32 weights, gradients and optimizer states for every dtype
(engines/hf.py), and autocast adds bfloat16 copies of the weights. Activations are an estimate: 34 bytes per
token, layer and hidden unit; with gradient checkpointing 2 bytes, plus the 34 bytes of one layer.
Checkpointing repeats the forward pass (Chen et al. 2016); this takes time but is not counted as FLOPs. With
an adapter, gradients and optimizer states are the adapter's alone, in float32. The base model is held in
float32, or its linear layers in NF4 (Dettmers et al. 2023, section 3: blocks of 64 weights with an 8-bit
scale, and blocks of 256 scales with a 32-bit one: 4.127 bits per weight).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Sharding = Literal["none", "zero2", "zero3"]

ACTIVATION_BYTES, CHECKPOINT_BYTES = 34, 2
OPTIMIZER_BYTES = {"adamw_torch": 8, "rmsprop": 4}  # Per weight: two float32 moments, or one.
BYTES = {"float32": 4, "bfloat16": 2}
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Parameters. In smaller models, activations are small compared with a GPU's memory.
CHECKPOINTED_FROM = 10**9


def checkpoints(setting: bool | Literal["auto"], parameters: float) -> bool:
    """Whether a training uses gradient checkpointing: it recomputes activations instead of keeping them."""
    return parameters >= CHECKPOINTED_FROM if setting == "auto" else setting


class Linear(NamedTuple):
    """A linear layer of a decoder layer, as transformers names it."""

    name: str
    ins: int
    outs: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    `multiplied`: number of weights that each token is multiplied with. `attention` and `kv`: number of heads
    times head size, for queries and for keys and values. `linears`: the linear layers of one decoder layer.
    """

    parameters: int
    multiplied: int
    hidden: int
    layers: int
    attention: int
    kv: int
    vocabulary: int
    linears: tuple[Linear, ...]

    def adapter(self, rank: int, targets: Sequence[str]) -> int:
        """Number of weights of a LoRA adapter: rank · (in + out) per linear layer in `targets`; no targets
        means all.

        Raises ValueError for unknown names.
        """
        known = [linear.name for linear in self.linears]
        if unknown := [name for name in targets if name not in known]:
            text = f"adapter.target_modules must name linear layers of the model, got {', '.join(unknown)}"
            raise ValueError(f"{text}; known: {', '.join(sorted(known))}")
        chosen = [linear for linear in self.linears if not targets or linear.name in targets]
        return self.layers * rank * sum(linear.ins + linear.outs for linear in chosen)

    def forward_flops(self, context: float, adapter: int = 0) -> float:
        """FLOPs of one token's forward pass with `context` tokens before it; `adapter`: number of weights of
        an adapter.
        """
        return 2 * (self.multiplied + adapter) + self._attention_flops(context)

    def trained_flops(self, context: float, adapter: int = 0) -> float:
        """FLOPs of one token's forward and backward pass. If there is an `adapter`, only its weights are
        trained.

        The second forward pass of gradient checkpointing is not counted.
        """
        if not adapter:
            return 3 * self.forward_flops(context)
        return 4 * self.multiplied + 6 * adapter + 3 * self._attention_flops(context)

    def _attention_flops(self, context: float) -> float:
        return 4 * self.layers * self.attention * context

    def weight_bytes(self, dtype: str, quantized: bool = False) -> float:
        """Bytes of all weights in a dtype; `quantized`: those of linear layers are in four bits."""
        of_linears = (
            self.layers * sum(linear.ins * linear.outs for linear in self.linears) if quantized else 0
        )
        return NF4_BYTES * of_linears + BYTES[dtype] * (self.parameters - of_linears)

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of one token's keys and values, kept during generation."""
        return 2 * self.layers * self.kv * BYTES[dtype]


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The Shape of a model with this config.

    Raises ValueError for other architectures than KINDS, and for missing sizes.
    """
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise ValueError(f"cannot compute the size of model_type {kind}; supported: {', '.join(KINDS)}")
    try:
        hidden, layers, vocabulary = (
            int(config[name]) for name in ("hidden_size", "num_hidden_layers", "vocab_size")
        )
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head = int(config.get("head_dim") or hidden // heads)
        sizes = _Sizes(hidden, heads * head, kv_heads * head, head, int(config["intermediate_size"]), config)
    except KeyError as error:
        raise ValueError(f"config.json of a {kind} model must have {error}, but it has none") from error
    layer = _layer(kind, sizes)
    norm = 2 * hidden if kind in ("phi", "gpt_neox") else hidden  # LayerNorm has biases, RMSNorm has none.
    embedding, tied = vocabulary * hidden, bool(config.get("tie_word_embeddings", kind.startswith("gemma")))
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
        linears=_linears(kind, sizes),
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


KINDS = (
    "gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3",
)  # fmt: skip  # Supported values of model_type.


def _layer(kind: str, s: _Sizes) -> int:
    """Number of weights of one layer.

    Llama and relatives have grouped-query attention, a gated MLP and two RMSNorms.
    """
    projected = s.attention + 2 * s.kv
    gated = s.hidden * (2 * s.attention + 2 * s.kv) + 3 * s.hidden * s.inner + 2 * s.hidden
    plain = 2 * s.hidden * s.inner + s.inner + s.hidden  # An MLP of two layers with biases.
    match kind:
        case "llama":
            biases = (projected + s.hidden) * s.on("attention_bias", False)
            return gated + biases + (2 * s.inner + s.hidden) * s.on("mlp_bias", False)
        case "qwen2":
            return gated + projected
        case "qwen3":
            return gated + 2 * s.head + (projected + s.hidden) * s.on("attention_bias", False)
        case "gemma2":
            return gated + 2 * s.hidden  # Norms also behind attention and MLP.
        case "gemma3_text":
            return gated + 2 * s.hidden + 2 * s.head
        case "olmo2":
            return gated + s.attention + s.kv  # Norms of all queries and keys.
        case "phi":
            attention = (s.hidden + 1) * projected + (s.attention + 1) * s.hidden
            return attention + plain + 2 * s.hidden + 4 * s.head * s.on("qk_layernorm", False)
        case "gpt_neox":
            return (
                4 * s.hidden * s.hidden + 4 * s.hidden * s.on("attention_bias", True) + plain + 4 * s.hidden
            )
    return gated


def _linears(kind: str, s: _Sizes) -> tuple[Linear, ...]:
    """The linear layers of one decoder layer."""
    query, key, value = (
        Linear("q_proj", s.hidden, s.attention),
        Linear("k_proj", s.hidden, s.kv),
        Linear("v_proj", s.hidden, s.kv),
    )
    out, up, down = (
        Linear("o_proj", s.attention, s.hidden),
        Linear("up_proj", s.hidden, s.inner),
        Linear("down_proj", s.inner, s.hidden),
    )
    match kind:
        case "phi":
            return (
                query,
                key,
                value,
                out._replace(name="dense"),
                up._replace(name="fc1"),
                down._replace(name="fc2"),
            )
        case "phi3":
            return (
                Linear("qkv_proj", s.hidden, s.attention + 2 * s.kv),
                out,
                Linear("gate_up_proj", s.hidden, 2 * s.inner),
                down,
            )
        case "gpt_neox":
            attention = Linear("query_key_value", s.hidden, 3 * s.hidden), Linear("dense", s.hidden, s.hidden)
            return *attention, up._replace(name="dense_h_to_4h"), down._replace(name="dense_4h_to_h")
    return query, key, value, out, Linear("gate_proj", s.hidden, s.inner), up, down


@dataclass(frozen=True)
class Memory:
    """Bytes of memory on one device.

    `activations` is an estimate; the rest is counted. `otherwise`: a training's activations with the other
    choice of gradient checkpointing.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    otherwise: float = 0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def kept_activations(shape: Shape, tokens: float, checkpointing: bool) -> float:
    """Bytes of the activations of `tokens` that are kept for the backward pass."""
    layer = ACTIVATION_BYTES * tokens * shape.hidden
    return (
        CHECKPOINT_BYTES * tokens * shape.hidden * shape.layers + layer
        if checkpointing
        else layer * shape.layers
    )


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
    adapter: int = 0,
    quantized: bool = False,
) -> Memory:
    """Memory of a training on one device.

    Each device takes `sequences` of `length` tokens per step. `adapter`: number of weights of the trained
    adapter; its base is frozen.
    """
    n = adapter or shape.parameters
    # Autocast copies each weight; copies of frozen weights live until the layer's backward pass.
    copied = BYTES[dtype] if dtype != "float32" and not quantized else 0
    at_once = shape.parameters / (shape.layers if adapter and checkpointing else 1)
    held = shape.weight_bytes("float32", quantized) + 4 * adapter
    weights = (held + copied * at_once) / (devices if sharding == "zero3" else 1)
    split = 1 if sharding == "none" else devices
    kept, otherwise = (
        kept_activations(shape, sequences * length, choice) for choice in (checkpointing, not checkpointing)
    )
    return Memory(weights, 4 * n / split, OPTIMIZER_BYTES[optimizer] * n / split, kept, otherwise)


def writing_memory(
    shape: Shape, *, dtype: str, sequences: int, length: int, adapter: int = 0, quantized: bool = False
) -> Memory:
    """Memory of generation: weights, and the keys and values of a batch. `activations` holds the latter."""
    kv = sequences * length * shape.kv_bytes(dtype)
    return Memory(shape.weight_bytes(dtype, quantized) + 4 * adapter, 0, 0, kv)


def scoring_memory(
    shape: Shape, *, sequences: int, length: int, adapter: int = 0, quantized: bool = False
) -> Memory:
    """Memory of computing log-probabilities: float32 weights and one layer's activations; there is no
    backward pass.
    """
    one = ACTIVATION_BYTES * sequences * length * shape.hidden
    return Memory(shape.weight_bytes("float32", quantized) + 4 * adapter, 0, 0, one)
