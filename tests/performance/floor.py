"""The floor: the sweep's training and generation in plain PyTorch, without logging, judging or any file.

    python tests/performance/floor.py WORK [--parts base,start,samples,reference,cells]

WORK is what prepared.py wrote. Batches and their order, optimiser, schedule and clipping are those of the
sweep; the model is a Llama in plain torch calls, its head at completion tokens only. Prints JSON: wall and CPU
seconds of the whole process tree, and the losses and log-probs, which must be those of the sweep. Fastest way
found: what all wait for in one process, the cells in two, one thread each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

Row = tuple[list[int], int]  # all token ids, and the number of the prompt's
CELLS = ("start", *(f"kto:{b}" for b in (0.02, 0.1, 0.3, 1.0, 5.0)), *(f"dpo:{b}" for b in (0.1, 0.3, 5.0)))
NEW = 48  # tokens of a completion
COST = {"kto": 2.0, "dpo": 1.4, "start": 0.3}  # of a cell, to divide them


class Llama:
    """The start model in plain torch calls."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
        self.w = {
            name.removeprefix("model."): tensor.float().requires_grad_()
            for name, tensor in tensors.items()
            if name != "lm_head.weight"
        }
        self.heads, self.layers = config["num_attention_heads"], config["num_hidden_layers"]
        self.eps, self.end = config["rms_norm_eps"], config["eos_token_id"]
        half = config["head_dim"] // 2
        speeds = config["rope_parameters"]["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(256.0), speeds)
        self.cos, self.sin = angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], 1)

    def body(
        self, ids: torch.Tensor, places: torch.Tensor, attend: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """Hidden states (B, T, H). `attend` gets layer, queries, keys and values (B, heads, T, D)."""
        (n, length), w, half = ids.shape, self.w, self.cos.shape[1] // 2
        cos, sin = self.cos[places], self.sin[places]

        def turned(x: torch.Tensor) -> torch.Tensor:
            return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.rms_norm(x, (x.shape[-1],), w[f"{name}.weight"], self.eps)

        x = F.embedding(ids, w["embed_tokens.weight"])
        for layer in range(self.layers):
            at = f"layers.{layer}"
            h = norm(x, f"{at}.input_layernorm")
            q, k, v = (
                F.linear(h, w[f"{at}.self_attn.{p}_proj.weight"])
                .view(n, length, self.heads, -1)
                .transpose(1, 2)
                for p in "qkv"
            )
            y = attend(layer, turned(q), turned(k), v).transpose(1, 2).reshape(n, length, -1)
            x = x + F.linear(y, w[f"{at}.self_attn.o_proj.weight"])
            h = norm(x, f"{at}.post_attention_layernorm")
            gate, up = (F.linear(h, w[f"{at}.mlp.{p}_proj.weight"]) for p in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, w[f"{at}.mlp.down_proj.weight"])
        return norm(x, "norm")

    def logps(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of all completion tokens, flat, and their sum for each row (B,)."""
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        scored = [(i, t) for i, (row, prompt) in enumerate(rows) for t in range(prompt, len(row))]
        row, token = torch.tensor(scored).T
        x = self.body(
            ids,
            torch.arange(width),
            lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        )
        logits = F.linear(x[row, token - 1], self.w["embed_tokens.weight"])
        logps = -F.cross_entropy(logits, ids[row, token], reduction="none")
        return logps, logps.new_zeros(len(rows)).index_add(0, row, logps)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], temperature: float) -> int:
        """Samples one completion a prompt, with a static cache; finished rows leave. Returns their tokens."""
        n, width = len(prompts), max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        padding = torch.tensor([width - len(p) for p in prompts])
        seen = torch.arange(width + NEW) >= padding[:, None]
        keys = torch.zeros(self.layers, n, self.heads, width + NEW, self.cos.shape[1])
        values = torch.zeros_like(keys)
        mask = torch.ones(width, width, dtype=torch.bool).tril() & seen[:, None, :width]
        mask |= torch.eye(width, dtype=torch.bool)  # a padding place sees itself, so that no softmax is empty
        at, total = slice(0, width), 0

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys[layer, :, :, at], values[layer, :, :, at] = k, v
            before = (keys[layer, :, :, : at.stop], values[layer, :, :, : at.stop])
            return F.scaled_dot_product_attention(q, *before, attn_mask=mask[:, None])

        for new in range(NEW):
            places = (torch.arange(at.start, at.stop) - padding[:, None]).clamp(min=0)[:, None]
            x = self.body(ids, places, attend)[:, -1]
            logits = F.linear(x, self.w["embed_tokens.weight"])
            ids = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
            total += len(ids)
            keep = (ids[:, 0] != self.end).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < 0.75 * len(ids):  # a copy of the cache for each row that leaves would cost more
                ids, padding, seen, keys, values = (
                    ids[keep],
                    padding[keep],
                    seen[keep],
                    keys[:, keep],
                    values[:, keep],
                )
            at = slice(width + new, width + new + 1)
            mask = seen[:, None, : at.stop]
        return total


def length_batches(lengths: Sequence[int], size: int, epoch: int = 0) -> list[list[int]]:
    """Row numbers in the sweep's order (LengthBatches), for seed 0."""
    rng, rows = random.Random(f"order/0/{epoch}"), list(range(len(lengths)))
    rng.shuffle(rows)
    spans = [rows[i : i + size * 16] for i in range(0, len(rows), size * 16)]
    rows = [row for span in spans for row in sorted(span, key=lambda i: lengths[i])]
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    last = [batches.pop()] if len(batches[-1]) < size else []
    rng.shuffle(batches)
    return [*batches, *last]


class Work:
    """The parts of the sweep; each is called by its name."""

    def __init__(self, folder: Path):
        self.folder, self.facts = folder, json.loads((folder / "work.json").read_text(encoding="utf-8"))
        self.losses: dict[str, list[float]] = {}
        self.apart: list[float] = []  # between each reference log-prob and the sweep's

    def train(
        self,
        name: str,
        model: Llama,
        optimizers: Sequence[torch.optim.Optimizer],
        batches: Sequence[Any],
        loss_of: Callable[[Any], torch.Tensor],
        rate: Callable[[int], float],
    ) -> None:
        losses = []
        for step, batch in enumerate(batches):
            loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.w.values(), 1.0)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = rate(step)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        self.losses[name] = torch.stack(losses).tolist()

    def base(self) -> None:
        settings = self.facts["settings"]["model"]["pretraining"]
        size, steps, rows = settings["batch_size"], settings["steps"], self.facts["corpus"]
        rng, batches = random.Random(f"batches/{settings['seed']}"), []
        for start in range(0, len(rows), size * 16):
            near = sorted(rows[start : start + size * 16], key=lambda row: len(row[0]))
            some = [near[i : i + size] for i in range(0, len(near), size)]
            rng.shuffle(some)
            batches += some
        model = Llama(self.folder / "base")
        torch.manual_seed(0)
        for p in model.w.values():
            p.data = torch.randn_like(p) * settings["init_std"] if p.ndim == 2 else torch.ones_like(p)
        hidden = {name: p for name, p in model.w.items() if p.ndim == 2 and "embed" not in name}
        others = [p for name, p in model.w.items() if name not in hidden]
        optimizers = [
            torch.optim.Muon(hidden.values(), weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
        ]

        def rate(step: int) -> float:
            return settings["learning_rate"] * min(
                1, (step + 1) / (0.05 * steps), (steps - step) / (0.5 * steps)
            )

        self.train("base", model, optimizers, batches[:steps], lambda b: -model.logps(b)[0].mean(), rate)

    def start(self) -> None:
        settings, rows = self.facts["settings"]["model"]["sft"], self.facts["demonstrations"]
        steps, warm = settings["steps"], settings["steps"] // 10
        lengths = [len(ids) for ids, _ in rows]
        epochs = (length_batches(lengths, settings["batch_size"], epoch) for epoch in itertools.count())
        batches = list(itertools.islice(itertools.chain.from_iterable(epochs), steps))
        model = Llama(self.folder / "base")

        def rate(step: int) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
            return settings["learning_rate"] * (step / warm if step < warm else cosine)

        loss_of = lambda batch: -model.logps([rows[i] for i in batch])[0].mean()  # noqa: E731
        self.train("start", model, [self.adamw(model)], batches, loss_of, rate)

    @staticmethod
    def adamw(model: Llama) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.w.values(), weight_decay=0.0, fused=True)

    def samples(self) -> None:
        model = Llama(self.folder / "start")
        for name in ("train", "heldout"):
            for draw in range(2):
                self.generate(model, name, 1.0, draw)

    def generate(self, model: Llama, name: str, temperature: float, seed: int = 0) -> None:
        torch.manual_seed(seed)
        prompts = sorted(self.facts["prompts"][name], key=len)
        for start in range(0, len(prompts), 256):
            model.generate(prompts[start : start + 256], temperature)

    @torch.inference_mode()
    def reference(self) -> None:
        columns = ("chosen", "rejected", "mismatched_chosen", "mismatched_rejected")
        rows = {
            f"train/{row['id']}/{column}": (row["prompt"] + row[column], len(row["prompt"]))
            for row in self.facts["train"]
            for column in columns
        }
        model, names = Llama(self.folder / "start"), sorted(rows, key=lambda name: len(rows[name][0]))
        for start in range(0, len(names), 128):
            some = names[start : start + 128]
            sums = model.logps([rows[name] for name in some])[1].tolist()
            known = self.facts["reference"]
            self.apart += [abs(value - known[name]) for name, value in zip(some, sums, strict=True)]

    def cell(self, name: str) -> None:
        model, (method, _, beta) = Llama(self.folder / "start"), name.partition(":")
        if beta:
            batches, loss_of = getattr(self, method)(model, float(beta))
            settings, steps = self.facts["settings"]["method"], len(batches)
            warm = math.ceil(settings["warmup_ratio"] * steps)

            def rate(step: int) -> float:
                share = step / warm if step < warm else (steps - step) / (steps - warm)
                return settings["learning_rate"] * share

            self.train(name, model, [self.adamw(model)], batches, loss_of, rate)
        for prompts in ("preference", "rating 1", "rating 2", *(["kl"] if beta else [])):
            self.generate(model, prompts, 1.0 if prompts == "kl" else 0.7)

    def dpo(self, model: Llama, beta: float) -> tuple[list[list[int]], Callable[[list[int]], torch.Tensor]]:
        rows, known = self.facts["train"], self.facts["reference"]
        of = [known[f"train/{row['id']}/chosen"] - known[f"train/{row['id']}/rejected"] for row in rows]
        reference = torch.tensor(of)

        def loss(batch: list[int]) -> torch.Tensor:
            both = [(rows[i]["prompt"], rows[i][side]) for side in ("chosen", "rejected") for i in batch]
            chosen, rejected = model.logps([(p + c, len(p)) for p, c in both])[1].chunk(2)
            return -F.logsigmoid(beta * (chosen - rejected - reference[batch])).mean()

        lengths = [len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) for row in rows]
        return length_batches(lengths, self.facts["settings"]["method"]["batch_size"]), loss

    def kto(self, model: Llama, beta: float) -> tuple[list[list[int]], Callable[[list[int]], torch.Tensor]]:
        known = self.facts["reference"]
        rows = [
            (row["prompt"], row[side], row[f"mismatched_{side}"], f"train/{row['id']}", side)
            for row in self.facts["train"]
            for side in ("chosen", "rejected")
        ]
        sign = torch.tensor([1.0 if row[4] == "chosen" else -1.0 for row in rows])
        of = torch.tensor([known[f"{row[3]}/{row[4]}"] for row in rows])
        of_mismatched = torch.tensor([known[f"{row[3]}/mismatched_{row[4]}"] for row in rows])

        def sums(batch: list[int], column: int) -> torch.Tensor:
            return model.logps([(rows[i][0] + rows[i][column], len(rows[i][0])) for i in batch])[1]

        def loss(batch: list[int]) -> torch.Tensor:
            with torch.no_grad():
                z0 = (sums(batch, 2) - of_mismatched[batch]).mean().clamp(min=0)
            return (1 - torch.sigmoid(beta * sign[batch] * (sums(batch, 1) - of[batch] - z0))).mean()

        lengths = [len(row[0]) + len(row[1]) for row in rows]
        return length_batches(lengths, self.facts["settings"]["method"]["batch_size"]), loss


