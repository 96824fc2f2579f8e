"""From a finished `+sweep=kto_beta` to one folder of token ids and texts, which floor.py and usual.py read.

python tests/performance/prepared.py RESULTS WORK
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.models.tokenize import conversation, load_tokenizer, preference_ids, prompt_ids, row_ids
from bench.records import Pair, Text, read_completions, read_items, read_jsonl, read_logps, read_rows
from bench.text_files import read_object
from bench.world.models import encode


def prepare(results: Path, work: Path) -> dict[str, Any]:
    """Write work.json and the start and base model; returns what work.json holds."""
    start, *trained = read_object(results / "sweeps/kto_beta/plan.json")["cells"]

    def folder(cell: dict[str, Any], kind: str, label: str) -> Path:
        (key,) = (s["key"] for s in cell["stages"] if (s["kind"], s["label"]) == (kind, label))
        return results / "store" / kind / key

    one = trained[0]
    for name in ("start", "base"):
        shutil.copytree(folder(one, "sft", f"{name} model") / "model", work / name, dirs_exist_ok=True)
    tokenizer = load_tokenizer(work / "start")
    max_length = one["config"]["model"]["max_length"]
    rows = []
    for row in read_rows(folder(one, "data", "preferences") / "train.jsonl"):
        assert isinstance(row, Pair)
        ids = preference_ids(tokenizer, row, max_length)
        texts = {"chosen": row.chosen, "rejected": row.rejected}
        columns = {column: given.completion for column, given in ids.items()}
        rows.append(
            {"id": row.id, "messages": row.prompt, "texts": texts, "prompt": ids["chosen"].prompt, **columns}
        )
    prompts = {
        name: [prompt_ids(tokenizer, conversation(item, [])) for item in read_items(folder(one, "data", label))]
        for name, label in {
            "train": "train prompts", "heldout": "heldout prompts", "kl": "kl prompts",
            "preference": "evaluation prompts", "rating 1": "evaluation prompts, two turns",
        }.items()
    }  # fmt: skip
    rated = read_items(folder(one, "data", "evaluation prompts, two turns"))
    answers = {c.id: c.completions for c in read_completions(folder(start, "generate", "rating completions"))}
    prompts["rating 2"] = [prompt_ids(tokenizer, conversation(item, answers[item.id][:1])) for item in rated]
    demonstrations = read_jsonl(folder(one, "data", "demonstrations") / "rows.jsonl", Text)
    demonstrated = (row_ids(tokenizer, row.prompt, row.completion, max_length) for row in demonstrations)
    for name, label in {
        "preference": "evaluation prompts",
        "rating": "evaluation prompts, two turns",
    }.items():
        shutil.copyfile(folder(one, "data", label) / "items.jsonl", work / f"{name}.jsonl")
    known = {}
    for cell in trained:
        method = cell["config"]["method"]
        history = (folder(cell, "train", method["name"]) / "history.jsonl").read_text(encoding="utf-8")
        known[f"{method['name']}:{method['beta']}"] = [
            json.loads(line)["loss"] for line in history.splitlines()
        ]
    facts = {
        "settings": one["config"],
        "train": rows,
        "reference": {
            name: row.logps for name, row in read_logps(folder(one, "logps", "reference log-probs")).items()
        },
        "prompts": prompts,
        "corpus": encode(tokenizer, read_jsonl(folder(one, "data", "corpus") / "rows.jsonl", Text)),
        "demonstrations": [(ids.whole, len(ids.prompt)) for ids in demonstrated],
        "losses": known,
    }
    (work / "work.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
