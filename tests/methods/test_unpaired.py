"""Methods on judged completions: CSFT's control tokens, offline PPO's value head and reference, KTO's weights when one label is rare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model, smoke_cell, smoke_folder
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    TrainerCallback,
)

from bench.config import Decoding, by_name
from bench.conformance.checks import KINDS, method
from bench.conformance.references import REFERENCES
from bench.engines.hf import TransformersEngine, load_model
from bench.methods import load
from bench.methods.csft import BAD, GOOD, add_control_tokens, check_positions
from bench.methods.kto import class_weights
from bench.models.tokenize import load_tokenizer, preference_ids, prompt_ids
from bench.papers import tables
from bench.records import Logps, Pair, Unpaired, read_logps, read_rows
from bench.stages import logps as logps_stage
from bench.stages import train as train_stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import LogpsSettings, TrainSettings
from bench.training import losses
from bench.training.trainers import Recorder, TrainingJob

LEARNING = {"learning_rate": 1e-3, "batch_size": 16, "max_grad_norm": 1.0}


def train_settings(name: str, max_length: int = 192, seed: int = 0, **training: Any) -> TrainSettings:
    kind = by_name(*KINDS)[name]
    settings = {
        **REFERENCES[kind].settings[0],
        **{k: v for k, v in training.items() if k in ("weight_ratio",)},
    }
    rest = {k: v for k, v in training.items() if k not in settings}
    return TrainSettings(
        method=method(kind, settings, **LEARNING | rest), max_length=max_length, dtype="float32", seed=seed
    )


@pytest.fixture(scope="module")
def inputs() -> dict[str, Path]:
    """Start model, rows and reference log-probs of the smoke run."""
    return {
        role: smoke_folder(source) for role, source in smoke_cell("kto", 0.1).roles["train"].inputs.items()
    }  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the train stage leaves of csft and offline_ppo."""
    folders = {}
    for name in ("csft", "offline_ppo"):
        folders[name] = tmp_path_factory.mktemp(name)
        train_stage.run(
            train_settings(name), StageRun(inputs, folders[name], Progress(folders[name] / "progress"))
        )
    return folders


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("chat"))


class Silent(TrainerCallback):
    pass


def trainer_of(
    settings: TrainSettings, inputs: dict[str, Path], rows: Sequence[Any], out: Path, callback: Any = None
) -> Any:
    reference = read_logps(inputs["reference_logps"])
    model, tokenizer = load_model(inputs["model"], "float32"), load_tokenizer(inputs["model"])
    return load(settings.method.name).make_trainer(
        TrainingJob(settings, model, tokenizer, rows, reference, out, callback or Silent())
    )


def some_rows(inputs: dict[str, Path], n: int) -> list[Pair]:
    return read_rows(inputs["preferences"] / "train.jsonl")[:n]  # type: ignore[return-value]


def imbalanced(inputs: dict[str, Path], n: int, n_desirable: int) -> tuple[list[Unpaired], dict[str, Logps]]:
    """Unpaired rows, the first ones desirable, with the stored reference log-probs under their names."""
    stored, rows, reference = read_logps(inputs["reference_logps"]), [], {}
    for i, pair in enumerate(some_rows(inputs, n)):
        side = "chosen" if i < n_desirable else "rejected"
        rows.append(
            Unpaired(
                pair.id,
                pair.prompt,
                getattr(pair, side),
                i < n_desirable,
                getattr(pair, f"mismatched_{side}"),
            )
        )
        reference |= {f"train/{pair.id}/completion": stored[f"train/{pair.id}/{side}"]}
        reference |= {f"train/{pair.id}/mismatched": stored[f"train/{pair.id}/mismatched_{side}"]}
    return rows, reference


# CSFT: the tokens -----------------------------------------------------------------------------------------------------


