"""The engine against arithmetic by hand: one row at a time, float64, logits from the plain forward."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent.parent))

import architectures
from tiny import make_model, smoke_cell, smoke_folder

from bench.config import Decoding
from bench.engines import fused_head
from bench.engines.hf import TransformersEngine, load_model
from bench.engines.reward import Scorer, new_reward_model
from bench.models.tokenize import Ids, conversation, model_folder, preference_ids, prompt_ids
from bench.records import Item, read_jsonl, read_rows

torch.set_num_threads(1)  # as in a worker

GREEDY = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=12)
PLAIN = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def start() -> Path:
    return smoke_folder(smoke_cell("kto", 0.1).roles["train"].inputs["model"])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def policy() -> Path:
    return smoke_folder(smoke_cell("kto", 0.1).roles["train"])


@pytest.fixture(scope="module")
def prompts(start: Path) -> list[list[int]]:
    items = list(
        read_jsonl(smoke_folder(smoke_cell("start").roles["preference_items"]) / "items.jsonl", Item)
    )[:24]
    tokenizer = TransformersEngine(start, "float32", 1).tokenizer
    return [prompt_ids(tokenizer, conversation(item, [])) for item in items]


@pytest.fixture(scope="module")
def rows(start: Path) -> list[Ids]:
    preferences = read_rows(smoke_folder(smoke_cell("kto", 0.1).roles["preferences"]) / "train.jsonl")[:20]
    tokenizer = TransformersEngine(start, "float32", 1).tokenizer
    return [ids for row in preferences for ids in preference_ids(tokenizer, row, 192).values()]


def exact(folder: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_folder(folder), dtype=torch.float64)


@torch.no_grad()
def logps_by_hand(model: AutoModelForCausalLM, row: Ids) -> float:
    """Sum over completion tokens of logit - logsumexp at the position before: prompt masked, EOS included, no padding anywhere."""
    ids = row.prompt + row.completion
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    total = 0.0
    for position in range(len(row.prompt), len(ids)):
        before = logits[position - 1]
        total += (before[ids[position]] - torch.logsumexp(before, 0)).item()
    return total


@torch.no_grad()
def greedy_by_hand(model: AutoModelForCausalLM, prompt: Sequence[int], ends: set[int], n: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < n:
        ids.append(int(model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids


# Log-probabilities ----------------------------------------------------------------------------------------------------


def test_logps_equal_a_sum_by_hand(policy: Path, rows: list[Ids]) -> None:
    model = exact(policy)
    assert len({len(row.prompt) + len(row.completion) for row in rows}) > 5  # padding is exercised
    assert all(row.completion[-1] == 2 for row in rows)  # EOS
    by_hand = [logps_by_hand(model, row) for row in rows]
    assert TransformersEngine(policy, "float32", 16).logps(rows) == pytest.approx(by_hand, rel=1e-5, abs=1e-4)


def test_logps_do_not_depend_on_batch_size_or_order(start: Path, rows: list[Ids]) -> None:
    one = TransformersEngine(start, "float32", 1).logps(rows)
    for size in (3, 64):
        assert TransformersEngine(start, "float32", size).logps(rows) == pytest.approx(
            one, rel=1e-5, abs=1e-4
        )
    assert TransformersEngine(start, "float32", 16).logps(rows[::-1]) == pytest.approx(
        one[::-1], rel=1e-5, abs=1e-4
    )


def test_one_engine_writes_the_same_before_and_after_it_has_scored(
    start: Path, prompts: list[list[int]], rows: list[Ids]
) -> None:
    engine = TransformersEngine(start, "float32", 8)
    before = engine.generate(prompts, PLAIN, 0)
    engine.logps(rows[:2])
    assert engine.generate(prompts, PLAIN, 0) == before


def test_bfloat16_scores_by_autocast_over_float32_weights(policy: Path, rows: list[Ids]) -> None:
    """As training does. Rounding errors of single tokens cancel in part: half a per cent of the sum, here."""
    engine = TransformersEngine(policy, "bfloat16", 8)
    found, by_hand = engine.logps(rows), [logps_by_hand(exact(policy), row) for row in rows]
    assert engine.model.dtype == torch.float32
    assert found == pytest.approx(by_hand, rel=0.01, abs=0.3)
    assert found != pytest.approx(by_hand, rel=1e-5, abs=1e-4)


def test_the_kl_estimate_of_a_model_against_itself_is_zero(start: Path, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(start, "float32", 8)
    drawn = engine.generate(prompts, PLAIN, 0)
    rows = [Ids(prompt, written.ids) for prompt, written in zip(prompts, drawn, strict=True)]
    policy, reference = engine.logps(rows), TransformersEngine(start, "float32", 8).logps(rows)
    assert [a - b for a, b in zip(policy, reference, strict=True)] == [0.0] * len(rows)


def test_samples_at_temperature_one_come_from_the_model_that_is_scored(
    start: Path, prompts: list[list[int]]
) -> None:
    """The mean of -log π(y) over 2000 draws of one token is the distribution's entropy, within 4 standard errors."""
    engine, model = TransformersEngine(start, "float32", 64), exact(start)
    one = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=1)
    drawn = engine.generate(prompts[:1] * 2000, one, seed=3)
    logps = engine.logps([Ids(prompts[0], written.ids) for written in drawn])
    with torch.no_grad():
        exact_logps = torch.log_softmax(model(input_ids=torch.tensor([prompts[0]])).logits[0, -1], 0)
    entropy = -(exact_logps.exp() * exact_logps).sum().item()
    variance = (exact_logps.exp() * exact_logps**2).sum().item() - entropy**2
    assert -sum(logps) / len(logps) == pytest.approx(entropy, abs=4 * math.sqrt(variance / len(logps)))


