"""Each architecture through the whole path, as a user's own folder: load, SFT, DPO, KTO, LoRA, generate, score; and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from outer import some_outer
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from architectures import ARCHITECTURES, make
from tiny import make_preferences, plans

from bench.cli.compose import open_command
from bench.cli.folders import CHAT_TEMPLATES
from bench.engines.hf import TransformersEngine, check_fit, load_model
from bench.forecast import compute_table
from bench.models.tokenize import load_tokenizer, prompt_ids, row_ids
from bench.planning.inputs import CellPlan
from bench.records import Completion, read_jsonl, read_logps
from bench.runner.worker import describe, run_stage
from bench.store.keys import Stage
from bench.store.store import Store

torch.set_num_threads(1)

USER = [{"role": "user", "content": "please name a dog"}]
TEXT = [{"role": "text", "content": "please name a dog"}]
STEPS = ("method.batch_size=16", "method.gradient_accumulation_steps=1", "method.learning_rate=1e-3")
SMALL = (
    "model.max_length=96",
    "judge.decoding.max_new_tokens=8",
    "judge.n_items=4",
    "data.n_kl_prompts=4",
    "data.kl_max_new_tokens=8",
)


def run_cells(cells: list[CellPlan], store: Store) -> None:
    """Every stage, as a worker runs it."""
    for stage in dict.fromkeys(stage for cell in cells for stage in cell.stages):
        if store.status(stage).state != "done":
            run_stage(describe(stage, store))
            store.invalidate(stage)


def stage(cell: CellPlan, label: str) -> Stage:
    return next(stage for stage in cell.stages if label in stage.label)


def numbers(store: Store, cell: CellPlan) -> dict[str, float]:
    return json.loads((store.folder(cell.score) / "result.json").read_text())["metrics"]


@pytest.mark.parametrize("name", some_outer(ARCHITECTURES, ["llama", "gpt_neox"]))
def test_an_architecture_goes_through_the_whole_path(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path / name)
    messages = ARCHITECTURES[name].template is not None
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=messages, n=40)
    own = (f"model={folder}", "data=local", f"data.path={data}", *SMALL, *STEPS)
    cells = plans(*own, "method=sft_chosen,dpo,kto") + plans(
        *own, "method=dpo", "adapter=lora", "adapter.rank=4"
    )
    store = Store(tmp_path / "store")
    run_cells(cells, store)
    trained = {
        cell.name.split("-local")[0].rsplit(f"-{name}", 1)[0]: cell for cell in cells if "train" in cell.roles
    }
    assert set(trained) == {"sft_chosen", "dpo-beta0.1", "kto-beta0.1", "dpo-beta0.1-lora"}
    for cell in trained.values():
        found = numbers(store, cell)
        assert 0 <= found["reward_accuracy"] <= 1
        assert found["mean_length"] >= 0
        history = [
            json.loads(line)
            for line in (store.folder(cell.roles["train"]) / "history.jsonl").read_text().splitlines()
        ]
        assert len(history) >= 2
        if (
            cell.cell.method.name == "dpo"
        ):  # policy and reference agree before the first step, through template, padding and head
            assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert_adapter_alone_is_kept(store, trained["dpo-beta0.1-lora"], folder)
    assert (
        len({stage(cell, "reference log-probs").key for cell in trained.values()}) == 1
    )  # one pass for all, the adapter too


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_qlora_learns_beside_a_base_in_four_bits(name: str, tmp_path: Path) -> None:
    """Reference, policy and sampling read the same four bits: before the first step they agree."""
    pytest.importorskip("bitsandbytes", reason="pip install -e '.[qlora]'")
    folder = make(name, tmp_path / name)
    messages = ARCHITECTURES[name].template is not None
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=messages, n=40)
    own = (f"model={folder}", "data=local", f"data.path={data}", *SMALL, *STEPS)
    whole, quantized = (
        plans(*own, "method=dpo", f"adapter={adapter}", "adapter.rank=4") for adapter in ("lora", "qlora")
    )
    store = Store(tmp_path / "store")
    run_cells([*whole, *quantized], store)
    lora, qlora = (next(cell for cell in cells if "train" in cell.roles) for cells in (whole, quantized))
    curves = [
        (store.folder(cell.roles["train"]) / "history.jsonl").read_text().splitlines()
        for cell in (lora, qlora)
    ]
    assert [json.loads(curve[0])["loss"] for curve in curves] == [pytest.approx(0.693147, abs=1e-5)] * 2
    read, rounded = (read_logps(store.folder(stage(cell, "reference log-probs"))) for cell in (lora, qlora))
    assert 0 < max(abs(read[key].logps - rounded[key].logps) for key in read) < 5  # nats a completion
    assert_adapter_alone_is_kept(store, qlora, folder)


def assert_adapter_alone_is_kept(store: Store, cell: CellPlan, base: Path) -> None:
    kept = store.folder(cell.roles["train"]) / "model"
    assert not (kept / "model.safetensors").exists()
    weights = load_file(kept / "adapter_model.safetensors")
    assert all("lora" in key and value.dtype == torch.float32 for key, value in weights.items())
    assert str(base) not in (kept / "adapter_config.json").read_text()
    logps = read_logps(store.folder(stage(cell, "held-out log-probs")))
    reference = read_logps(store.folder(stage(cell, "reference log-probs")))
    assert any(
        abs(value.logps - reference[key].logps) > 1e-3 for key, value in logps.items()
    )  # base and adapter, not the base
    drawn = list(read_jsonl(store.folder(stage(cell, "plain completions")) / "completions.jsonl", Completion))
    assert drawn and all(completion.n_tokens[0] >= 1 for completion in drawn)


@pytest.mark.parametrize("template", some_outer(["tulu", "zephyr", "a file"], ["zephyr"]))
def test_a_base_model_learns_from_messages_in_the_template_that_it_is_given(
    template: str, tmp_path: Path
) -> None:
    """Its own folder stays as it is; what is trained from it carries the template on."""
    folder = make("gpt_neox", tmp_path / "base")
    before = sorted(path.name for path in folder.iterdir())
    if template == "a file":
        template = str(tmp_path / "own.jinja")
        Path(template).write_text((CHAT_TEMPLATES / "tulu.jinja").read_text())
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True, n=40)
    own = (
        f"results={tmp_path / 'results'}",
        f"model={folder}",
        f"model.chat_template={template}",
        "data=local",
        f"data.path={data}",
    )
    (cell,) = (cell for cell in plans(*own, *SMALL, *STEPS, "method=dpo") if "train" in cell.roles)
    store = Store(tmp_path / "results" / "store")
    run_cells([cell], store)
    trained = load_tokenizer(store.folder(cell.roles["train"]) / "model")
    text = str(trained.apply_chat_template(USER, tokenize=False, add_generation_prompt=True))
    assert (
        text
        == f"<|user|>\nplease name a dog{trained.eos_token if template == 'zephyr' else ''}\n<|assistant|>\n"
    )
    history = [
        json.loads(line)
        for line in (store.folder(cell.roles["train"]) / "history.jsonl").read_text().splitlines()
    ]
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == before
    planned = compute_table.report(
        [cell], [], store, open_command([*own, "do=plan"]).session.hardware, "weights", "auto"
    )
    assert planned and any(
        "one training on cpu read 1.00 times the forecast number of tokens" in line for line in planned.lines
    )


# What rows look like ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_begin_with_one_bos_and_end_with_an_end(name: str, tmp_path: Path) -> None:
    kind = ARCHITECTURES[name]
    folder = make(name, tmp_path / name)
    tokenizer, model = load_tokenizer(folder), load_model(folder, "float32")
    ends = check_fit(folder, model, tokenizer)
    asked = USER if kind.template else TEXT
    ids = row_ids(tokenizer, asked, " the horse", 90)
    whole = ids.prompt + ids.completion
    if kind.adds_bos:
        assert whole[0] == tokenizer.bos_token_id
        assert whole.count(tokenizer.bos_token_id) == 1
    elif kind.bos and kind.bos != kind.eos:
        assert tokenizer.bos_token_id not in whole
    assert ids.prompt == prompt_ids(tokenizer, asked)  # what is sampled from is what is trained
    last = [token for token in ids.completion if token in ends]
    assert len(last) == 1
    assert not str(tokenizer.decode(ids.completion[ids.completion.index(last[0]) + 1 :])).strip()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_on_which_a_tokenizer_pads_changes_nothing(side: str, tmp_path: Path) -> None:
    folders = [
        make("qwen", tmp_path / where, lambda t, where=where: setattr(t, "padding_side", where))
        for where in (side, "left")
    ]  # type: ignore[misc]
    engines = [TransformersEngine(folder, "float32", 4) for folder in folders]
    rows = [
        row_ids(engines[0].tokenizer, USER, text, 90)
        for text in ("the dog", "a good red apple and a river", "it")
    ]
    assert engines[0].logps(rows) == engines[1].logps(rows)


# What is refused -------------------------------------------------------------------------------------------------------


def loaded(folder: Path) -> Any:
    return TransformersEngine(folder, "float32", 2)


def test_a_template_that_begins_twice_is_refused(tmp_path: Path) -> None:
    folder = make(
        "llama",
        tmp_path / "m",
        lambda t: setattr(t, "chat_template", "{{ bos_token }}" + str(t.chat_template)),
    )
    with pytest.raises(ValueError, match="begins a conversation with more than one <s>: remove all but one"):
        loaded(folder)


def test_a_template_that_asks_in_another_form_than_it_teaches_is_refused(tmp_path: Path) -> None:
    other = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    )
    folder = make(
        "mistral",
        tmp_path / "m",
        lambda t: setattr(t, "chat_template", other + "{% if add_generation_prompt %}Bot:{% endif %}"),
    )
    with pytest.raises(
        ValueError,
        match="for sampling and for training: sampling begins an answer with 'Bot:', training with",
    ):
        loaded(folder)


def test_an_answer_that_never_ends_is_refused(tmp_path: Path) -> None:
    endless = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endfor %}"
    asks = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    folder = make("mistral", tmp_path / "m", lambda t: setattr(t, "chat_template", endless + asks))
    with pytest.raises(
        ValueError,
        match=r"ends an answer with .*not with one of the end tokens \('</s>'\): completions would never",
    ):
        loaded(folder)


def test_a_tokenizer_that_ends_every_prompt_is_refused(tmp_path: Path) -> None:
    from tokenizers import processors

    def end_all(tokenizer: Any) -> None:
        ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=ends
        )

    with pytest.raises(
        ValueError, match="puts </s> after every text: prompts would end before the completion"
    ):
        loaded(make("llama", tmp_path / "m", end_all))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = make("qwen", tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<more{i}>" for i in range(3)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="Use the tokenizer that belongs to the model"):
        loaded(folder)


def test_a_prompt_that_fills_the_models_positions_is_refused(tmp_path: Path) -> None:
    from bench.config import Decoding

    engine = loaded(make("gpt_neox", tmp_path / "m"))
    with pytest.raises(
        ValueError,
        match="a prompt of 128 tokens leaves no room for a completion: the model has 128 positions",
    ):
        engine.generate([[5] * 128], Decoding(temperature=0.0, top_p=1.0, max_new_tokens=4), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU lacks")
def test_what_needs_a_gpu_says_so(tmp_path: Path) -> None:
    from bench.config import Loading

    folder = make("llama", tmp_path / "m")
    with pytest.raises(
        ValueError,
        match=r"flash_attention_2 needs a GPU and the flash-attn package. Use model.attention=sdpa",
    ):
        load_model(folder, "bfloat16", Loading(attention="flash_attention_2"))
    eager, usual = (load_model(folder, "float32", Loading(attention=way)) for way in ("eager", "auto"))
    assert (eager.config._attn_implementation, usual.config._attn_implementation) == ("eager", "sdpa")
