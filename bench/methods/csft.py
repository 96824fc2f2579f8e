"""CSFT, conditional SFT (Korbak et al. 2023, arXiv 2302.08582; as a baseline of KTO in HALOs), on judged completions; a loss of ours.

-log π(y | x, c)/|y|,  mean over completions;  c = <|good|> after the prompt if y is desirable, <|bad|> if not

Pairs become two rows: chosen desirable, rejected undesirable. Both control tokens are added to the tokenizer, and to the embeddings two
rows drawn by the cell's seed around the mean of the others. Whenever the policy is asked or scored, <|good|> follows the prompt: it belongs
to the identity of what reads the policy, the model's config names it, and engines refuse the model without it. The reference is never
asked so.

Deviations: HALOs (legacy) sums over tokens, which weighs long completions more; here each completion counts once, as in sft_chosen. It
draws new embeddings as transformers does, unseeded by the cell. A control token's place is not counted in max_length, so that policy and
reference are compared on the same tokens. Neither control token is ever written: the reference cannot score it.

The reference takes no part in the loss. rewards/*: log π(y | x, c)/π_ref(y | x) in nats while training, c by each row's label, so that
rewards/rejected is the likelihood that <|bad|> gives; a cell's held-out rewards, log-probs and KL all take <|good|>. rewards/accuracies as
for KTO; logps/* are sums under the same c.
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
        seen = replace(row["example"].ids[column], prompt=row["prompt_ids"])
        row["example"] = replace(row["example"], ids={column: seen})
    return own_unpaired_trainer(job, rows, lambda batch: (losses.csft(batch.policy_logps, batch.mask).mean(), {}))


def add_control_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """In place: both tokens in tokenizer and config, their embeddings (and output rows) of the old ones' mean and spread."""
    import torch

    n_before = len(tokenizer)
    tokenizer.add_tokens([GOOD, BAD], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids([GOOD, BAD])
    if len(tokenizer) > model.config.get_text_config().vocab_size:  # some models have rows to spare
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    inputs, outputs = (layer.weight for layer in layers)
    with torch.no_grad():
        for weight in [inputs] if outputs is inputs else [inputs, outputs]:
            old = weight[:n_before].float()
            noise = torch.randn(2, weight.shape[1], generator=generator).to(weight.device)
            weight[ids] = (old.mean(dim=0) + old.std(dim=0) * noise).to(weight.dtype)
    model.config.control_tokens = [GOOD, BAD]  # engines ask with the first


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Rows hold up to max_length tokens and a control token; a table of positions ends somewhere, computed ones do not."""
    from bench.engines.hf import has_position_table

    places = positions(model.config.to_dict())
    if places is not None and max_length >= places and has_position_table(model):
        raise ValueError(f"model.max_length={max_length} leaves no place for a control token in {places} positions: set {places - 1}")
