"""Runs a judging model in this process with transformers; no server is needed. Log-probs are returned.

Requests are batched by length in a fixed order, so equal requests give equal replies. The tokens of `letters`
are always listed with their log-probs, because a weak judge rarely has both letters among its twenty
likeliest tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.engines.hf import TransformersEngine
from bench.judges.asked.journal import Journal
from bench.judges.asked.replies import TOO_LONG
from bench.judges.asked.request import Progress, Reply, Request
from bench.models.model_config import positions
from bench.models.tokenize import guarded_ids, letter_ids

BATCH_SIZE = 8


class InProcess:
    """A model folder that answers requests. Errors of loading the folder are raised unchanged."""

    def __init__(
        self, folder: Path, name: str, dtype: str, journal: Journal, letters: Sequence[str], repeat: int = 0
    ):
        self.engine = TransformersEngine(folder, dtype, BATCH_SIZE)
        self.name, self.journal, self.repeat = name, journal, repeat
        self.tokenizer: Any = self.engine.tokenizer
        self.always = letter_ids(self.tokenizer, letters)

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        wanted = {request.digest: request for request in requests}
        missing = [request for digest, request in wanted.items() if digest not in self.journal.replies]
        prompts = [guarded_ids(self.tokenizer, request.messages) for request in missing]
        fits = [i for i in range(len(missing)) if self._fits(missing[i], prompts[i])]
        order = sorted(fits, key=lambda i: (missing[i].body["max_tokens"], len(prompts[i]), i))
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            torch.manual_seed(start + (self.repeat << 32))  # A repetition draws other samples.
            began = time.perf_counter()
            replies = self._batch([prompts[i] for i in rows], missing[rows[0]].body)
            seconds = (time.perf_counter() - began) / len(rows)
            for i, reply in zip(rows, replies, strict=True):
                self.journal.add(missing[i].digest, replace(reply, latency_s=round(seconds, 4)))
            progress(len(wanted) - len(order) + start + len(rows), len(wanted))
        return [self.journal.replies[request.digest] for request in requests]

    def _fits(self, request: Request, prompt: Sequence[int]) -> bool:
        """Whether prompt and reply fit the model's positions.

        If not, the journal gets an error as the reply.
        """
        most = positions(self.engine.model.config.to_dict())
        need = len(prompt) + request.body["max_tokens"]
        if most is None or need <= most:
            return True
        words = f"{len(prompt)} tokens of prompt and max_tokens={request.body['max_tokens']} are more than the {most} that the model takes"
        self.journal.add(request.digest, Reply("", served=self.name, error=f"{TOO_LONG}: {words}"))
        return False

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[list[int]], body: dict[str, Any]) -> list[Reply]:
        model, pad = self.engine.model, self.tokenizer.pad_token_id
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if body.get("temperature"):
            sampling = {
                "do_sample": True,
                "temperature": body["temperature"],
                "top_p": body.get("top_p", 1.0),
                "top_k": 0,
            }
        ends = {
            "eos_token_id": sorted(self.engine.ends),
            "pad_token_id": pad,
            "max_new_tokens": body["max_tokens"],
        }
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            output_logits=True,
            return_dict_in_generate=True,
            **ends,
            **sampling,
        )
        logps = torch.stack(out.logits, dim=1).float().log_softmax(-1)  # (B, T, V), before temperature
        written = out.sequences[:, width:].tolist()
        return [
            self._reply(
                len(prompt), row, logps[i], body.get("top_logprobs", 0) if body.get("logprobs") else 0
            )
            for i, (prompt, row) in enumerate(zip(prompts, written, strict=True))
        ]

    def _reply(self, prompt_tokens: int, row: list[int], logps: torch.Tensor, n_tops: int) -> Reply:
        end = next((t for t, token in enumerate(row) if token in self.engine.ends), None)
        kept = row if end is None else row[: end + 1]
        return Reply(
            str(self.tokenizer.decode(kept, skip_special_tokens=True)),
            served=self.name,
            tokens=[self._token(token, logps[t], n_tops) for t, token in enumerate(kept)] if n_tops else None,
            finish_reason="length" if end is None else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(kept),
        )

    def _token(self, token: int, logps: torch.Tensor, n_tops: int) -> dict[str, Any]:
        top = logps.topk(min(n_tops, len(logps))).indices.tolist()
        own, *tops = (
            {"token": self._text(i), "logprob": logps[i].item()}
            for i in (token, *top, *(i for i in self.always if i not in top))
        )
        return own | {"top_logprobs": tops}

    def _text(self, token: int) -> str:
        """A token's text, with the leading space that SentencePiece's decoder drops."""
        text, raw = self.tokenizer.decode([token]), self.tokenizer.convert_ids_to_tokens(token)
        return f" {text}" if str(raw).startswith("▁") and not text.startswith(" ") else text