def with_controls(folder: Path, seed: int, spare: int = 0) -> tuple[Any, Any, int]:
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    n = len(tokenizer)
    if spare:
        model.resize_token_embeddings(n + spare, mean_resizing=False)
    add_control_tokens(model, tokenizer, seed)
    return model, tokenizer, n


def test_control_tokens_have_embeddings_of_their_own_drawn_by_the_seed(chat: Path) -> None:
    (model, tokenizer, n), (again, _, _), (other, _, _) = (with_controls(chat, seed) for seed in (3, 3, 4))
    assert tokenizer.convert_tokens_to_ids([GOOD, BAD]) == [n, n + 1]
    assert tokenizer(f"a{GOOD}b")["input_ids"].count(n) == 1
    before = load_model(chat, "float32")
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new, same, different = (getattr(m, layer)().weight for m in (before, model, again, other))
        assert new.shape[0] == n + 2
        assert torch.equal(new[:n], old) and torch.equal(new, same)
        assert not torch.equal(new[n], new[n + 1]) and not torch.equal(new[n:], different[n:])
        assert new[n:].std().item() == pytest.approx(old.std().item(), rel=0.5)
    assert model.config.vocab_size == n + 2


def test_tied_embeddings_stay_tied_and_spare_rows_are_used(inputs: dict[str, Path], chat: Path) -> None:
    model, _, n = with_controls(inputs["model"], 0)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight.shape[0] == n + 2
    model, tokenizer, n = with_controls(chat, 0, spare=10)
    assert model.get_input_embeddings().weight.shape[0] == n + 10
    assert tokenizer.convert_tokens_to_ids([GOOD, BAD]) == [n, n + 1]


def test_learned_positions_must_leave_a_place_for_the_control_token(chat: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=64, n_embd=8, n_layer=1, n_head=1))
    check_positions(gpt2, 63)
    with pytest.raises(
        ValueError,
        match=r"has 64 positions, .*needs model\.max_length=64 and one more.*Set model\.max_length=63",
    ):
        check_positions(gpt2, 64)
    check_positions(load_model(chat, "float32"), 10**6)  # rotary
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 64,
    }
    opt = OPTForCausalLM(
        OPTConfig(ffn_dim=8, word_embed_proj_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    )
    with pytest.raises(ValueError, match="has 64 positions"):
        check_positions(opt, 64)
    alibi = FalconForCausalLM(FalconConfig(alibi=True, **sizes))
    alibi.config.rope_parameters = None
    check_positions(alibi, 64)  # computed: its 64 are those of its training


def test_a_control_token_stands_between_prompt_and_completion_which_is_cut_where_it_was(chat: Path) -> None:
    _, tokenizer, n = with_controls(chat, 0)
    prompt = [{"role": "user", "content": "please name a dog"}]
    before = prompt_ids(tokenizer, prompt)
    assert prompt_ids(tokenizer, prompt, GOOD) == [*before, n]
    row = Unpaired("1", prompt, "the horse is a good dog", True, "a red plum")
    for max_length in (len(before) + 3, 100):
        plain, asked = (
            preference_ids(tokenizer, row, max_length),
            preference_ids(tokenizer, row, max_length, GOOD),
        )
        for column in plain:
            assert asked[column] == replace(plain[column], prompt=[*plain[column].prompt, n])
    with pytest.raises(ValueError, match=r"<\|good\|> is no token of this model's tokenizer"):
        prompt_ids(load_tokenizer(chat), prompt, GOOD)


def test_csft_trains_on_each_row_after_the_token_of_its_label(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Some rows are cut: they are one token longer than max_length, and the reference's sums are of the same tokens."""
    rows = some_rows(inputs, 24)
    plain = load_tokenizer(inputs["model"])
    max_length = 60
    trainer = trainer_of(train_settings("csft", max_length=max_length), inputs, rows, tmp_path)
    good, bad = trainer.processing_class.convert_tokens_to_ids([GOOD, BAD])
    wanted = {}
    for row in rows:
        for column, control, label in (("chosen", good, True), ("rejected", bad, False)):
            ids = preference_ids(plain, row, max_length)[column]
            wanted[(*ids.prompt, control, *ids.completion)] = (len(ids.completion), label)
    seen = {}
    for batch in trainer.get_train_dataloader():
        assert not any(name.startswith("KL_") for name in batch)
        for ids, mask, inside, label in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], batch["label"], strict=True
        ):
            seen[tuple(ids[mask.bool()].tolist())] = (int(inside.sum()), bool(label))
    assert seen == wanted
    assert max(map(len, seen)) == max_length + 1


