"""Reward models: sequence classifiers with one output, in transformers. They may be trained here or
elsewhere.

The reward is read where transformers reads it, at the last token that is not the pad token of the model's
config. A config without a pad token means that the model was trained on rows without padding. Such a model is
padded here with a token that no row holds, so that transformers finds each row's last token in a batch too.
dtype=bfloat16 means the same as in hf.py: weights are stored in it, and rewards are computed by autocast over
float32 weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bench.engines.base import Progress, in_batches, silent
from bench.engines.hf import device, load_tensors
from bench.models.tokenize import Ids, load_tokenizer, model_folder


def load_classifier(path: Path, dtype: str, **settings: Any) -> PreTrainedModel:
    """A sequence classifier read from a folder, on the GPU if there is one."""
    return (
        load_tensors(AutoModelForSequenceClassification, model_folder(path), dtype, **settings)
        .to(device())
        .eval()
    )


def new_reward_model(path: Path, dtype: str, seed: int) -> PreTrainedModel:
    """A causal model's body with a new head of one output.

    The head is the same for the same seed. torch's global generator is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_classifier(path, dtype, new_head=True, settings={"num_labels": 1})


class Scorer:
    """A loaded reward model.

    Raises ValueError for a classifier with several outputs: it has no single reward.
    """

    def __init__(self, path: Path, dtype: str, batch_size: int):
        self.tokenizer = load_tokenizer(path)
        model: Any = load_classifier(path, dtype)
        if model.config.num_labels != 1:
            raise ValueError(
                f"a reward model must have one output, got num_labels={model.config.num_labels} ({model_folder(path)})"
            )
        self.model = model.float()
        self.dtype, self.batch_size = dtype, batch_size
        self._pad = self.model.config.get_text_config().pad_token_id

    def rewards(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]:
        """Reward of each row's completion given its prompt, in the rows' order and the model's units.

        Raises FloatingPointError for a reward that is not finite.
        """
        pad = self._pad
        if pad is None:  # Pad with the first token that no row holds.
            used = {token for row in rows for token in row.whole}
            pad = next(token for token in range(len(used) + 1) if token not in used)
        self.model.config.get_text_config().pad_token_id = pad
        lengths = [len(row.whole) for row in rows]
        rewards = in_batches(
            lengths, self.batch_size, lambda batch: self._batch([rows[i].whole for i in batch], pad), progress
        )
        return finite(rewards, "rewards")

    @torch.inference_mode()
    def _batch(self, rows: Sequence[list[int]], pad: int) -> list[float]:
        ids, mask = padded(rows, pad, self.model.device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return (
                self.model(input_ids=ids, attention_mask=mask, use_cache=False)
                .logits.float()
                .squeeze(-1)
                .tolist()
            )


def padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of rows, (B, T) each, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)


def finite(values: list[float], name: str) -> list[float]:
    """The values themselves. Raises FloatingPointError if one of them is not finite."""
    if bad := [value for value in values if not math.isfinite(value)]:
        raise FloatingPointError(
            f"{len(bad)} of {len(values)} {name} are not finite; the first one is {bad[0]}"
        )
    return values
