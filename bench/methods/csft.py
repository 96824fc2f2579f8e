"""CSFT, conditional SFT on judged completions, with a loss of ours.

Papers: Korbak et al. 2023 (arXiv 2302.08582); as a baseline of KTO in HALOs.

-log π(y | x, c)/|y|,  mean over completions;  c = <|good|> after the prompt if y is desirable, <|bad|> if not

A pair becomes two rows: chosen desirable, rejected undesirable. Both control tokens are added to the
tokenizer. The embeddings get two new rows, drawn with the cell's seed around the mean of the others. Whenever
the policy is sampled or scored, <|good|> follows the prompt. The token is therefore part of the key of each
stage that reads the policy; the model's config names it, and engines refuse to run the model without it. The
reference never gets a control token.

Deviations:
- HALOs (legacy) sums over tokens, which weighs long completions more. Here each completion counts once, as in
  sft_chosen.
- HALOs draws new embeddings as transformers does, not with the cell's seed.
- The control token does not count in max_length, so that policy and reference are compared on the same
  tokens.
- Neither control token can be generated, because the reference could not score it.

The loss does not use the reference. In training, rewards/* are log π(y | x, c)/π_ref(y | x) in nats, with c
by each row's label; so rewards/rejected is under <|bad|>. A cell's held-out rewards, log-probs and KL always
use <|good|>. rewards/accuracies are as for KTO. logps/* are sums under the same c.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.config import Csft
from bench.methods import one_shot
from bench.models.model_config import positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from bench.config import Cell
    from bench.planning.inputs import Ground, Policy
    from bench.training.trainers import TrainingJob

assert Csft.control is not None
GOOD, BAD = Csft.control, "<|bad|>"


def chain(cell: Cell, ground: Ground) -> Policy:
    return replace(one_shot(cell, ground), control=GOOD)


def make_trainer(job: TrainingJob) -> Trainer:
    from bench.training import losses
    from bench.training.trainers import unpaired_rows
    from bench.training.unpaired import own_unpaired_trainer

    rows = unpaired_rows(job)
    add_control_tokens(job.model, job.tokenizer, job.settings.seed)
    check_positions(job.model, job.settings.max_length)
    good, bad = (job.tokenizer.convert_tokens_to_ids(token) for token in (GOOD, BAD))
    for row in rows:
        row["prompt_ids"] = [*row["prompt_ids"], good if row["label"] else bad]
        (column,) = row["example"].ids
        ids = replace(row["example"].ids[column], prompt=row["prompt_ids"])
        row["example"] = replace(row["example"], ids={column: ids})
    return own_unpaired_trainer(
        job, rows, lambda batch: (losses.csft(batch.policy_logps, batch.mask).mean(), {})
    )


def add_control_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Adds both control tokens to tokenizer, config and model, in place.

    Their rows in the embeddings (and in the output layer) are drawn with the mean and spread of the old rows.
    """
    import torch

    n_before = len(tokenizer)
    tokenizer.add_tokens([GOOD, BAD], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids([GOOD, BAD])
    if len(tokenizer) > model.config.get_text_config().vocab_size:  # Some models have rows to spare.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    inputs, outputs = (layer.weight for layer in layers)
    with torch.no_grad():
        for weight in [inputs] if outputs is inputs else [inputs, outputs]:
            old = weight[:n_before].float()
            noise = torch.randn(2, weight.shape[1], generator=generator).to(weight.device)
            weight[ids] = (old.mean(dim=0) + old.std(dim=0) * noise).to(weight.dtype)
    model.config.control_tokens = [GOOD, BAD]  # Engines put the first after each prompt.


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Raises ValueError if a position table is too short for max_length tokens plus the control token.

    Computed positions have no end.
    """
    from bench.engines.hf import has_position_table

    places = positions(model.config.to_dict())
    if places is not None and max_length >= places and has_position_table(model):
        raise ValueError(
            f"The model has {places} positions, and method=csft needs model.max_length={max_length} and one more for its control token. "
            f"Set model.max_length={places - 1} or less."
        )