# Completions ----------------------------------------------------------------------------------------------------------


def test_greedy_equals_an_argmax_loop(policy: Path, prompts: list[list[int]]) -> None:
    """In one batch with left padding, row by row as by hand."""
    assert len({len(prompt) for prompt in prompts}) > 5
    engine = TransformersEngine(policy, "float32", 24)
    written = engine.generate(prompts, GREEDY, 0)
    model = exact(policy)
    for prompt, completion in zip(prompts, written, strict=True):
        by_hand = greedy_by_hand(model, prompt, engine.ends, GREEDY.max_new_tokens)
        assert completion.ids == by_hand
        assert completion.finished == (by_hand[-1] in engine.ends)
        assert completion.text == engine.tokenizer.decode(by_hand, skip_special_tokens=True).strip()


def test_sampling_repeats_with_its_seed_and_differs_with_another(
    start: Path, prompts: list[list[int]]
) -> None:
    engine = TransformersEngine(start, "float32", 8)
    first = engine.generate(prompts, PLAIN, 0)
    assert TransformersEngine(start, "float32", 8).generate(prompts, PLAIN, 0) == first
    other = engine.generate(prompts, PLAIN, 1)
    assert sum(a.ids != b.ids for a, b in zip(first, other, strict=True)) > len(prompts) / 2


def test_two_rows_with_one_prompt_get_draws_of_their_own(start: Path, prompts: list[list[int]]) -> None:
    written = TransformersEngine(start, "float32", 8).generate(prompts[:1] * 8, PLAIN, 0)
    assert len({tuple(completion.ids) for completion in written}) > 4


def test_a_cut_completion_is_unfinished_and_an_ended_one_keeps_its_end(
    start: Path, prompts: list[list[int]]
) -> None:
    engine = TransformersEngine(start, "float32", 8)
    cut = engine.generate(prompts, Decoding(temperature=0.0, top_p=1.0, max_new_tokens=2), 0)
    assert all(len(completion.ids) == 2 for completion in cut if not completion.finished)
    assert not all(completion.finished for completion in cut)
    long = engine.generate(prompts, PLAIN.model_copy(update={"max_new_tokens": 64}), 0)
    ended = [completion for completion in long if completion.finished]
    assert ended
    for completion in ended:
        assert completion.ids[-1] in engine.ends
        assert not engine.ends & set(completion.ids[:-1])
        assert "<eos>" not in completion.text


# Folders of a user's own ----------------------------------------------------------------------------------------------


