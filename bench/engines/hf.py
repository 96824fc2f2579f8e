"""transformers as an engine: generation batched by length in a fixed order, log-probs by the code path that training uses.

bfloat16 means: weights stored and completions written in bfloat16; training and log-probs compute in bfloat16 by autocast over
float32 weights. AdamW on bfloat16 weights loses its updates: at 5e-7, 100 steps moved 1 % of weights of size 0.02, not 56 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from bench.config import Decoding
from bench.engines.base import Progress, Vocabulary, Written, by_length, silent
from bench.tokens import Ids, model_folder


def load_model(path: Path, dtype: str) -> PreTrainedModel:
    """A fresh model from a folder (never a copy of one that a trainer has touched), on the GPU where there is one."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_folder(path), dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    # Only the token ids: a repetition penalty or a temperature that a folder brings would change what we decode, unkeyed, and some
    # folders' settings are refused when the model is saved again.
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


class Engine:
    """A loaded policy that writes and scores; see Vocabulary for `control`."""

    def __init__(self, path: Path, dtype: str, batch_size: int, control: str | None = None):
        self.vocabulary = Vocabulary(path, control)
        self.tokenizer, self.ends = self.vocabulary.tokenizer, self.vocabulary.ends
        self.model: Any = load_model(path, dtype)
        self.dtype, self.batch_size = dtype, batch_size
        self._scores = False  # whether the model has been made ready for `logps`

    def generate(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent) -> list[Written]:
        """A completion of each prompt, in the prompts' order. The same prompts, decoding and seed give the same completions.

        Prompts are batched by length; each batch draws from a generator of its own, seeded by `seed` and its place.
        """
        written: dict[int, Written] = {}
        for rows in by_length([len(prompt) for prompt in prompts], self.batch_size):
            torch.manual_seed(seed * 1_000_003 + len(written))
            for row, completion in zip(rows, self._batch([prompts[i] for i in rows], decoding), strict=True):
                written[row] = completion
            progress(len(written), len(prompts))
        return [written[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[list[int]], decoding: Decoding) -> list[Written]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature:
            sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        limits: dict[str, Any] = {"max_new_tokens": decoding.max_new_tokens, "eos_token_id": sorted(self.ends), "pad_token_id": pad}
        if self.vocabulary.unwritten:
            limits["suppress_tokens"] = self.vocabulary.unwritten
        out = self.model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **limits, **sampling)
        return [self.vocabulary.written(row) for row in out[:, width:].tolist()]

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]:
        """Summed log-probability (nats) of each row's completion given its prompt, in the rows' order.

        Goes through TRL's fused head, as training does, so that a reference equals a policy with the same weights.
        """
        if not self._scores:
            add_fused_lm_head(self.model.float())
            self._scores = True
        sums: dict[int, float] = {}
        for batch in by_length([len(row.prompt) + len(row.completion) for row in rows], self.batch_size):
            sums |= zip(batch, self._batch_logps([rows[i] for i in batch]), strict=True)
            progress(len(sums), len(rows))
        return [sums[i] for i in range(len(rows))]

    def _batch_logps(self, rows: Sequence[Ids]) -> list[float]:
        return per_token_logps(self.model, rows, self.tokenizer.pad_token_id, self.dtype).sum(dim=1).tolist()


@torch.no_grad()
def per_token_logps(model: Any, rows: Sequence[Ids], pad: int, dtype: str) -> torch.Tensor:
    """Log-probability (nats) of each token of the rows' completions, (B, T-1), 0 elsewhere; token t+1 stands at t.

    `model` has TRL's fused head; rows are padded on the right.
    """
    width = max(len(row.prompt) + len(row.completion) for row in rows)
    ids, mask, labels = [], [], []
    for row in rows:
        padding = width - len(row.prompt) - len(row.completion)
        ids.append(row.prompt + row.completion + [pad] * padding)
        mask.append([1] * (width - padding) + [0] * padding)
        labels.append([-100] * len(row.prompt) + row.completion + [-100] * padding)
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        out = model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            labels=torch.tensor(labels, device=device),
            use_cache=False,
            fused_lm_head=True,
        )
    return out.log_probs.float()