def run(folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Run parts and cells in this process; returns their losses, and how far log-probs are from the sweep's."""
    torch.set_num_threads(1)
    work = Work(folder)
    for part in parts:
        if part in CELLS and part != "start":
            work.cell(part)
        elif part == "start cell":
            work.cell("start")
        else:
            getattr(work, part)()
    apart = [
        abs(loss - work.facts["losses"][name][-1])
        for name in work.losses.keys() & work.facts["losses"].keys()
        for loss in work.losses[name][-1:]
    ]
    return {
        "losses": work.losses,
        "apart": {"losses": max(apart, default=0), "logps": max(work.apart, default=0)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", default="base,start,samples,reference,cells")
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if given.here:
        print(json.dumps(run(given.work, parts)))
        return
    began, piles = time.perf_counter(), [[], []]
    for cell in sorted(CELLS, key=lambda name: -COST[name.partition(":")[0]]):
        pile = min(piles, key=lambda pile: sum(COST[one.partition(":")[0].split()[0]] for one in pile))
        pile.append("start cell" if cell == "start" else cell)
    waves = [[[part for part in parts if part != "cells"]], piles if "cells" in parts else []]
    environment, ran = os.environ | {"OMP_NUM_THREADS": "1"}, []
    for wave in waves:
        lines = [
            [sys.executable, __file__, given.work, "--here", "--parts", ",".join(pile)]
            for pile in wave
            if pile
        ]
        started = [subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) for line in lines]
        for process in started:
            out, _ = process.communicate()
            assert process.returncode == 0, f"a part of the floor ended with exit code {process.returncode}"
            ran.append(json.loads(out))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    apart = {what: max(one["apart"][what] for one in ran) for what in ("losses", "logps")}
    spent = {"wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime}
    print(json.dumps(spent | {"apart": apart}))


if __name__ == "__main__":
    main()