# CSFT: the policy -----------------------------------------------------------------------------------------------------


def test_a_saved_policy_brings_its_tokens_and_cannot_be_asked_without_them(
    trained: dict[str, Path], inputs: dict[str, Path]
) -> None:
    assert AutoTokenizer.from_pretrained(trained["csft"] / "model").convert_tokens_to_ids(GOOD) != 3  # <unk>
    TransformersEngine(trained["csft"], "float32", 4, GOOD)
    for control in (None, BAD):
        with pytest.raises(
            ValueError, match=rf"csft.* must end in the control token <\|good\|>, got {control and '<.bad.>'}"
        ):
            TransformersEngine(trained["csft"], "float32", 4, control)
    with pytest.raises(ValueError, match=r"must end in no control token, got <\|good\|>"):
        TransformersEngine(inputs["model"], "float32", 4, GOOD)


def test_held_out_log_probs_are_those_after_the_good_token(
    trained: dict[str, Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """By hand: one row at a time, float64, the plain forward."""
    settings = LogpsSettings(
        rows="preferences",
        splits=("heldout",),
        mismatched=False,
        max_length=192,
        batch_size=8,
        dtype="float32",
        control=GOOD,
    )
    run = StageRun(
        {"model": trained["csft"], "preferences": inputs["preferences"]},
        tmp_path,
        Progress(tmp_path / "progress"),
    )
    logps_stage.run(settings, run)
    stored = read_logps(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(trained["csft"] / "model", dtype=torch.float64)
    tokenizer = load_tokenizer(trained["csft"])
    good = tokenizer.convert_tokens_to_ids(GOOD)
    rows = read_rows(inputs["preferences"] / "heldout.jsonl")
    assert len(stored) == 2 * len(rows)
    for row in rows[:6]:
        for column in ("chosen", "rejected"):
            plain = preference_ids(tokenizer, row, 192)[column]
            ids = [*plain.prompt, good, *plain.completion]
            with torch.no_grad():
                found = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
            by_hand = sum(found[i, ids[i + 1]].item() for i in range(len(plain.prompt), len(ids) - 1))
            assert stored[f"heldout/{row.id}/{column}"].logps == pytest.approx(by_hand, rel=1e-5, abs=1e-4)
    with pytest.raises(ValueError, match="must end in the control token"):
        logps_stage.run(settings.model_copy(update={"control": None}), run)


def test_a_control_token_is_never_written(chat: Path, tmp_path: Path) -> None:
    """Not even where one of the two is the likeliest at every step."""
    model, tokenizer, n = with_controls(chat, 0)
    with torch.no_grad():
        model.lm_head.weight[n] = 100.0
        model.lm_head.weight[n + 1] = -100.0
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, "float32", 4, GOOD)
    ids = [
        prompt_ids(engine.tokenizer, [{"role": "user", "content": text}], GOOD)
        for text in ("a dog", "the plum", "red")
    ]
    with torch.no_grad():
        assert all(int(engine.model(torch.tensor([row])).logits[0, -1].argmax()) >= n for row in ids)
    for temperature in (0.0, 1.0):
        written = engine.generate(ids, Decoding(temperature=temperature, top_p=1.0, max_new_tokens=12), 0)
        assert all(token < n for completion in written for token in completion.ids)


def test_no_other_training_starts_from_a_policy_that_is_asked_with_a_token(
    trained: dict[str, Path], inputs: dict[str, Path]
) -> None:
    run = StageRun(
        {**inputs, "model": trained["csft"]}, trained["csft"], Progress(trained["csft"] / "progress")
    )
    with pytest.raises(ValueError, match=r"control token <\|good\|> \(CSFT\)"):
        train_stage.run(train_settings("offline_ppo"), run)


@pytest.mark.parametrize("name", ["csft", "offline_ppo"])
def test_the_same_training_twice_gives_the_same_bytes(
    trained: dict[str, Path], inputs: dict[str, Path], name: str, tmp_path: Path
) -> None:
    train_stage.run(train_settings(name), StageRun(inputs, tmp_path, Progress(tmp_path / "progress")))
    for file in ("history.jsonl", "model/model.safetensors"):
        assert (tmp_path / file).read_bytes() == (trained[name] / file).read_bytes()


# Offline PPO ----------------------------------------------------------------------------------------------------------


def test_the_value_head_is_not_part_of_the_policy(trained: dict[str, Path], inputs: dict[str, Path]) -> None:
    before, after = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (inputs["model"], trained["offline_ppo"])
    )
    assert {name: value.shape for name, value in before.items()} == {
        name: value.shape for name, value in after.items()
    }
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_token_references_are_the_stored_sums_token_by_token(inputs: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_of(train_settings("offline_ppo"), inputs, some_rows(inputs, 24), tmp_path)
    assert len(trainer.train_dataset) == 48
    for row in trainer.train_dataset:
        tokens = row["ref_token_logps"]
        assert len(tokens) == len(row["prompt_ids"]) + len(row["completion_ids"]) - 1
        assert set(tokens[: len(row["prompt_ids"]) - 1]) <= {0.0} and all(
            value < 0 for value in tokens[len(row["prompt_ids"]) - 1 :]
        )
        assert sum(tokens) == pytest.approx(row["ref_logps"], rel=1e-5, abs=1e-4)


class Steps(TrainerCallback):
    """Gradient norms of a value head and of the policy as each step takes them, and the head's after it; the curve."""

    def __init__(self) -> None:
        self.head: Any = None
        self.norms: list[tuple[float, float]] = []
        self.left: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, *_: Any, **seen: Any) -> None:
        self.norms.append((norm(self.head.parameters()), norm(seen["model"].parameters())))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.left.append(norm(self.head.parameters()))

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        self.logs.append(dict(logs or {}))


def norm(parameters: Any) -> float:
    return math.sqrt(sum((p.grad**2).sum().item() for p in parameters if p.grad is not None))


def test_the_value_head_learns_with_a_gradient_clip_of_its_own(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """value_weight 100 makes its gradient large; the policy's, clipped at 1e-3 here, does not feel it."""
    settings = train_settings("offline_ppo", max_grad_norm=1e-3)
    settings = settings.model_copy(
        update={"method": settings.method.model_copy(update={"value_weight": 100.0})}
    )
    steps = Steps()
    trainer = trainer_of(settings, inputs, some_rows(inputs, 48), tmp_path, steps)
    steps.head = trainer.critic.module
    before = [p.detach().clone() for p in steps.head.parameters()]
    trainer.train()
    assert len(steps.norms) == 6
    for head, policy in steps.norms:
        assert head == pytest.approx(0.1, rel=1e-4)
        assert policy == pytest.approx(1e-3, rel=1e-3)
    assert steps.left == [0.0] * 6  # or gradients of one step would be taken again with the next
    assert all(not torch.equal(a, b) for a, b in zip(before, steps.head.parameters(), strict=True))
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-3}


def test_offline_ppos_first_step_has_no_kl_and_no_policy_loss(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Ratios are 1, and whitened advantages have mean 0. The curve has what KTO's has."""
    recorder = Recorder(Progress(tmp_path / "progress"))
    trainer_of(train_settings("offline_ppo"), inputs, some_rows(inputs, 24), tmp_path, recorder).train()
    first, last = recorder.history[0], recorder.history[-1]
    assert abs(first["kl"]) < 1e-6 and abs(first["ppo/policy_loss"]) < 1e-6
    assert first["loss"] == pytest.approx(0.01 * first["ppo/value_loss"], abs=1e-6)
    for side in ("chosen", "rejected"):
        assert abs(first[f"rewards/{side}"]) < 1e-4
        assert {f"logps/{side}", f"rewards/{side}", "rewards/margins", "rewards/accuracies"} <= set(last)
    assert abs(last["kl"]) > 1e-6


def test_a_step_of_several_batches_logs_the_mean_of_each_number(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """TRL's own `kl`, 0 for a loss without one, stands neither in offline PPO's nor in CSFT's curve."""
    settings = train_settings(
        "offline_ppo", batch_size=8, gradient_accumulation_steps=3, num_train_epochs=2.0
    )
    recorder = Recorder(Progress(tmp_path / "progress"))
    trainer = trainer_of(settings, inputs, some_rows(inputs, 12), tmp_path, recorder)
    parts: list[dict[str, float]] = []
    compute = trainer._compute_loss

    def watch(*given: Any) -> Any:
        found = compute(*given)
        parts.append(
            {
                name: trainer._metrics["train"][name][-1]
                for name in ("kl", "ppo/policy_loss", "ppo/value_loss")
            }
        )
        return found

    trainer._compute_loss = watch
    trainer.train()
    assert [row["step"] for row in recorder.history] == [1, 2]
    for name in parts[3]:
        assert recorder.history[1][name] == pytest.approx(sum(part[name] for part in parts[3:]) / 3)
    assert len({part["kl"] for part in parts[3:]}) == 3
    trainer_of(
        train_settings("csft"),
        inputs,
        some_rows(inputs, 12),
        tmp_path,
        plain := Recorder(Progress(tmp_path / "progress")),
    ).train()
    assert "kl" not in plain.history[0]


def test_rewards_and_targets_by_hand() -> None:
    """Rows of a desirable completion of two tokens and an undesirable one of one, a prompt place before and padding after them.

    The target leaves out a step's own reward: at γ .9 two tokens before the end it is .9, one before it 1, at the last 0."""
    mask = torch.tensor([[0.0, 1, 1, 1, 0], [0, 1, 0, 0, 0]])
    nothing = torch.zeros_like(mask)
    rewards = losses.terminal_rewards(losses.TokenLogps(nothing, nothing, mask, torch.tensor([True, False])))
    assert rewards.tolist() == [[0, 0, 0, 1, 0], [0, -1, 0, 0, 0]]
    target = losses.future_rewards(rewards, 0.9) * mask
    assert target[0].tolist() == pytest.approx([0, 0.9, 1, 0, 0])
    assert target[1].tolist() == [0] * 5


def test_the_codes_clip_and_the_papers_by_hand() -> None:
    """Ratios 3 and .3 at advantages 1 and -1: the code's [.5, 2] gives -2 and .5, the paper's [.25, 4] gives -3 and .3."""
    rows = losses.TokenLogps(
        torch.tensor([[3.0, 0.3]]).log(), torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([True])
    )
    advantages = torch.tensor([[1.0, -1.0]])
    assert losses.clipped_policy_loss(advantages, rows, 0.5).item() == pytest.approx((-2 + 0.5) / 2)
    assert losses.clipped_policy_loss(advantages, rows, 0.25).item() == pytest.approx((-3 + 0.3) / 2)


def test_whitening_is_over_tokens_that_count() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 50.0], [5.0, 7.0, -9.0]]), torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    found = losses.whitened(values, mask)[:, :2].flatten()  # mean 4, variance 5 over four tokens
    assert found.tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])


