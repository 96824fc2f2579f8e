"""Models that compare two completions, in transformers: PairRM's network, and sequence classifiers that read
both in one text.

PairRM (Jiang et al. 2023), as its card describes the transformers form of the checkpoint
(llm-blender/PairRM-hf): a DeBERTa-v3 encoder reads `<|source|>` prompt, `<|candidate1|>` first,
`<|candidate2|>` second. Each part is encoded and cut by itself: the prompt at 1,224 tokens, and the
completions share the rest of 2,048. Then

    f = mean_tasks(head([h_source, h_first]) - head([h_source, h_second]))

with h the last hidden state at the part's mark, and a head of two layers and tanh between them. The layout is
tested on a small network of that form; the published weights were not available. A folder holds a PairRM if
its config names the ids of the three marks.
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
Pair = tuple[str, str, str]  # Prompt, first completion, second completion.
AsText = Callable[[Pair], str]


def is_pair_rm(folder: Path) -> bool:
    """Whether a folder holds a PairRM: its config names the ids of the three marks."""
    config = read_config(model_folder(folder))
    return all(name in config for name in MARK_IDS)


class PairRM(DebertaV2PreTrainedModel):
    """PairRM's network. Its modules have the names of the checkpoint."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        size, dropped = config.hidden_size, getattr(config, "drop_out", 0.0)
        layers = [
            nn.Dropout(dropped),
            nn.Linear(2 * size, size),
            nn.Tanh(),
            nn.Dropout(dropped),
            nn.Linear(size, config.n_tasks),
        ]
        self.head_layer = nn.Sequential(*layers)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (B,) that the first completion is better, from ids (B, T).

        Raises ValueError unless each row has each mark once.
        """
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        places = []
        for name in MARK_IDS:
            is_mark = input_ids == getattr(self.config, name)
            if not bool((is_mark.sum(dim=1) == 1).all()):
                raise ValueError(
                    f"every pair of PairRM must hold the token {name}={getattr(self.config, name)} exactly once"
                )
            places.append(is_mark.int().argmax(dim=1))
        rows = torch.arange(len(input_ids), device=input_ids.device)
        source, first, second = (hidden[rows, place] for place in places)
        scores = [self.head_layer(torch.cat([source, completion], dim=-1)) for completion in (first, second)]
        return (scores[0] - scores[1]).mean(dim=-1)


class PairRMScorer:
    """A loaded PairRM.

    A mark inside a prompt or completion gets a space, because each mark must appear once.
    """

    def __init__(self, folder: Path, dtype: str, batch_size: int):
        place = model_folder(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
        model: Any = load_tensors(PairRM, place, dtype)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval().float()
        self.dtype, self.batch_size = dtype, batch_size

    def ids(self, pair: Pair) -> list[int]:
        """Token ids of a pair: its three parts one after another, each with its special tokens."""
        source = self._part(0, pair[0], PROMPT_TOKENS)
        room = (ALL_TOKENS - len(source)) // 2
        return source + self._part(1, pair[1], room) + self._part(2, pair[2], room)

    def _part(self, number: int, text: str, most: int) -> list[int]:
        for mark in MARKS:
            text = text.replace(mark, f"< {mark[1:]}")
        return list(self.tokenizer.encode(MARKS[number] + text, max_length=most, truncation=True))

    def logits(self, pairs: Sequence[Pair], progress: Progress = silent) -> list[float]:
        """Logit that the first completion is better, per pair.

        Raises FloatingPointError if one is not finite.
        """
        rows = [self.ids(pair) for pair in pairs]
        logits = in_batches(
            list(map(len, rows)),
            self.batch_size,
            lambda batch: self._batch([rows[i] for i in batch]),
            progress,
        )
        return finite(logits, "logits")

    @torch.inference_mode()
    def _batch(self, rows: Sequence[list[int]]) -> list[float]:
        ids, mask = padded(rows, self.tokenizer.pad_token_id, self.model.device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return self.model(ids, mask).float().tolist()


class TextScorer:
    """A sequence classifier with one output that reads a pair as one text, written by `as_text`.

    Raises ValueError for a classifier with several outputs.
    """

    def __init__(self, folder: Path, dtype: str, batch_size: int, as_text: AsText):
        self.scorer, self.as_text = Scorer(folder, dtype, batch_size), as_text

    def ids(self, pair: Pair) -> list[int]:
        """Token ids of a pair's text, in the chat template if there is one."""
        tokenizer = self.scorer.tokenizer
        role = "user" if tokenizer.chat_template else "text"
        return prompt_ids(tokenizer, [{"role": role, "content": self.as_text(pair)}])

    def logits(self, pairs: Sequence[Pair], progress: Progress = silent) -> list[float]:
        """Logit that the first completion is better, per pair.

        Raises FloatingPointError if one is not finite.
        """
        return self.scorer.rewards([Ids(self.ids(pair), []) for pair in pairs], progress)


def load_ranker(folder: Path, dtype: str, batch_size: int, as_text: AsText) -> PairRMScorer | TextScorer:
    """The comparing model of a folder, loaded."""
    return (
        PairRMScorer(folder, dtype, batch_size)
        if is_pair_rm(folder)
        else TextScorer(folder, dtype, batch_size, as_text)
    )
