"""Model folders as they are found: weights that do not all arrive, sizes, positions, tokens without a row, code that is not fetched, and
templates through plan and run."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outer import MARKS
from safetensors.torch import load_file, save_file
from tiny import CHATML, bench, make_model, make_preferences
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from bench import methods
from bench.cli.folders import model_folder
from bench.config import Bounds, Decoding, Serving
from bench.engines.base import load_config
from bench.engines.hf import TransformersEngine, check_weights, has_position_table, load_model
from bench.engines.reward import Scorer, new_reward_model
from bench.engines.vllm import VllmEngine as Vllm
from bench.models.model_config import check_rows, check_shards, check_sizes, check_whole, positions
from bench.models.tokenize import check_rendering, load_tokenizer, prompt_ids
from bench.planning.cells import plan_cell
from bench.text_files import BadFile

BOUNDS = Bounds(layers=100, width=1000, heads=64, experts=8, vocabulary=1000, positions=10_000, template_s=60)
SERVING = Serving(
    python=None, gpu_memory_utilization=0.8, tensor_parallel_size=1, max_model_len=None, arguments={}
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("whole"))


def changed(
    folder: Path, to: Path, tensors: Callable[[Tensors], Tensors] = lambda t: t, **config: Any
) -> Path:
    shutil.copytree(folder, to)
    save_file(
        tensors(load_file(folder / "model.safetensors")), to / "model.safetensors", metadata={"format": "pt"}
    )
    settings = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(settings | config))
    return to


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


# Weights --------------------------------------------------------------------------------------------------------------

LACKING: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "layer": (without("layers.1."), r"missing: model.layers.1.\S+, \S+, \S+ and 6 more tensors\). Copy"),
    "head": (without("lm_head"), r"missing: lm_head.weight\). Copy"),
    "norm": (without("model.norm"), r"missing: model.norm.weight\). Copy"),
    "all": (
        lambda _: {"other": torch.zeros(2)},
        r"missing: lm_head.weight, .*; the model has no place for other\). Copy",
    ),
    "more": (
        lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
        r"model has no place for model.layers.0.self_attn.q",
    ),
}


@pytest.mark.parametrize(("tensors", "why"), LACKING.values(), ids=LACKING)
def test_weights_that_do_not_all_arrive_are_refused_by_name(
    tensors: Callable[[Tensors], Tensors], why: str, whole: Path, tmp_path: Path
) -> None:
    folder = changed(whole, tmp_path / "damaged", tensors)
    named = rf"the weights in {folder} do not fit its config.json .*{why}"
    for load in (
        lambda: load_model(folder, "float32"),
        lambda: check_weights(folder),
        lambda: TransformersEngine(folder, "float32", 2),
    ):
        with pytest.raises(ValueError, match=named):
            load()


def test_a_new_reward_model_needs_the_whole_body_and_no_head(whole: Path, tmp_path: Path) -> None:
    for name in ("layer", "norm", "more"):
        with pytest.raises(ValueError, match="do not fit its config"):
            new_reward_model(changed(whole, tmp_path / name, LACKING[name][0]), "float32", 0)
    folder = changed(whole, tmp_path / "headless", without("lm_head"))
    made = new_reward_model(folder, "float32", 0)
    assert torch.equal(
        made.model.embed_tokens.weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    )
    with pytest.raises(ValueError, match=r"missing: score.weight; the model has no place for lm_head.weight"):
        Scorer(changed(whole, tmp_path / "causal", num_labels=1), "float32", 2)


def test_tied_weights_and_old_buffers_are_not_missed(whole: Path, tmp_path: Path) -> None:
    tied = changed(whole, tmp_path / "tied", without("lm_head"), tie_word_embeddings=True)
    assert load_model(tied, "float32").lm_head.weight is not None
    check_weights(tied)
    old = changed(
        whole,
        tmp_path / "old",
        lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)},
    )
    load_model(old, "float32")


def test_masks_that_older_transformers_saved_are_no_part_of_a_model(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "gpt2")
    config = GPT2Config(vocab_size=400, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    load_model(changed(folder, tmp_path / "old", lambda t: t | masks), "float32")


def test_a_tensor_of_other_sizes_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "other", lambda t: t | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(
        ValueError,
        match=rf"in {folder} do not fit .*model.norm.weight must have the sizes \[\d+\], got \[3\]\). Copy",
    ):
        load_model(folder, "float32")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1000\n"


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (lambda whole: whole[:-100], "it was cut short: it has"),
        (
            lambda whole: whole[:100],
            "it is no safetensors file, or it was cut short \\(100 bytes\\): copy it again",
        ),
        (lambda _: b"", "it is no safetensors file"),
        (lambda _: (2).to_bytes(8, "little") + b"[]", "it is no safetensors file"),
        (lambda _: POINTER, "it is a Git LFS pointer, not the weights: run `git lfs pull`"),
    ],
    ids=["cut", "cut in the header", "empty", "of a list", "pointer"],
)
@pytest.mark.parametrize("index", [False, True])
def test_damaged_files_of_weights_are_told_from_their_headers(
    damaged: Callable[[bytes], bytes], why: str, index: bool, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    check_whole(folder)
    name = "model-00001-of-00001.safetensors" if index else "model.safetensors"
    (folder / name).write_bytes(damaged((folder / "model.safetensors").read_bytes()))
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadFile, match=f"{name}: {why}"):
        check_whole(folder)


def test_a_tokenizer_that_cannot_be_read_is_one_line_with_its_folder(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=rf"^the tokenizer in {folder} cannot be read: .*; copy the whole folder again$"
    ):
        load_tokenizer(folder)


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig

    folder = tmp_path_factory.mktemp("adapter")
    model = load_model(whole, "float32")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    load_tokenizer(whole).save_pretrained(folder)
    return folder


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OF_ADAPTERS: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "lacking": (
        without("layers.1.self_attn.q_proj.lora_B"),
        {},
        r"adapter_config.json \(missing: .*layers.1.self_attn.q_proj.lora_B",
    ),
    "more": (
        lambda t: t | {A.replace("0", "7"): torch.zeros(2, 32)},
        {},
        r"adapter_config.json \(the model has no place for .*layers.7",
    ),
    "other sizes": (
        lambda t: t | {A: torch.ones(3, 32)},
        {},
        r"lora_A.default.weight must have the sizes \[2, 32\], got \[3, 32\]\). Copy",
    ),
    "another rank": (
        lambda t: t,
        {"r": 8},
        r"must have the sizes \[8, 32\], got \[2, 32\], and 3 more tensors",
    ),
    "NaN": (
        lambda t: t | {A: t[A] * float("nan")},
        {},
        r"not finite \(base_model.*0.self_attn.q_proj.lora_A.weight holds 64 NaN or",
    ),
    "infinite": (lambda t: t | {A: t[A] / 0}, {}, "not finite"),
    "of a kind that PEFT has not": (
        lambda t: t,
        {"peft_type": "FOO"},
        "adapter_config.json: this version of transformers does not support peft_type='FOO'",
    ),
    "of layers that are not there": (
        lambda t: t,
        {"target_modules": ["nothing"]},
        "adapter_config.json: .*nothing",
    ),
}


@pytest.mark.parametrize(("tensors", "config", "why"), OF_ADAPTERS.values(), ids=OF_ADAPTERS)
def test_an_adapter_that_is_not_whole_is_refused_alike_by_both_engines(
    tensors: Callable[[Tensors], Tensors],
    config: dict[str, Any],
    why: str,
    whole: Path,
    adapter: Path,
    tmp_path: Path,
) -> None:
    load_model(adapter, "float32", base=whole)
    Vllm(adapter, "float32", SERVING, base=whole)
    folder = shutil.copytree(adapter, tmp_path / "damaged")
    file, settings = (
        folder / "adapter_model.safetensors",
        json.loads((folder / "adapter_config.json").read_text()),
    )
    save_file(tensors(load_file(file)), file, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    for load in (
        lambda: load_model(folder, "float32", base=whole),
        lambda: Vllm(folder, "float32", SERVING, base=whole),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            load()
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused_with_their_folder(
    value: str, whole: Path, tmp_path: Path
) -> None:
    def one_bad(tensors: Tensors) -> Tensors:
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name][0, 0] = float(value)
        return tensors

    folder = changed(whole, tmp_path / "bad", one_bad)
    why = rf"the weights in {folder} are not finite \(model.layers.0.self_attn.q_proj.weight holds 1 NaN"
    for load in (
        load_model,
        lambda path, dtype: Vllm(path, dtype, SERVING),
        lambda path, dtype: new_reward_model(path, dtype, 0),
    ):
        with pytest.raises(ValueError, match=why):
            load(folder, "bfloat16")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            {"rope_parameters": {"rope_type": "odd", "rope_theta": 1e4}},
            "this version of transformers does not support rope_parameters.rope_type='odd'",
        ),
        ({"rope_scaling": {"type": "odd", "factor": 2.0}}, "support rope_parameters.type='odd'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "KeyError: .*'rope_type'='yarn': {'factor'}",
        ),
        ({"hidden_act": "odd"}, "support hidden_act='odd'"),
        ({"model_type": "odd"}, "model type `odd`"),
        ({"rope_scaling": 3}, "rope_parameters"),
    ],
)
def test_what_transformers_has_not_is_refused_by_name(
    config: dict[str, Any], why: str, whole: Path, tmp_path: Path
) -> None:
    folder = changed(whole, tmp_path / "odd", **config)
    for load in (lambda: load_model(folder, "float32"), lambda: check_weights(folder)):
        with pytest.raises(
            ValueError, match=rf"cannot build the model in {folder} from its config.json: .*{why}"
        ) as caught:
            load()
        assert "\n" not in str(caught.value)


ODD_ENDS: list[tuple[str, dict[str, Any], str]] = [
    (
        "tokenizer_config.json",
        {"eos_token": "<|none|>"},
        "eos_token must be one of the tokenizer's tokens, got the text '<|none|>'",
    ),
    (
        "tokenizer_config.json",
        {"eos_token": {"content": "<|none|>"}},
        "eos_token must be one of the tokenizer's tokens",
    ),
    ("tokenizer_config.json", {"eos_token": None}, "eos_token must be text, got null"),
    ("tokenizer_config.json", {"eos_token": 2}, "eos_token must be text, got the number 2"),
    (
        "generation_config.json",
        {"eos_token_id": 99999},
        "eos_token_id must be numbers from 0 to 336, got the number 99999",
    ),
    (
        "generation_config.json",
        {"eos_token_id": [2, -1]},
        "eos_token_id must be numbers from 0 to 336, got the number -1",
    ),
    (
        "generation_config.json",
        {"eos_token_id": "x"},
        "eos_token_id must be numbers from 0 to 336, got the text 'x'",
    ),
    (
        "generation_config.json",
        {"eos_token_id": True},
        "eos_token_id must be numbers from 0 to 336, got true",
    ),
]


@pytest.mark.parametrize(("file", "settings", "why"), ODD_ENDS)
def test_an_end_that_is_no_token_is_refused_before_a_run(
    file: str, settings: dict[str, Any], why: str, whole: Path, tmp_path: Path
) -> None:
    model_folder(str(whole), BOUNDS)
    folder = shutil.copytree(whole, tmp_path / "m")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | settings))
    with pytest.raises(BadFile, match=re.escape(f"{folder / file}: {why}")):
        model_folder(str(folder), BOUNDS)


def test_an_adapter_beside_a_whole_model_is_refused_before_a_run_and_by_both_engines(
    whole: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "both")
    for path in adapter.glob("adapter*"):
        shutil.copy(path, folder)
    loads = (
        lambda: model_folder(str(folder), BOUNDS),
        lambda: load_model(folder, "float32"),
        lambda: Vllm(folder, "float32", SERVING),
    )
    for load in loads:
        with pytest.raises(
            ValueError, match=rf"{folder} holds an adapter \(adapter_config.json\) and a whole model: move"
        ):
            load()


def test_files_that_an_index_names_must_be_there(tmp_path: Path) -> None:
    check_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(
        BadFile, match=r"index.json names missing files \(2.safetensors\): copy the whole folder again"
    ):
        check_shards(tmp_path)
    (tmp_path / "2.safetensors").touch()
    check_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadFile, match="weight_map must be an object of file names, got null"):
        check_shards(tmp_path)


@pytest.mark.parametrize(
    "place", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"]
)
def test_a_config_cannot_name_code_of_the_hub_for_attention(place: str, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "kernel", **{place: "owner/kernel"})
    assert load_config(folder)._attn_implementation is None
    assert (
        load_model(folder, "float32").config._attn_implementation
        == load_model(whole, "float32").config._attn_implementation
    )
    check_weights(folder)


def test_weights_whose_kernels_come_from_the_hub_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "quantised", quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(
        ValueError, match=rf"the weights in {folder} are quantised by mxfp4, .*Use a model with float weights"
    ):
        load_model(folder, "float32")


# Sizes and positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            '{"num_hidden_layers": 1000000}',
            "num_hidden_layers must be <= 100, got 1,000,000: the file may be damaged; if it is right, raise bounds.layers",
        ),
        ('{"n_layer": 101}', "n_layer must be <= 100, got 101"),
        (
            '{"hidden_size": 1000000}',
            "hidden_size must be <= 1,000, got 1,000,000: the file may be damaged; if it is right, raise bounds.width",
        ),
        ('{"num_attention_heads": 65}', "num_attention_heads must be <= 64"),
        ('{"vocab_size": 5000}', "vocab_size must be <= 1,000, got 5,000"),
        ('{"text_config": {"num_hidden_layers": 5000}}', "text_config.num_hidden_layers must be <= 100"),
        ('{"intermediate_size": [10, 5000]}', "intermediate_size must be <= 1,000, got 5,000"),
        ('{"num_hidden_layers": true}', "num_hidden_layers must be a whole number, got true"),
        ('{"num_hidden_layers": -1}', "num_hidden_layers must be a whole number, got the number -1"),
        ('{"num_hidden_layers": "2"}', "num_hidden_layers must be a whole number, got the text '2'"),
        ('{"num_hidden_layers": 2.5}', "num_hidden_layers must be a whole number, got the number 2.5"),
        ("NaN", "expected an object, got null"),
        ("[]", "expected an object, got a list of 0"),
        ("[" * 200_000, "nested deeper than"),
        ("{}\n{}", "not JSON"),
    ],
)
def test_a_config_with_sizes_that_no_model_has_is_refused(config: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadFile, match=re.escape(f"config.json: {why}")):
        check_sizes(tmp_path, BOUNDS)


def test_sizes_within_the_bounds_pass(whole: Path, tmp_path: Path) -> None:
    check_sizes(whole, BOUNDS)
    (tmp_path / "config.json").write_text(
        '{"n_inner": null, "max_position_embeddings": -1, "intermediate_size": [10, 20], "n_layer": 2}'
    )
    check_sizes(tmp_path, BOUNDS)


@pytest.mark.parametrize(
    "name",
    ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length"],
)
def test_positions_are_read_under_every_name_and_in_the_text_part(name: str) -> None:
    assert (
        positions({name: 48})
        == positions({"text_config": {name: 48}})
        == positions({"a": 1, name: 48, "text_config": {}})
        == 48
    )
    assert (
        positions({name: None}) is positions({name: True}) is positions({name: -1}) is positions({}) is None
    )


def of_table(kind: str, whole: Path, folder: Path) -> Path:
    """A model with a learned table of 48 positions."""
    tokenizer = load_tokenizer(whole)
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if kind == "gpt2":
        GPT2LMHeadModel(GPT2Config(n_positions=48, n_embd=32, n_layer=2, n_head=2, **common)).save_pretrained(
            folder
        )
    else:
        sizes = {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 64,
        }
        OPTForCausalLM(
            OPTConfig(max_position_embeddings=48, pad_token_id=0, **sizes, **common)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_what_leaves_a_table_of_positions_is_said_before_it_is_written(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    engine = TransformersEngine(of_table(kind, whole, tmp_path / kind), "float32", 2)
    prompts = [[5] * 10, [5] * 40]
    with pytest.raises(
        ValueError,
        match=r"1 of 2 prompts \(the longest has 40 tokens\) with max_new_tokens=9 exceed the model's 48 positions",
    ):
        engine.generate(prompts, Decoding(temperature=0.0, top_p=1.0, max_new_tokens=9), 0)
    assert len(engine.generate(prompts, Decoding(temperature=0.0, top_p=1.0, max_new_tokens=8), 0)) == 2
    assert has_position_table(engine.model)
    assert not has_position_table(load_model(whole, "float32"))


def test_lengths_beyond_a_table_are_refused_before_a_run(
    whole: Path, tmp_path: Path, problems: Callable[..., list[str]]
) -> None:
    folder = of_table("gpt2", whole, tmp_path / "gpt2")
    rows = make_preferences(tmp_path / "rows.jsonl", paired=True, messages=True)
    words = [
        "model=local",
        f"model.path={folder}",
        "data=local",
        f"data.path={rows}",
        "judge=none",
        f"results={tmp_path}",
    ]
    words += ["data.kl_max_new_tokens=20"]
    short = "judge.decoding.max_new_tokens=20"
    assert problems(*words, short, "model.max_length=40") == problems(*words, short) == []
    (kl,) = problems(*words[:-1], short)
    assert kl.startswith("data.kl_max_new_tokens must be < 48, the position limit of")
    (long,) = problems(*words, short, "model.max_length=128")
    assert long.startswith(f"model.max_length must be <= 48, the position limit of {folder}, got 128")
    (new,) = problems(*words, "judge.decoding.max_new_tokens=48")
    assert new.startswith("judge.decoding.max_new_tokens must be < 48, the position limit of")


def test_tokens_without_a_row_are_named(whole: Path, tmp_path: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    check_rows(whole, config)
    rows = config["vocab_size"]
    tokenizer = load_tokenizer(whole)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        BadFile,
        match=rf"the pad token '<pad>' \({rows}\) has no embedding: the model has {rows} embeddings. Either remove that token",
    ):
        check_rows(tmp_path, config)
    with pytest.raises(
        BadFile,
        match=rf"the tokens '\S+' \({rows - 1}\), '<pad>' \({rows}\) have no embedding: the model has {rows - 1} embed",
    ):
        check_rows(tmp_path, config | {"vocab_size": rows - 1})
    check_rows(tmp_path, {"text_config": config | {"vocab_size": rows + 1}})


# Templates ------------------------------------------------------------------------------------------------------------

OPENS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
DATED = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"
OWN_DATE = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
)


def test_what_is_asked_and_what_is_taught_are_compared_as_tokens(whole: Path) -> None:
    r"""As Qwen 3.5's: asking opens the thinking with a line end, teaching writes an empty one, and "\n\n" is one token."""
    tokenizer = load_tokenizer(whole)
    tokenizer.chat_template = OPENS
    ends = {int(tokenizer.eos_token_id)}
    check_rendering(
        whole, tokenizer, ends
    )  # each line end is a token of its own here: what is asked begins what is taught
    tokenizer.add_tokens(["\n\n"])
    with pytest.raises(
        ValueError,
        match=r"differently for sampling and for training: sampling begins .* with the tokens \['Ċ'\], training with the tokens \[",
    ):
        check_rendering(whole, tokenizer, ends)


