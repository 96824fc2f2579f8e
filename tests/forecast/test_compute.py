"""What models of size take: parameters against real models, FLOPs and bytes against measured ones, and the plan of a folder that has
no weights yet."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import Ran, bench, make_model, make_preferences, plans

from bench.config import Hardware, Loading
from bench.forecast import compute
from bench.models.model_size import Shape, read_shape, scoring_memory, training_memory, writing_memory
from bench.store.store import Store

LLAMA_2_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL_7B = LLAMA_2_7B | {"model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LLAMA_2_7B, 6_738_415_616), (MISTRAL_7B, 7_241_732_096)],
    ids=["llama", "mistral"],
)
def test_published_sizes_come_from_config_alone(config: dict[str, Any], parameters: int) -> None:
    assert read_shape(config).parameters == parameters


SMALL = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80,
    "vocab_size": 100, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 24}),
        ("mistral", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("gemma2", {"head_dim": 24}),
        ("gemma3_text", {"head_dim": 24}),
        ("olmo2", {"tie_word_embeddings": True}),
        ("phi", {}),
        ("phi", {"qk_layernorm": True}),
        ("phi3", {}),
        ("gpt_neox", {}),
        ("gpt_neox", {"attention_bias": False}),
    ],
)
def test_parameters_are_those_of_the_real_model(kind: str, more: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **(SMALL | more))
    model = AutoModelForCausalLM.from_config(config)
    shape = read_shape(config.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    used = (
        shape.parameters
        if model.config.tie_word_embeddings
        else shape.parameters - model.get_input_embeddings().weight.numel()
    )
    assert shape.multiplied == used


def test_an_unknown_architecture_is_said() -> None:
    with pytest.raises(
        ValueError,
        match=r"cannot compute the size of model_type mamba; supported: gemma2, gemma3_text, gpt_neox, llama, ",
    ):
        read_shape({"model_type": "mamba"})
    with pytest.raises(ValueError, match=r"config.json of a llama model must have 'hidden_size'"):
        read_shape({"model_type": "llama"})


@pytest.fixture(scope="module")
def step() -> dict[str, float]:
    """FLOPs and bytes of one real step of a small model, and what is said of them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            **SMALL,
            "hidden_size": 128,
            "intermediate_size": 256,
            "vocab_size": 500,
            "attn_implementation": "eager",
        }
    )
    model, shape = LlamaForCausalLM(config), read_shape(config.to_dict())
    ids = torch.randint(0, 500, (4, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    forward, whole = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward, torch.no_grad():
        model(ids)
    with whole:
        model(ids, labels=ids).loss.backward()
    optimizer.step()
    states = sum(
        t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values() if t.dim()
    )
    held = {"weights": model.parameters(), "gradients": [p.grad for p in model.parameters()]}
    found = {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in held.items()}
    said = training_memory(
        shape, dtype="float32", optimizer="adamw_torch", sequences=4, length=64, checkpointing=False
    )
    return {
        "forward": forward.get_total_flops() / (ids.numel() * shape.forward_flops(64)),
        "trained": whole.get_total_flops() / (ids.numel() * shape.trained_flops(64)),
        "weights": found["weights"] / said.weights,
        "gradients": found["gradients"] / said.gradients,
        "optimizer": states / said.optimizer,
    }


def test_flops_are_those_that_torch_counts(step: dict[str, float]) -> None:
    print(f"\nmeasured by forecast: forward {step['forward']:.4f}, training step {step['trained']:.4f}")
    assert step["forward"] == pytest.approx(
        1, abs=0.02
    )  # norms, rotation and softmax are no matrix products, and not counted by either
    assert step["trained"] == pytest.approx(1, abs=0.02)


def test_bytes_are_those_that_a_step_holds(step: dict[str, float]) -> None:
    assert (step["weights"], step["gradients"], step["optimizer"]) == (1, 1, 1)


# Adapters --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [(), "first two"], ids=["all", "named"])
@pytest.mark.parametrize(
    "kind",
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi", "phi3", "gpt_neox"],
)
def test_an_adapter_has_as_many_weights_as_pefts(kind: str, targets: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from bench.config import Adapter
    from bench.engines.adapters import add_adapter

    config = AutoConfig.for_model(kind, **SMALL)
    model, shape = AutoModelForCausalLM.from_config(config), read_shape(config.to_dict())
    chosen = tuple(linear.name for linear in shape.linears[:2]) if targets else ()
    add_adapter(model, Adapter(name="lora", rank=4, alpha=8.0, dropout=0.0, target_modules=chosen), seed=0)
    assert shape.adapter(4, chosen) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_unknown_targets_of_an_adapter_are_said() -> None:
    with pytest.raises(
        ValueError,
        match="must name linear layers of the model, got c_attn; known: down_proj, gate_proj, k_proj",
    ):
        read_shape(LLAMA_2_7B).adapter(16, ("q_proj", "c_attn"))


def test_flops_and_bytes_of_a_lora_step_are_those_of_a_real_one() -> None:
    """Twelve layers: the first one's input needs no gradient, which the formula leaves out (here 1 %, of 32 layers less)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.config import Adapter
    from bench.engines.adapters import add_adapter

    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "vocab_size": 500,
        "num_hidden_layers": 12,
        "attn_implementation": "eager",
    }
    config = LlamaConfig(**{**SMALL, **sizes})
    model, shape = LlamaForCausalLM(config), read_shape(config.to_dict())
    add_adapter(model, Adapter(name="lora", rank=8, alpha=8.0, dropout=0.0, target_modules=()), seed=0)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer, ids = torch.optim.AdamW(learnt), torch.randint(0, 500, (4, 64))
    forward, whole = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward, torch.no_grad():
        model(ids)
    with whole:
        model(ids, labels=ids).loss.backward()
    optimizer.step()
    adapter = shape.adapter(8, ())
    found = forward.get_total_flops() / (ids.numel() * shape.forward_flops(64, adapter))
    trained = whole.get_total_flops() / (ids.numel() * shape.trained_flops(64, adapter))
    print(f"\nmeasured by forecast: forward {found:.4f}, LoRA step {trained:.4f}")
    assert found == pytest.approx(1, abs=0.02)
    assert trained == pytest.approx(1, abs=0.02)
    said = training_memory(
        shape,
        dtype="float32",
        optimizer="adamw_torch",
        sequences=4,
        length=64,
        checkpointing=False,
        adapter=adapter,
    )
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    held = [list(model.parameters()), [p.grad for p in model.parameters() if p.grad is not None], states]
    assert [sum(t.numel() * t.element_size() for t in tensors) for tensors in held] == [
        said.weights,
        said.gradients,
        said.optimizer,
    ]


def test_lora_and_qlora_of_llama_2_7b_by_hand() -> None:
    """Rank 16 on all linear layers: 16 (4 (4096 + 4096) + 3 (4096 + 11008)) a layer = 1,249,280, times 32 = 39,976,960.

    Linear layers hold 32 (4 · 4096² + 3 · 4096 · 11008) = 6,476,005,376 weights, all else 262,410,240. In NF4 a weight has 4 bits, a
    64th of 8 and a 16384th of 32: 0.515869140625 bytes. A token forward: 2 (6,607,343,616 + a) and attention 4 · 32 · 4096 · context.
    """
    shape = read_shape(LLAMA_2_7B)
    a = shape.adapter(16, ())
    assert a == 39_976_960
    linears, rest = 6_476_005_376, 262_410_240
    assert linears + rest == shape.parameters
    assert shape.weight_bytes("float32", quantized=True) == 0.515869140625 * linears + 4 * rest
    assert shape.trained_flops(1000, a) == 4 * 6_607_343_616 + 6 * a + 3 * 4 * 32 * 4096 * 1000
    assert shape.trained_flops(1000, a) / shape.trained_flops(1000) == pytest.approx(0.68, abs=0.01)

    of_batch: dict[str, Any] = {
        "dtype": "bfloat16",
        "optimizer": "adamw_torch",
        "sequences": 8,
        "length": 1024,
        "checkpointing": True,
    }
    lora, qlora = (
        training_memory(shape, **of_batch, adapter=a, quantized=quantized) for quantized in (False, True)
    )
    assert (lora.gradients, lora.optimizer) == (qlora.gradients, qlora.optimizer) == (4 * a, 8 * a)
    assert (
        lora.weights == 4 * shape.parameters + 4 * a + 2 * shape.parameters / 32
    )  # float32, and a layer's bfloat16 copies
    assert qlora.weights == 0.515869140625 * linears + 4 * rest + 4 * a
    assert qlora.weights / 1e9 == pytest.approx(4.55, abs=0.01)


def test_a_base_in_four_bits_takes_the_bytes_that_are_said(tmp_path: Path) -> None:
    """Packed weights, a byte a block of 64, a float32 a 256 blocks; all else float32 (here whole blocks: nothing is padded)."""
    pytest.importorskip("bitsandbytes", reason="pip install -e '.[qlora]'")
    from transformers import AutoModelForCausalLM, LlamaConfig

    from bench.engines.hf import in_float32, load_model

    config = LlamaConfig(
        vocab_size=512, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=704
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = in_float32(load_model(tmp_path, "bfloat16", Loading(quantized="nf4")))
    held = list(model.parameters())
    states = [state for p in model.parameters() if (state := getattr(p, "quant_state", None)) is not None]
    held += [tensor for state in states for tensor in (state.absmax, state.state2.absmax)]
    said = read_shape(json.loads((tmp_path / "config.json").read_text())).weight_bytes(
        "float32", quantized=True
    )
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == said


def test_sharding_divides_what_it_shards() -> None:
    shape = read_shape(MISTRAL_7B)

    def of(sharding: Any) -> Any:
        of_batch: dict[str, Any] = {
            "optimizer": "adamw_torch",
            "sequences": 8,
            "length": 1024,
            "checkpointing": True,
        }
        return training_memory(shape, dtype="bfloat16", sharding=sharding, devices=8, **of_batch)

    n = shape.parameters
    assert (of("none").weights, of("none").gradients, of("none").optimizer) == (6 * n, 4 * n, 8 * n)
    assert (of("zero2").weights, of("zero2").gradients, of("zero2").optimizer) == (6 * n, n / 2, n)
    assert (of("zero3").weights, of("zero3").gradients, of("zero3").optimizer) == (6 * n / 8, n / 2, n)
    assert of("zero3").activations < of("zero3").otherwise / 5
    assert writing_memory(shape, dtype="bfloat16", sequences=1, length=1).activations == 2 * 32 * 8 * 128 * 2
    assert scoring_memory(shape, sequences=1, length=1).weights == 4 * n


# A plan ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 7B folder of which only config and tokenizer have come, and pairs."""
    place = tmp_path_factory.mktemp("seven")
    tiny = make_model(place / "tiny")
    (place / "seven_b").mkdir()
    for path in tiny.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, place / "seven_b" / path.name)
    (place / "seven_b" / "config.json").write_text(json.dumps(LLAMA_2_7B))
    make_preferences(place / "pairs.jsonl", paired=True, messages=True, n=100)
    return place


def own(folder: Path, *words: str) -> tuple[str, ...]:
    data = ("data=local", f"data.path={folder / 'pairs.jsonl'}", "model.dtype=bfloat16", "judge=none")
    return (f"model={folder / 'seven_b'}", *data, "method=dpo,kto", "method.beta=0.1,0.3", *words)


@pytest.fixture(scope="module")
def planned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    results = tmp_path_factory.mktemp("plan") / "results"
    return bench(
        *own(folder, "hardware=a100_80", "hardware.price_per_hour=2", "do=plan", "size=cells"),
        results=results,
    )


def test_a_7b_sweep_is_planned_from_its_config(planned: Ran) -> None:
    assert planned.code == 0, planned.err
    words = " ".join(planned.out.split())
    for said in (
        "seven_b: 6,738,415,616 parameters",
        "on a100_80 (80 GB), at 40% of its 312 TFLOP/s",
        "at $2 an hour",
        "40.4 GB weights, 27 GB gradients, 53.9 GB optimizer",
        "activations a device with gradient checkpointing",
        "without: model.gradient_checkpointing=false",
        "a device is more than the 80 GB of a100_80: use more devices",
        "4 models to train, 13.5 GB each; keep=weights leaves 53.9 GB",
        "shared stages: the whole sweep takes",
        "are counted by the model's tokenizer",
    ):
        assert said in words
    assert not (planned.results / "store").exists()


def test_the_controlled_world_is_sized_only_when_asked(tmp_path: Path) -> None:
    plain = bench("+sweep=smoke", "do=plan", results=tmp_path / "results")
    asked = bench("+sweep=smoke", "do=plan", "size=stages", results=tmp_path / "results")
    assert "parameters" not in plain.out
    n = int(re.search(r"world_smoke: ([\d,]+) parameters", asked.out)[1].replace(",", ""))  # type: ignore[index]
    assert 50_000 < n < 60_000


GPU = Hardware(
    name="gpu",
    peak_tflops=100.0,
    memory_gb=80.0,
    bandwidth_gbs=1000.0,
    price_per_hour=None,
    mfu=0.5,
    mbu=0.5,
    devices=1,
    sharding="none",
)


def sized(folder: Path, hardware: Hardware = GPU, *words: str) -> dict[str, list[compute.Sized]]:
    """Of the trained cells, by kind."""
    cells = plans(*own(folder, "do=plan", *words))
    sizes = compute.Sizes(Store(folder / "none"), hardware)
    found: dict[Any, compute.Sized] = {}
    for cell in cells:
        found |= sizes.of(cell, shape())
    sizes.close()
    return {
        kind: [s for stage, s in found.items() if stage.kind == kind]
        for kind in ("train", "logps", "generate")
    }


def shape() -> Shape:
    return read_shape(LLAMA_2_7B)


def test_training_is_6nd_and_the_reference_2nd(folder: Path) -> None:
    found = sized(folder)
    dpo, _, kto, _ = found["train"]
    n = shape().multiplied
    assert dpo.flops == pytest.approx(
        6 * n * dpo.work.trained, rel=0.01
    )  # texts are short: attention adds little
    assert kto.work.trained == dpo.work.trained
    assert kto.flops == pytest.approx(8 * n * kto.work.trained, rel=0.01)  # mismatched completions go forward
    reference = max(
        (s for s in found["logps"] if s.work.context < 100), key=lambda s: s.work.scored
    )  # the others score what is written
    assert reference.flops == pytest.approx(2 * n * reference.work.scored, rel=0.01)
    assert reference.work.scored > 2 * dpo.work.trained  # with mismatched partners and held-out rows
    assert dpo.gpu_hours == pytest.approx(
        4 / 3 * dpo.flops / (100e12 * 0.5) / 3600
    )  # a second forward: 7B are trained with checkpointing


def test_gradient_checkpointing_trades_activations_for_a_second_forward(folder: Path) -> None:
    """8 sequences of 1024 tokens, 4096 hidden, 32 layers: 34 bytes each without; 2 each and one layer's 34 with."""
    plain, kept = (
        sized(folder, GPU, f"model.gradient_checkpointing={word}")["train"][0] for word in ("false", "true")
    )
    unit = 8 * 1024 * 4096
    assert (plain.memory.activations, kept.memory.activations) == (34 * 32 * unit, (2 * 32 + 34) * unit)
    assert kept.memory.total - kept.memory.activations == plain.memory.total - plain.memory.activations
    assert (plain.flops, plain.gpu_hours * 4 / 3) == (kept.flops, pytest.approx(kept.gpu_hours))


def test_an_adapters_training_costs_two_thirds_and_leaves_little(folder: Path) -> None:
    found = sized(folder, GPU, "adapter=lora")
    a, n = 39_976_960, shape().multiplied
    for trained in found["train"]:
        assert trained.weights == 4 * a
        assert (trained.memory.gradients, trained.memory.optimizer) == (4 * a, 8 * a)
    dpo = found["train"][0]
    assert dpo.flops == pytest.approx((4 * n + 6 * a) * dpo.work.trained, rel=0.01)
    assert (
        max(s.memory.weights for s in found["logps"]) == 4 * shape().parameters + 4 * a
    )  # base and adapter score, one after another
    assert max(s.memory.weights for s in found["generate"]) == 2 * shape().parameters + 4 * a


def test_a_plan_with_an_adapter_says_what_is_trained_and_kept(folder: Path, tmp_path: Path) -> None:
    ran = bench(
        *own(folder, "adapter=lora", "do=plan", "keep=adapters", "hardware=a100_40"),
        results=tmp_path / "results",
    )
    words = " ".join(ran.out.split())
    for said in (
        "adapter: 39,976,960 parameters, the only ones trained",
        "160 MB gradients, 320 MB optimizer",
    ):
        assert said in words
    assert "4 adapters to train, 160 MB each; keep=adapters leaves 640 MB" in words


def test_writing_takes_as_long_as_reading_the_weights(folder: Path) -> None:
    (written, *_) = sized(folder)["generate"]
    steps = written.work.steps
    assert written.gpu_hours == pytest.approx(steps * 2 * shape().parameters / (1e12 * 0.5) / 3600)
    assert written.gpu_hours > written.flops / (100e12 * 0.5) / 3600


def test_efficiency_moves_hours_and_nothing_else(folder: Path) -> None:
    slow, fast = (sized(folder, GPU.model_copy(update={"mfu": mfu}))["train"][0] for mfu in (0.25, 0.5))
    assert slow.gpu_hours == pytest.approx(2 * fast.gpu_hours)
    assert (slow.flops, slow.memory) == (fast.flops, fast.memory)


def test_neither_hardware_nor_keep_reaches_a_key(folder: Path) -> None:
    keys = {
        tuple(cell.key for cell in plans(*own(folder, "do=plan", *words)))
        for words in ((), ("hardware=l40s", "keep=numbers"))
    }
    assert len(keys) == 1
