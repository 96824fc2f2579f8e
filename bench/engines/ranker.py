"""Models that compare two answers, in transformers: PairRM's own network, and sequence classifiers that read both in one text.

PairRM (Jiang et al. 2023), as its card describes the transformers form of the checkpoint (llm-blender/PairRM-hf): a DeBERTa-v3 encoder
reads `<|source|>` prompt, `<|candidate1|>` first, `<|candidate2|>` second, each part encoded and cut by itself (1,224 tokens of
prompt; the answers share what is left of 2,048), and

    f = mean_tasks(head([h_source, h_first]) - head([h_source, h_second]))        h: last hidden state at the part's mark

with a head of two layers, tanh between. The layout is checked on a small network of that form; the published weights were not at hand.
A folder is of this kind when its config names the ids of the three marks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, DebertaV2Model, DebertaV2PreTrainedModel

from bench.engines.base import Progress, in_batches, silent
from bench.engines.hf import load_tensors
from bench.engines.reward import Scorer, finite, padded
from bench.models.hub import read_config
from bench.models.tokenize import Ids, model_folder, prompt_ids

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
MARK_IDS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")
PROMPT_TOKENS, ALL_TOKENS = 1224, 2048
Pair = tuple[str, str, str]  # prompt, first answer, second answer
AsText = Callable[[Pair], str]


def is_pair_rm(folder: Path) -> bool:
    config = read_config(model_folder(folder))
    return all(name in config for name in MARK_IDS)


class PairRM(DebertaV2PreTrainedModel):
    """Modules are named as in the checkpoint."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        size, dropped = config.hidden_size, getattr(config, "drop_out", 0.0)
        layers = [nn.Dropout(dropped), nn.Linear(2 * size, size), nn.Tanh(), nn.Dropout(dropped), nn.Linear(size, config.n_tasks)]
        self.head_layer = nn.Sequential(*layers)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B,) logits that the first answer is better. Raises ValueError for a row without each mark exactly once."""
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        places = []
        for name in MARK_IDS:
            found = input_ids == getattr(self.config, name)
            if not bool((found.sum(dim=1) == 1).all()):
                raise ValueError(f"a pair must hold the token {name}={getattr(self.config, name)} once")
            places.append(found.int().argmax(dim=1))
        rows = torch.arange(len(input_ids), device=input_ids.device)
        source, first, second = (hidden[rows, place] for place in places)
        scores = [self.head_layer(torch.cat([source, answer], dim=-1)) for answer in (first, second)]
        return (scores[0] - scores[1]).mean(dim=-1)


class PairRMScorer:
    """A loaded PairRM. A mark that stands in a prompt or an answer is spelt with a space, for there must be one of each."""

    def __init__(self, folder: Path, dtype: str, batch_size: int):
        place = model_folder(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        model: Any = load_tensors(PairRM, place, dtype)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval().float()
        self.dtype, self.batch_size = dtype, batch_size

    def ids(self, pair: Pair) -> list[int]:
        """Each part with its own special tokens, one after the other."""
        source = self._part(0, pair[0], PROMPT_TOKENS)
        room = (ALL_TOKENS - len(source)) // 2
        return source + self._part(1, pair[1], room) + self._part(2, pair[2], room)

    def _part(self, number: int, text: str, most: int) -> list[int]:
        for mark in MARKS:
            text = text.replace(mark, f"< {mark[1:]}")
        return list(self.tokenizer.encode(MARKS[number] + text, max_length=most, truncation=True))

    def logits(self, pairs: Sequence[Pair], progress: Progress = silent) -> list[float]:
        rows = [self.ids(pair) for pair in pairs]
        found = in_batches(list(map(len, rows)), self.batch_size, lambda batch: self._batch([rows[i] for i in batch]), progress)
        return finite(found, "logits")

    @torch.inference_mode()
    def _batch(self, rows: Sequence[list[int]]) -> list[float]:
        ids, mask = padded(rows, self.tokenizer.pad_token_id, self.model.device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return self.model(ids, mask).float().tolist()


class TextScorer:
    """A sequence classifier of one output that reads a pair as one text, `as_text`. Raises ValueError for one of several outputs."""

    def __init__(self, folder: Path, dtype: str, batch_size: int, as_text: AsText):
        self.scorer, self.as_text = Scorer(folder, dtype, batch_size), as_text

    def ids(self, pair: Pair) -> list[int]:
        tokenizer = self.scorer.tokenizer
        role = "user" if tokenizer.chat_template else "text"
        return prompt_ids(tokenizer, [{"role": role, "content": self.as_text(pair)}])

    def logits(self, pairs: Sequence[Pair], progress: Progress = silent) -> list[float]:
        return self.scorer.rewards([Ids(self.ids(pair), []) for pair in pairs], progress)


def load_ranker(folder: Path, dtype: str, batch_size: int, as_text: AsText) -> PairRMScorer | TextScorer:
    return PairRMScorer(folder, dtype, batch_size) if is_pair_rm(folder) else TextScorer(folder, dtype, batch_size, as_text)