def test_a_template_that_treats_longer_conversations_otherwise_is_seen(whole: Path) -> None:
    tokenizer = load_tokenizer(whole)
    shape = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    asks = "{% if add_generation_prompt %}{{ ('<|im_start|>bot\n' if messages | length > 2 else '<|im_start|>assistant\n') }}{% endif %}"
    tokenizer.chat_template = shape + asks
    with pytest.raises(
        ValueError,
        match=r"for sampling and for training: sampling begins an answer with 'bot\\n', training with",
    ):
        check_rendering(whole, tokenizer, {int(tokenizer.eos_token_id)})
    tokenizer.chat_template = "{{ 'Hello.' }}"
    with pytest.raises(ValueError, match="leaves out user messages that are plain text"):
        check_rendering(whole, tokenizer, {int(tokenizer.eos_token_id)})


def local(folder: Path, tmp_path: Path, template: str | None) -> list[str]:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    rows = make_preferences(tmp_path / "rows.jsonl", paired=True, messages=True)
    words = [
        "model=local",
        f"model.path={folder}",
        "data=local",
        f"data.path={rows}",
        "method=dpo",
        "judge=none",
    ]
    return [*words, f"results={tmp_path / 'results'}"]


def key(opened: Any) -> str:
    (cell,) = opened.cells
    return plan_cell(cell, opened.sources[0], methods.chain).key