def test_a_folders_own_generation_settings_change_nothing(
    start: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """A repetition penalty would change what is decoded, unkeyed; a temperature without sampling is refused when a model is saved."""
    shutil.copytree(start / "model", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    own = {"repetition_penalty": 5.0, "temperature": 0.6, "top_k": 1, "do_sample": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    for decoding in (GREEDY, PLAIN):
        assert TransformersEngine(tmp_path, "float32", 8).generate(
            prompts, decoding, 0
        ) == TransformersEngine(start, "float32", 8).generate(prompts, decoding, 0)
    load_model(tmp_path, "float32").save_pretrained(tmp_path / "saved")


def test_every_end_token_that_a_folder_names_ends_a_completion(
    start: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    shutil.copytree(start / "model", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    usual = TransformersEngine(start, "float32", 8).generate(prompts, GREEDY, 0)
    extra = usual[0].ids[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, extra]}))
    engine = TransformersEngine(tmp_path, "float32", 8)
    assert engine.ends == {2, extra}
    first = engine.generate(prompts, GREEDY, 0)[0]
    assert (first.ids, first.finished) == (usual[0].ids[:2], True)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path: Path) -> None:
    """Padding with the end token must not end, mask or lengthen anything."""
    folder = make_model(tmp_path / "own")
    engine = TransformersEngine(folder, "float32", 4)
    assert engine.tokenizer.pad_token == engine.tokenizer.eos_token
    asked = [
        engine.tokenizer(text)["input_ids"]
        for text in ("please name one", "the dog", "a good red apple and the river of it")
    ]
    model = exact(folder)
    for prompt, completion in zip(asked, engine.generate(asked, GREEDY, 0), strict=True):
        assert completion.ids == greedy_by_hand(model, prompt, engine.ends, GREEDY.max_new_tokens)
    rows = [Ids(prompt, [*asked[0], engine.tokenizer.eos_token_id]) for prompt in asked]
    assert engine.logps(rows) == pytest.approx(
        [logps_by_hand(model, row) for row in rows], rel=1e-5, abs=1e-4
    )


# Reward models --------------------------------------------------------------------------------------------------------


def make_classifier(folder: Path, *, pad: int | None, num_labels: int = 1) -> Path:
    """A random sequence classifier of a user's own."""
    make_model(folder)
    config = AutoConfig.from_pretrained(folder, num_labels=num_labels, pad_token_id=pad)
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def reward_by_hand(folder: Path, row: Ids, end: int) -> float:
    """The head's weights times the hidden state of the token before `end`, of an unpadded row."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    hidden = model.model(input_ids=torch.tensor([row.prompt + row.completion])).last_hidden_state[0, end - 1]
    return (hidden @ model.score.weight[0]).item()


def rewarded_rows(eos: int) -> list[Ids]:
    return [Ids([20 + i, 40, 41][: 1 + i % 3], [*range(50, 52 + 3 * i), eos]) for i in range(7)]


@pytest.mark.parametrize("pad", [None, 0, "eos"])
def test_rewards_are_the_models_own_in_any_batch(tmp_path: Path, pad: int | str | None) -> None:
    """With a pad token of its own or none the last token is read, with EOS as pad token the one before it, as transformers does."""
    eos = 2
    folder = make_classifier(tmp_path / "own", pad=eos if pad == "eos" else pad)  # type: ignore[arg-type]
    rows = rewarded_rows(eos)
    by_hand = [reward_by_hand(folder, row, len(row.prompt + row.completion) - (pad == "eos")) for row in rows]
    assert len({round(value, 6) for value in by_hand}) == len(rows)
    for size in (1, 3, 16):
        assert Scorer(folder, "float32", size).rewards(rows) == pytest.approx(by_hand, rel=1e-5, abs=1e-5)
    assert Scorer(folder, "float32", 3).rewards(rows[::-1]) == pytest.approx(
        by_hand[::-1], rel=1e-5, abs=1e-5
    )


def test_a_classifier_of_several_outputs_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a reward model must have one output, got num_labels=3"):
        Scorer(make_classifier(tmp_path / "own", pad=0, num_labels=3), "float32", 4)


def test_a_reward_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    scorer = Scorer(make_classifier(tmp_path / "own", pad=0), "float32", 4)
    torch.nn.init.constant_(scorer.model.score.weight, float("inf"))
    with pytest.raises(FloatingPointError, match="7 of 7 rewards are not finite"):
        scorer.rewards(rewarded_rows(2))


def test_a_new_reward_model_has_the_start_models_body_and_a_seeded_head(start: Path) -> None:
    state = torch.get_rng_state()
    one, same, other = (new_reward_model(start, "float32", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    body = load_model(start, "float32").state_dict()
    assert all(torch.equal(one[name], body[name]) for name in one if name != "score.weight")
    assert torch.equal(one["score.weight"], same["score.weight"])
    assert not torch.equal(one["score.weight"], other["score.weight"])


# The fused head -------------------------------------------------------------------------------------------------------


def test_the_fused_head_scores_completions_only_and_changes_no_log_prob_or_gradient(start: Path) -> None:
    """Beside the model's own logits: log-probs, entropy and gradients of two padded rows, one of them without a label."""
    ids = torch.arange(3, 27).reshape(2, 12)
    labels = torch.full_like(ids, -100)
    labels[0, 5:9] = ids[0, 5:9]
    scored: list[tuple[int, int]] = []

    class Watched(fused_head.FittedHead):
        @staticmethod
        def forward(ctx: Any, hidden: Any, *rest: Any) -> Any:
            values = fused_head.FittedHead.forward(ctx, hidden, *rest)
            scored.append((len(hidden), ctx.chunk_size))
            return values

    ours, plain = load_model(start, "float32"), load_model(start, "float32")
    fused_head.add_fused_lm_head(ours, outputs=("log_probs", "entropy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_head.utils, "_ChunkedLogProbFunction", Watched)
        out = ours(input_ids=ids, labels=labels, fused_lm_head=True)
    assert scored == [(4, len(ours.get_output_embeddings().weight))]
    logps = torch.log_softmax(plain(input_ids=ids).logits[:, :-1], -1)
    mask = labels[:, 1:] != -100
    expected = logps.gather(-1, ids[:, 1:, None])[..., 0] * mask
    torch.testing.assert_close(out.log_probs, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(out.entropy, -(logps.exp() * logps).sum(-1) * mask, rtol=0, atol=1e-5)
    out.log_probs.sum().backward()
    expected.sum().backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_without_labels_gives_a_zero_that_has_gradients(start: Path) -> None:
    model = load_model(start, "float32")
    fused_head.add_fused_lm_head(model)
    ids = torch.arange(3, 15).reshape(1, 12)
    loss = model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True).loss
    loss.backward()
    assert loss.item() == 0 and all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


# Beside transformers' generate() --------------------------------------------------------------------------------------


def by_transformers(engine: TransformersEngine, prompt: list[int], decoding: Decoding) -> list[int]:
    """Ids of one completion by generate(), up to its end."""
    sampling = {"do_sample": bool(decoding.temperature), "temperature": decoding.temperature or None}
    ids = torch.tensor([prompt])
    out = engine.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted(engine.ends),
        pad_token_id=engine.tokenizer.pad_token_id,
        suppress_tokens=engine.vocabulary.suppressed or None,
        top_p=decoding.top_p,
        top_k=0,
        **sampling,
    )
    return engine.vocabulary.to_completion(out[0, len(prompt) :].tolist()).ids


@pytest.mark.parametrize("decoding", [PLAIN, PLAIN.model_copy(update={"temperature": 0.7, "top_p": 0.8})])
def test_a_row_alone_gets_the_draws_of_transformers(
    start: Path, prompts: list[list[int]], decoding: Decoding
) -> None:
    engine = TransformersEngine(start, "float32", 1)
    engine.vocabulary.suppressed = [5, 6]
    for prompt in prompts[:8]:
        (drawn,) = engine.generate([prompt], decoding, 3)
        torch.manual_seed(3 * 1_000_003)
        assert drawn.ids == by_transformers(engine, prompt, decoding)


@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES))
def test_rows_that_leave_their_batch_change_no_greedy_token_of_the_others(name: str, tmp_path: Path) -> None:
    """In a batch of prompts of several lengths, where rows end at different tokens, for every architecture."""
    engine = TransformersEngine(architectures.make(name, tmp_path), "float32", 8)
    prompts = [list(range(10, 10 + n)) for n in (3, 9, 5, 7, 4, 6, 12, 8)]
    decoding = GREEDY.model_copy(update={"max_new_tokens": 10})
    free = engine.generate(prompts, decoding, 0)
    engine.ends |= {free[0].ids[2], free[1].ids[5]}
    drawn = engine.generate(prompts, decoding, 0)
    assert len({len(one.ids) for one in drawn}) > 1
    assert [one.ids for one in drawn] == [by_transformers(engine, prompt, decoding) for prompt in prompts]