# KTO with a rare label ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "n_desirable", "n_undesirable", "expected"),
    [
        (4 / 3, 100, 1000, (40 / 3, 1)),
        (4 / 3, 1000, 100, (1, 7.5)),
        (4 / 3, 50, 50, (4 / 3, 1)),
        (1.0, 30, 60, (2, 1)),
        (1.5, 3, 2, (1, 1)),
    ],
)
def test_the_side_that_is_short_is_raised(
    ratio: float, n_desirable: int, n_undesirable: int, expected: tuple[float, float]
) -> None:
    weights = class_weights(ratio, n_desirable, n_undesirable)
    assert weights == pytest.approx(expected)
    assert weights.desirable * n_desirable / (weights.undesirable * n_undesirable) == pytest.approx(ratio)
    assert min(weights) == 1


def test_a_ratio_of_one_kind_of_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match="needs desirable and undesirable rows, got 0 desirable and 7 undesirable"
    ):
        class_weights(1.0, 0, 7)


def test_weights_are_those_of_the_papers_imbalance_study() -> None:
    """Its ratio is 4/3, which some of its weights round to 1.33 first: all lie between what both give, to their last digit."""
    rows = [row for row in tables()["kto_data_imbalance"].records if row["method"] == "kto"]
    assert len(rows) == 11
    for row in rows:
        counts = round(10000 * row["frac_desirable"]), round(10000 * row["frac_undesirable"])
        for name, published in (("desirable", row["lambda_d"]), ("undesirable", row["lambda_u"])):
            low, high = sorted(getattr(class_weights(ratio, *counts), name) for ratio in (1.33, 4 / 3))
            assert low - 0.011 <= published <= high + 0.011, row