def test_the_date_is_fixed_and_keyed_only_where_the_template_reads_it(
    whole: Path, tmp_path: Path, opened: Callable[..., Any], monkeypatch: Any
) -> None:
    """Two days, and another lab, get the same prompts and keys; no other key moves."""
    neither, owns, asks = (
        local(shutil.copytree(whole, tmp_path / name / "m"), tmp_path, template + CHATML)
        for name, template in (("neither", ""), ("owns", OWN_DATE), ("asks", DATED))
    )
    day = "model.template_date=2025-01-05"
    assert key(opened(*neither)) == key(opened(*neither, day))
    assert (
        len({key(opened(*owns)), key(opened(*owns, day))})
        == len({key(opened(*asks)), key(opened(*asks, day))})
        == 2
    )
    assert key(opened(*asks, "model.template_date=2024-07-26")) == key(opened(*asks))
    assert opened(*neither).sources[0].model.path == tmp_path / "neither" / "m"  # as it is
    assert opened(*owns).sources[0].model.path == tmp_path / "owns" / "m"

    def asked(*words: str) -> str:
        tokenizer = load_tokenizer(opened(*words).sources[0].model.path)
        return str(tokenizer.decode(prompt_ids(tokenizer, [{"role": "user", "content": "a dog"}])))

    first = asked(*asks)
    assert first.startswith("<|im_start|>system\n26 Jul 2024<|im_end|>\n")
    assert asked(*asks, day).startswith("<|im_start|>system\n05 Jan 2025<|im_end|>\n")
    assert asked(*owns, day).startswith("05 Jan 2025")
    tomorrow = type(
        "Tomorrow", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None: cls(2031, 1, 2))}
    )
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", tomorrow)
    assert asked(*asks) == first
    tokenizer = load_tokenizer(tmp_path / "asks" / "m")  # not by the checks of a command
    assert "26 Jul 2024" in str(
        tokenizer.apply_chat_template([{"role": "user", "content": "a dog"}], tokenize=False)
    )
    tokenizer.save_pretrained(tmp_path / "trained")  # as a training saves it
    assert load_tokenizer(tmp_path / "trained").chat_template == tokenizer.chat_template


