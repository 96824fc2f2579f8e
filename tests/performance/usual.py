"""The usual way: one process for each cell, TRL's trainer with its defaults, transformers' generate, the same gold judge.

    python tests/performance/usual.py WORK --cells kto:0.1,dpo:0.1

WORK is what prepared.py wrote. Start model, rows, batch size, steps, learning rates, prompts and decoding are
the sweep's. TRL's defaults stay: the reference in every step, gradient checkpointing, shuffled batches of mixed
length. It does less than the sweep: no held-out log-probs, KL, table or figures. Two cells side by side, one
thread each: faster than one after the other on two threads. Prints JSON: wall and CPU seconds, win rates.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.config import GoldWeights
from bench.judges import baseline
from bench.judges.gold import GoldPreference, GoldRating
from bench.records import Completion, Item, Message, read_jsonl

BATCH = 16  # prompts in a batch of generate()


def run(work: Path, cell: str) -> dict[str, Any]:
    """Train, generate and judge one cell in this process."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    facts = json.loads((work / "work.json").read_text(encoding="utf-8"))
    method, _, beta = cell.partition(":")
    settings, rows = facts["settings"]["method"], facts["train"]
    tokenizer = AutoTokenizer.from_pretrained(work / "start")
    model = AutoModelForCausalLM.from_pretrained(work / "start", dtype=torch.float32)

    def said(text: str) -> list[Message]:
        return [{"role": "assistant", "content": text}]

    with TemporaryDirectory() as out:
        common: dict[str, Any] = {
            "output_dir": out,
            "beta": float(beta),
            "learning_rate": settings["learning_rate"],
            "num_train_epochs": 1,
            "per_device_train_batch_size": settings["batch_size"],
            "lr_scheduler_type": settings["lr_scheduler_type"],
            "warmup_steps": settings["warmup_ratio"],
            "max_length": facts["settings"]["model"]["max_length"],
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "report_to": "none",
        }
        if method == "dpo":
            pairs = [
                {"prompt": row["messages"], **{k: said(v) for k, v in row["texts"].items()}} for row in rows
            ]
            trainer: Any = DPOTrainer(
                model,
                args=DPOConfig(**common),
                train_dataset=Dataset.from_list(pairs),
                processing_class=tokenizer,
            )
        else:
            feedback = [
                {"prompt": row["messages"], "completion": said(text), "label": side == "chosen"}
                for row in rows
                for side, text in row["texts"].items()
            ]
            dataset = Dataset.from_list(feedback).shuffle(seed=0)
            trainer = KTOTrainer(
                model, args=KTOConfig(**common), train_dataset=dataset, processing_class=tokenizer
            )
        trainer.train()
        trainer.save_model()
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer.padding_side = "left"
    torch.manual_seed(0)

    def answers(conversations: Sequence[list[Message]]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(conversations), BATCH):
            batch = tokenizer.apply_chat_template(
                conversations[start : start + BATCH],
                add_generation_prompt=True,
                return_tensors="pt",
                padding=True,
                return_dict=True,
            )
            with torch.no_grad():
                out = model.generate(
                    **batch,
                    max_new_tokens=48,
                    do_sample=True,
                    temperature=0.7,
                    top_p=1.0,
                    top_k=0,
                    use_cache=True,
                )
            texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def asked(text: str) -> list[Message]:
        return [{"role": "user", "content": text}]

    gold = GoldWeights(**facts["settings"]["world"]["gold"])
    items, rated = (list(read_jsonl(work / f"{name}.jsonl", Item)) for name in ("preference", "rating"))
    drawn = answers([asked(item.turns[0]) for item in items])
    completions = [Completion(i.id, i.turns, [text], [], []) for i, text in zip(items, drawn, strict=True)]
    preferences = [v.preference for v in GoldPreference(gold, 1.0).judge(items, completions, baseline(items))]
    first = answers([asked(item.turns[0]) for item in rated])
    second = answers(
        [[*asked(i.turns[0]), *said(text), *asked(i.turns[1])] for i, text in zip(rated, first, strict=True)]
    )
    both = [Completion(i.id, i.turns, [a, b], [], []) for i, a, b in zip(rated, first, second, strict=True)]
    ratings = [v.rating for v in GoldRating(gold).judge(rated, both, None)]
    return {"win_rate": sum(preferences) / len(preferences), "rating": sum(ratings) / len(ratings)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", default="kto:0.1,dpo:0.1")
    parser.add_argument("--here", action="store_true", help="one cell, in this process")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(run(given.work, given.cells)))
        return
    began, ran = time.perf_counter(), {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = {
        cell: subprocess.Popen(
            [sys.executable, __file__, given.work, "--here", "--cells", cell],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for cell in given.cells.split(",")
    }
    for cell, process in started.items():
        out, _ = process.communicate()
        assert process.returncode == 0, f"the cell {cell} ended with exit code {process.returncode}"
        ran[cell] = json.loads(out.splitlines()[-1])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = {"wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime}
    print(json.dumps(spent | {"cells": ran}))


if __name__ == "__main__":
    main()
