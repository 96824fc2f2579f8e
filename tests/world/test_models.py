from __future__ import annotations

import pytest
import torch

from bench.config import Pretraining, SftTraining, World, WorldModel
from bench.world.corpus import base_rows
from bench.world.models import (
    EncodedRow,
    MuonAdamW,
    collate,
    completion_loss,
    encode,
    new_model,
    ordered_batches,
    pretrain,
)
from bench.world.tokenizer import new_tokenizer

STEPS, BATCH = 4, 8


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer(max_length=128)


@pytest.fixture
def settings() -> WorldModel:
    return WorldModel(
        kind="world",
        name="tiny",
        start="sft",
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_length=128,
        pretraining=Pretraining(steps=STEPS, batch_size=BATCH, learning_rate=5e-3, init_std=0.05, seed=0),
        sft=SftTraining(steps=1, batch_size=1, learning_rate=1e-3),
    )


def test_a_new_model_has_tied_embeddings_and_the_spread_asked_for(settings: WorldModel, tokenizer) -> None:
    state = torch.get_rng_state()
    model = new_model(settings, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_pretraining_moves_every_weight_the_same_way_twice(
    settings: WorldModel, world: World, tokenizer
) -> None:
    heard: list[int] = []
    trained = []
    for _ in range(2):
        model = new_model(settings, tokenizer)
        pretrain(
            model,
            tokenizer,
            base_rows(world, STEPS * BATCH, seed=0),
            settings.pretraining,
            lambda step, loss: heard.append(step),
        )
        trained.append(model.state_dict())
    fresh = new_model(settings, tokenizer).state_dict()
    for name, weight in trained[0].items():
        assert torch.equal(weight, trained[1][name])
        assert not torch.equal(weight, fresh[name])
    assert heard == [STEPS, STEPS]


def test_pretraining_ends_at_a_loss_that_is_not_finite(settings: WorldModel, world: World, tokenizer) -> None:
    model = new_model(settings, tokenizer)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(
        FloatingPointError, match=f"the loss was nan at step {STEPS} of {STEPS}. Lower the learning rate"
    ):
        pretrain(model, tokenizer, base_rows(world, STEPS * BATCH, seed=0), settings.pretraining)


def test_too_few_rows_are_refused(settings: WorldModel, world: World, tokenizer) -> None:
    with pytest.raises(ValueError, match="4 steps of 8 rows need 32 rows, got 24"):
        pretrain(
            new_model(settings, tokenizer), tokenizer, base_rows(world, 31, seed=0), settings.pretraining
        )


def test_batches_keep_every_row_and_roughly_the_order() -> None:
    rows = [EncodedRow(input_ids=[index] * (1 + index % 7), n_prompt=0) for index in range(1024)]
    batches = list(ordered_batches(rows, 8, seed=0))
    assert sorted(row.input_ids[0] for batch in batches for row in batch) == list(range(1024))
    for place, batch in enumerate(batches):
        assert all(abs(row.input_ids[0] - 8 * place) < 16 * 8 for row in batch)


def test_prompts_and_padding_carry_no_loss() -> None:
    batch = collate([EncodedRow([5, 6, 7], 2), EncodedRow([8, 9], 1)], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, 9, -100]]


def test_encoded_rows_end_in_eos_after_the_prompt(world: World, tokenizer) -> None:
    for text, row in zip(
        base_rows(world, 50, seed=0), encode(tokenizer, base_rows(world, 50, seed=0)), strict=True
    ):
        assert tokenizer.decode(row.input_ids[row.n_prompt :]) == f" {text.completion}<eos>"


def test_a_rate_of_zero_stops_all_weights(settings: WorldModel, tokenizer) -> None:
    model = new_model(settings, tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    MuonAdamW(model).step(0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_loss_and_its_gradients_are_those_of_transformers(
    settings: WorldModel, world: World, tokenizer
) -> None:
    """On a batch with padding; transformers masks it and scores every place."""
    batch = collate(encode(tokenizer, base_rows(world, BATCH, seed=0)), tokenizer.pad_token_id)
    assert (batch["attention_mask"] == 0).any()
    ours, theirs = new_model(settings, tokenizer), new_model(settings, tokenizer)
    loss, expected = completion_loss(ours, batch), theirs(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)