def test_a_judge_in_a_folder_asks_no_clock_and_keeps_its_name(
    whole: Path, tmp_path: Path, opened: Callable[..., Any]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "a_judge")
    (folder / "chat_template.jinja").write_text(DATED + CHATML)
    judge = (
        opened("judge=local", f"judge.model={folder}", "judge.n_items=4", f"results={tmp_path / 'results'}")
        .sources[0]
        .judge
    )
    assert judge.model.path.name == "a_judge"
    assert judge.model.path != folder
    assert "strftime_now(format)" in (judge.model.path / "chat_template.jinja").read_text()


@pytest.mark.parametrize("day", ["yesterday", "2024-13-01", "26 Jul 2024"])
def test_a_day_must_be_one(day: str, whole: Path, tmp_path: Path, problems: Callable[..., list[str]]) -> None:
    words = local(whole, tmp_path, None)
    (problem,) = problems(*words, f"model.template_date='{day}'")
    assert "must be a day such as 2024-07-26" in problem


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('not for you') }}", "not for you"),
        pytest.param(
            "{{ ().__class__.__base__ }}",
            "SecurityError: access to attribute '__class__' of 'tuple' object is unsafe.",
            marks=MARKS,
        ),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "it took more than 2 s for a few short conv",
            marks=MARKS,
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line_of_plan_and_run_alike(
    template: str, why: str, whole: Path, tmp_path: Path
) -> None:
    words = [*local(shutil.copytree(whole, tmp_path / "m"), tmp_path, template)[:-1], "bounds.template_s=2"]
    for verb in ("plan", "run"):
        ran = bench(*words, f"do={verb}", results=tmp_path / "results")
        assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1), ran.err
        assert f"the chat template in {tmp_path / 'm'} cannot be used: {why}" in ran.err
