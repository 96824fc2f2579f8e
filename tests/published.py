"""Public datasets in small: rows in the exact shape of each source, in files that lie as on the hub.

Columns and types are those of the dataset cards; texts are made up. Each has its traps among the first rows (`TRAPS`), and as many plain
rows after them as are asked for.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tiny import ROOT, sentence

Row = dict[str, Any]


def user(text: str) -> dict[str, str]:
    return {"content": text, "role": "user"}


def bot(text: str) -> dict[str, str]:
    return {"content": text, "role": "assistant"}


def asked(i: int, rng: random.Random) -> tuple[str, str, str]:
    """(prompt, good answer, bad answer)"""
    return f"please name {sentence(rng, 3)} {i}", f"the {sentence(rng, 4)}", f"a {sentence(rng, 3)}"


def ultrafeedback(prompt: str, chosen: str, rejected: str, scores: tuple[float, float] = (8.5, 5.0)) -> Row:
    whole = [user(prompt), bot(chosen)]
    return {
        "prompt": prompt,
        "prompt_id": f"id of {prompt}",
        "chosen": whole,
        "rejected": [user(prompt), bot(rejected)],
        "messages": whole,
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def argilla(prompt: str, chosen: str, rejected: str, ratings: tuple[float, float] = (4.75, 3.0)) -> Row:
    return {
        "source": "evol_instruct",
        "prompt": prompt,
        "chosen": [user(prompt), bot(chosen)],
        "chosen-rating": ratings[0],
        "chosen-model": "gpt-4",
        "rejected": [user(prompt), bot(rejected)],
        "rejected-rating": ratings[1],
        "rejected-model": "alpaca-7b",
    }


def orca(question: str, chosen: str, rejected: str, system: str = "") -> Row:
    return {"system": system, "question": question, "chosen": chosen, "rejected": rejected}


def hh(prompt: str, chosen: str, rejected: str) -> Row:
    before = f"\n\nHuman: {prompt}\n\nAssistant: "
    return {"chosen": before + chosen, "rejected": before + rejected}


def shp(
    post: str, chosen: str, rejected: str, scores: tuple[int, int] = (30, 6), a_is_better: bool = True
) -> Row:
    comments = {"A": (chosen, scores[0]), "B": (rejected, scores[1])}
    if not a_is_better:
        comments = {"A": comments["B"], "B": comments["A"]}
    return {
        "post_id": "qt3nxl",
        "domain": "askculinary_train",
        "upvote_ratio": 0.98,
        "history": post,
        "c_root_id_A": "hkh25sc",
        "c_root_id_B": "hkh25lp",
        "created_at_utc_A": 1636822112,
        "created_at_utc_B": 1636822110,
        "score_A": comments["A"][1],
        "score_B": comments["B"][1],
        "human_ref_A": comments["A"][0],
        "human_ref_B": comments["B"][0],
        "labels": int(a_is_better),
        "seconds_difference": 2.0,
        "score_ratio": scores[0] / scores[1],
    }


def oasst(
    id: str,
    parent: str | None,
    text: str,
    role: str = "assistant",
    rank: int | None = None,
    lang: str = "en",
    deleted: bool = False,
) -> Row:
    return {
        "message_id": id,
        "parent_id": parent,
        "user_id": "c3fe8c76-fc30-4fa7-b7f8-c492f5967d18",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": role,
        "lang": lang,
        "review_count": 3,
        "review_result": True,
        "deleted": deleted,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.00044308538781479, "severe_toxicity": 3.252684837207198e-05},
        "message_tree_id": "6ab24d72-0181-4594-a9cd-deaf170242fb",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [3]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    }


def halos(prompt: str, better: str, worse: str, a_is_better: bool = True, split: str = "train") -> Row:
    a, b = (better, worse) if a_is_better else (worse, better)
    return {
        "prompt_id": f"hash of {prompt}",
        "prompt": [user(prompt)],
        "output_A": [bot(a)],
        "output_B": [bot(b)],
        "label": int(a_is_better),
        "reward_A": 1.5 if a_is_better else 0.5,
        "reward_B": 0.5 if a_is_better else 1.5,
        "reward_difference": 1.0,
        "type": "pairwise_feedback",
        "split": split,
    }


def helpsteer3(
    prompt: str, chosen: str, rejected: str, strength: int = 2, domain: str = "general", first: bool = True
) -> Row:
    """`first`: response1 is the chosen one, and the preference is below 0."""
    answers = (chosen, rejected) if first else (rejected, chosen)
    score = -strength if first else strength
    return {
        "domain": domain,
        "language": "english",
        "context": [user(prompt)],
        "response1": answers[0],
        "response2": answers[1],
        "overall_preference": score,
        "individual_preference": [
            {"score": score, "reasoning": "clearer", "feedback1": "good", "feedback2": "short"}
        ],
    }


def pku_saferlhf(prompt: str, better: str, worse: str, safer: int = 0) -> Row:
    return {
        "prompt": prompt,
        "response_0": better,
        "response_1": worse,
        "prompt_source": "Alpaca3-70B",
        "response_0_source": "Alpaca3-8B",
        "response_1_source": "WizardLM-30B-Uncensored",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 0,
        "safer_response_id": safer,
    }


def nectar(prompt: str, *answers: str, ranks: Sequence[float] = ()) -> Row:
    """Answers from the best to the worst, in another order than their ranks."""
    ranked = [
        {"answer": answer, "model": "gpt-4", "rank": float(rank)}
        for answer, rank in zip(answers, ranks or range(1, len(answers) + 1), strict=True)
    ]
    return {
        "prompt": f"\n\nHuman: {prompt}\n\nAssistant: ",
        "answers": ranked[::-1],
        "turns": 1,
        "num_responses": len(answers),
        "source": ["lmsys-chat-1m"],
        "good_natured": True,
    }


def skywork(prompt: str, chosen: str, rejected: str) -> Row:
    both = {"chosen": [user(prompt), bot(chosen)], "rejected": [user(prompt), bot(rejected)]}
    return {**both, "source": "magpie_ultra"}


def tulu(prompt: str, chosen: str, rejected: str) -> Row:
    return {
        "id": f"id of {prompt}",
        "prompt": prompt,
        **skywork(prompt, chosen, rejected),
        "source": "ultrafeedback",
    }


def chinese(prompt: str, chosen: str, rejected: str, system: str | None = "") -> Row:
    return {
        "prompt": prompt,
        "system": system,
        "chosen": chosen,
        "rejected": rejected,
        "source": "open_orca",
        "id": "7",
    }


def ultrachat(*turns: str) -> Row:
    messages = [(user, bot)[i % 2](text) for i, text in enumerate(turns)]
    return {"prompt": turns[0], "prompt_id": f"id of {turns[0]}", "messages": messages}


def _tree(i: int, rng: random.Random) -> list[Row]:
    """A prompt with two ranked answers."""
    prompt, good, bad = asked(i, rng)
    return [
        oasst(f"p{i}", None, prompt, "prompter"),
        oasst(f"g{i}", f"p{i}", good, rank=0),
        oasst(f"b{i}", f"p{i}", bad, rank=1),
    ]


@dataclass(frozen=True)
class Published:
    """`files`: split -> the name of a file of it, as on the hub."""

    make: Callable[[int, random.Random], list[Row]]
    files: Mapping[str, str]
    traps: Sequence[Row] = ()


PUBLISHED = {
    "ultrafeedback_binarized": Published(
        lambda i, rng: [ultrafeedback(*asked(i, rng))],
        {
            "train": "data/train_prefs-00000-of-00001.parquet",
            "heldout": "data/test_prefs-00000-of-00001.parquet",
        },
        [
            ultrafeedback("tied?", "one", "other", (7.0, 7.0)),
            ultrafeedback("same?", "one", "one"),
            ultrafeedback("empty?", "one", ""),
        ],
    ),
    "ultrafeedback_cleaned": Published(
        lambda i, rng: [argilla(*asked(i, rng))],
        {"train": "data/train-00000-of-00001.parquet"},
        [argilla("tied?", "one", "two", (4.0, 4.0))],
    ),
    "orca_dpo_pairs": Published(
        lambda i, rng: [orca(*asked(i, rng))],
        {"train": "orca_rlhf.jsonl"},
        [orca("with?", "yes", "no", "You are an AI assistant."), orca("empty?", "yes", " ")],
    ),
    "hh_rlhf": Published(
        lambda i, rng: [hh(*asked(i, rng))],
        {
            f"{split}{n}": f"{folder}/{name}.jsonl.gz"
            for split, name in (("train", "train"), ("heldout", "test"))
            for n, folder in enumerate(
                ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
            )
        },
        [
            {
                "chosen": "\n\nHuman: a?\n\nAssistant: b \n\nHuman: c?\n\nAssistant: d",
                "rejected": "\n\nHuman: a?\n\nAssistant: b \n\nHuman: c?\n\nAssistant: e",
            },
            {
                "chosen": "\n\nHuman: a?\n\nAssistant: b",
                "rejected": "\n\nHuman: a?\n\nAssistant: x\n\nHuman: c?\n\nAssistant: e",
            },
            {
                "chosen": "\n\nHuman: a?\n\nHuman: b?\n\nAssistant: c",
                "rejected": "\n\nHuman: a?\n\nHuman: b?\n\nAssistant: d",
            },
            {
                "chosen": "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c?",
                "rejected": "\n\nHuman: a?\n\nAssistant: b\n\nHuman: d?",
            },
            {"chosen": "\n\nHuman: a?\n\nAssistant: ", "rejected": "\n\nHuman: a?\n\nAssistant: e"},
        ],
    ),
    "shp": Published(
        lambda i, rng: [shp(*asked(i, rng), a_is_better=i % 2 == 0)],
        {
            "train": "askculinary/train.json",
            "train2": "legaladvice/train.json",
            "heldout": "askculinary/test.json",
        },
        [shp("close?", "yes", "no", (9, 6)), *[shp("many?", f"yes {i}", f"no {i}") for i in range(7)]],
    ),
    "oasst1": Published(
        _tree,
        {
            "train": "data/train-00000-of-00001-b42a775f407cee45.parquet",
            "heldout": "data/validation-00000-of-00001-134b8fd0c89408b6.parquet",
        },
        [
            oasst("root", None, "which?", "prompter"),
            oasst("best", "root", "first", rank=0),
            oasst("second", "root", "next", rank=1),
            oasst("third", "root", "last", rank=2),
            oasst("gap", "root", "far", rank=4),
            oasst("more", "second", "and then?", "prompter"),
            oasst("deep0", "more", "deep good", rank=0),
            oasst("deep1", "more", "deep bad", rank=1),
            oasst("gone", "best", "why?", "prompter", deleted=True),
            oasst("orphan0", "gone", "so", rank=0),
            oasst("orphan1", "gone", "no", rank=1),
            oasst("spanish", None, "¿cuál?", "prompter", lang="es"),
            oasst("s0", "spanish", "uno", rank=0, lang="es"),
            oasst("s1", "spanish", "dos", rank=1, lang="es"),
        ],
    ),
    "halos": Published(
        lambda i, rng: [
            halos(*asked(i, rng), a_is_better=i % 2 == 0, split="test" if i % 5 == 0 else "train")
        ],
        {"train": "feedback.json"},
    ),
    "helpsteer3": Published(
        lambda i, rng: [helpsteer3(*asked(i, rng), first=i % 2 == 0)],
        {"train": "preference/train.jsonl.gz", "heldout": "preference/validation.jsonl.gz"},
        [helpsteer3("tied?", "one", "other", 0), helpsteer3("weak?", "yes", "no", 1, "code")],
    ),
    "pku_saferlhf": Published(
        lambda i, rng: [pku_saferlhf(*asked(i, rng))],
        {
            "train": "data/Alpaca-7B/train.jsonl",
            "train2": "data/Alpaca2-7B/train.jsonl",
            "heldout": "data/Alpaca-7B/test.jsonl",
        },
        [pku_saferlhf("how?", "this way", "I cannot", safer=1), pku_saferlhf("same?", "no", "no")],
    ),
    "nectar": Published(
        lambda i, rng: [nectar(*asked(i, rng))],
        {"train": "data/rlaif.parquet"},
        [
            nectar("which?", "first", "second", "third"),
            nectar("level?", "x", "y", ranks=(1, 1)),
            nectar("empty?", "x", " "),
            nectar("a?\n\nAssistant: b\n\nHuman: c?", "d", "e"),
        ],
    ),
    "skywork_80k": Published(
        lambda i, rng: [skywork(*asked(i, rng))],
        {"train": "data/train-00000-of-00001.parquet"},
        [skywork("same?", "no", "no")],
    ),
    "tulu_3_8b": Published(
        lambda i, rng: [tulu(*asked(i, rng))],
        {"train": "data/train-00000-of-00004.parquet"},
        [tulu("empty?", "yes", "")],
    ),
    "oasst2": Published(
        _tree,
        {
            "train": "data/train-00000-of-00001.parquet",
            "heldout": "data/validation-00000-of-00001.parquet",
        },
    ),
    "chinese_dpo_pairs": Published(
        lambda i, rng: [chinese(*asked(i, rng))],
        {"train": "train/train-00000-of-00001.parquet"},
        [
            chinese("天空为什么是蓝色的?", "因为瑞利散射。", "不知道。", "你是一个助手。"),
            chinese("为空?", "好", ""),
        ],
    ),
    "alpaca_gpt4_zh": Published(
        lambda i, rng: [dict(zip(("instruction", "input", "output"), asked(i, rng), strict=True))],
        {"train": "alpaca_gpt4_data_zh.json"},
        [
            {"instruction": "翻译成中文。", "input": "Good morning", "output": "早上好"},
            {"instruction": "写一首诗。", "input": "", "output": "春眠不觉晓"},
            {"instruction": "空", "input": "", "output": ""},
        ],
    ),
    "dataset": Published(
        lambda i, rng: [dict(zip(("prompt", "chosen", "rejected"), asked(i, rng), strict=True))],
        {"train": "data/train-00000-of-00001.parquet"},
    ),
    "ultrachat_200k": Published(
        lambda i, rng: [ultrachat(*asked(i, rng)[:2], "and one more", f"it is {sentence(rng, 3)}")],
        {"train": "data/train_sft-00000-of-00003-a3ecf92756993583.parquet"},
        [ultrachat("open?", "answer", "left open"), ultrachat("empty?", " "), ultrachat("only a question")],
    ),
}


def publish(folder: Path, name: str, n: int = 40, *, traps: bool = False, n_heldout: int = 20) -> Path:
    """A dataset's folder as on the hub, with n plain rows (trees) a train file."""
    published, rng, count = PUBLISHED[name], random.Random(name), 0
    for split, file in published.files.items():
        rows: list[Row] = (
            list(published.traps) if traps and split == "train" + "0" * (name == "hh_rlhf") else []
        )
        for _ in range(n if split.startswith("train") else n_heldout):
            rows += published.make(count, rng)
            count += 1
        write(folder / file, rows)
    return folder


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(
            json.dumps(list(rows), indent=1)
            if path.name in ("feedback.json", "alpaca_gpt4_data_zh.json")
            else lines
        )
    return path


def data_words(folder: Path, name: str) -> list[str]:
    """Words that give data=NAME a small copy: of a dataset, or of each source of a mixture. Empty for other data."""
    if name in PUBLISHED:
        return [f"data.path={publish(folder, name)}"]
    sources = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())["data"].get("sources", {})
    words = []
    if sources == "???":
        words, sources = ["data.sources={own: {data: dataset}}"], {"own": {"data": "dataset"}}
    for label, source in sources.items():
        words.append(f"data.sources.{label}.path={publish(folder / label, source['data'], 5, n_heldout=2)}")
    return words