def test_few_desirable_rows_give_finite_numbers_and_recorded_weights(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """2 of 33 rows desirable, batches of 4, the last of one row: most batches hold one label alone. λ_D = 4/3 x 31/2."""
    rows, reference = imbalanced(inputs, 33, 2)
    settings = train_settings("kto", batch_size=4, weight_ratio=4 / 3)
    recorder = Recorder(Progress(tmp_path / "progress"))
    model, tokenizer = load_model(inputs["model"], "float32"), load_tokenizer(inputs["model"])
    trainer: Any = load("kto").make_trainer(
        TrainingJob(settings, model, tokenizer, rows, reference, tmp_path, recorder)
    )
    model.train()
    expected = 4 / 3 * 31 / 2
    seen = []
    for batch in trainer.get_train_dataloader():
        labels = batch["label"].bool()
        seen += labels.tolist()
        loss = trainer.compute_loss(trainer.model, batch).item()
        assert loss == pytest.approx(
            sum(0.5 * (expected if label else 1.0) for label in labels) / len(labels), rel=1e-5
        )
    assert (sum(seen), len(seen)) == (2, 33)
    trainer._metrics["train"].clear()
    trainer.train()
    assert len(recorder.history) == 9  # the recorder stops at a number that is none
    one_sided = [row for row in recorder.history if "rewards/chosen" not in row]
    assert len(one_sided) >= 7 and all("rewards/accuracies" not in row for row in one_sided)
    for row in recorder.history:
        assert (row["desirable_weight"], row["undesirable_weight"]) == (pytest.approx(expected), 1.0)
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize("name", ["csft", "offline_ppo"])
def test_one_label_in_a_batch_is_no_trouble(inputs: dict[str, Path], name: str, tmp_path: Path) -> None:
    rows, reference = imbalanced(inputs, 17, 1)
    recorder = Recorder(Progress(tmp_path / "progress"))
    model, tokenizer = load_model(inputs["model"], "float32"), load_tokenizer(inputs["model"])
    job = TrainingJob(
        train_settings(name, batch_size=4), model, tokenizer, rows, reference, tmp_path, recorder
    )
    load(name).make_trainer(job).train()
    assert len(recorder.history) == 5
