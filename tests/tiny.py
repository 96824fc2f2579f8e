"""What several tests share: the real command, one undisturbed run of the real `smoke` sweep, and a model and files of a user's own."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import warm
import yaml
from filelock import FileLock
from pydantic import BaseModel

from bench import methods
from bench.cli.compose import open_command
from bench.commands.planned_sweep import with_start_cells
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan
from bench.store.keys import LaterField, Stage
from bench.store.store import Store

ROOT = Path(__file__).parent.parent
READ_AT_IMPORT = (
    "PYTHON",
    "HF_",
    "OMP_",
    "LANG",
    "LC_",
    "WANDB_",
    "CUDA_",
)  # beginnings of variables that packages read at import


@dataclass(frozen=True)
class Ran:
    """One command that has ended."""

    results: Path
    code: int
    out: str
    err: str
    seconds: float

    @property
    def store(self) -> Store:
        return Store(self.results / "store")

    def table(self, sweep: str = "smoke") -> dict[str, bytes]:
        """The tables' bytes by file name."""
        folder = self.results / "sweeps" / sweep
        return {path.name: path.read_bytes() for path in sorted(folder.glob("table.*"))}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1", **more}


def command_line(*words: str, results: Path) -> list[str]:
    return [sys.executable, "-m", "bench", *words, f"results={results}", "tracker=none"]


def bench(*words: str, results: Path, timeout_s: float = 300, cold: bool = False, **environ: str) -> Ran:
    """`python -m bench`, forked from a process that has imported it all (warm.py); `cold`: a Python of its own, as users start it."""
    began = time.monotonic()
    cold = cold or not warm.POSSIBLE or any(name.startswith(READ_AT_IMPORT) for name in environ)
    line, environ = command_line(*words, results=results), environment(**environ)
    if cold:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=timeout_s, env=environ, cwd=results.parent
        )
    else:
        done = warm.run("bench", *line[3:], folder=results.parent, environ=environ, timeout_s=timeout_s)
    return Ran(results, done.returncode, done.stdout, done.stderr, time.monotonic() - began)


@functools.cache
def smoke() -> Ran:
    """The real smoke sweep, from nothing, once for all tests: whichever process of xdist comes first runs it."""
    folder = Path(os.environ[warm.SHARED])
    with FileLock(folder / "smoke.lock"):
        if not (said := folder / "smoke.json").exists():
            ran = bench("+sweep=smoke", results=folder / "results")
            assert ran.code == 0, ran.err[-3000:] + ran.out
            said.write_text(json.dumps([ran.code, ran.out, ran.err, ran.seconds]))
    return Ran(folder / "results", *json.loads(said.read_text()))


@functools.cache
def smoke_cells() -> list[CellPlan]:
    return plans("+sweep=smoke")


def plans(*words: str) -> list[CellPlan]:
    opened = open_command((*words, "tracker=none"))
    cells = [
        plan_cell(cell, sources, methods.chain)
        for cell, sources in zip(opened.cells, opened.sources, strict=True)
    ]
    return with_start_cells(cells, opened.sources)


def smoke_cell(method: str, beta: float | None = None) -> CellPlan:
    name = "none" if method == "start" else method
    return next(
        c
        for c in smoke_cells()
        if c.cell.method.name == name and beta in (None, getattr(c.cell.method, "beta", None))
    )


def smoke_folder(stage: Stage) -> Path:
    """A finished stage's folder of the smoke run."""
    store = smoke().store
    store.manifest(stage)
    return store.folder(stage)


def copy_results(ran: Ran, to: Path, drop: Sequence[str] = ()) -> Path:
    """A copy of a run's results to do damage to, without the stages of some kinds and without tables."""
    shutil.copytree(ran.results, to, ignore=shutil.ignore_patterns("*.lock"))
    for name in ("sweeps", "cells", *(f"store/{kind}" for kind in drop)):
        shutil.rmtree(to / name, ignore_errors=True)
    return to


# A user's own model and data ------------------------------------------------------------------------------------------

WORDS = re.findall(
    r"\w+",
    "please name one good red green blue apple lemon plum dog horse river garden and the is a of it to",
)
CHATML = (
    r"{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor -%}"
    r"{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def make_model(
    folder: Path,
    *,
    chat_template: bool = True,
    dtype: str = "float32",
    seed: int = 0,
    max_positions: int = 256,
    heads: int = 2,
) -> Path:
    """A random tiny Llama with a real tokenizer, as a folder in the transformers layout."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "user assistant system"], trainer)
    eos = "<|im_end|>" if chat_template else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, chat_template=CHATML if chat_template else None
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=max_positions,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reward_model(folder: Path, num_labels: int = 1) -> Path:
    """A causal model's folder with a new head of `num_labels` outputs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    causal: Any = make_model(folder.with_name("causal"), max_positions=2048, heads=1)
    AutoModelForSequenceClassification.from_pretrained(causal, num_labels=num_labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(causal).save_pretrained(folder)
    return folder


def sentence(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def make_preferences(path: Path, *, paired: bool, messages: bool, n: int = 60, seed: int = 0) -> Path:
    """A preference file in one of TRL's four forms, JSONL or Parquet by its name."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        prompt: Any = f"please name {sentence(rng, 3)} {i}"
        good: Any = "the " + sentence(rng, rng.randint(2, 6))
        bad: Any = "a " + sentence(rng, rng.randint(2, 6))
        if messages:
            prompt = [{"role": "user", "content": prompt}]
            good, bad = ([{"role": "assistant", "content": text}] for text in (good, bad))
        if paired:
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
        else:
            rows += [
                {"prompt": prompt, "completion": good, "label": True},
                {"prompt": prompt, "completion": bad, "label": False},
            ]
    return write_rows(path, rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# For tests of stages and stores ----------------------------------------------------------------------------------------------


class Plain(BaseModel):
    value: float = 0
    dropout: Annotated[float, LaterField()] = 0.0


def state(stage: Stage, root: Path) -> str:
    """As a new command sees it."""
    return Store(root).status(stage).state


SMOKE = yaml.safe_load((ROOT / "sweeps" / "smoke.yaml").read_text(encoding="utf-8"))["world"]
CELL = ["method=kto", "method.beta=0.1"]


def _words(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}={value}"


CELL += [word for section in ("model", "data") for word in _words(SMOKE[section], section)]
