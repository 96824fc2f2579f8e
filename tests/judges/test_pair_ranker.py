"""A pairwise ranker as a judge: a classifier that is trained a little on the world's pairs prefers what it was trained to prefer; PairRM's
own network on a small model of its form; both orders; and the whole command."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from outer import outer
from tiny import bench, make_model

from bench.config import CATEGORIES, Writer
from bench.judges import baseline
from bench.judges.pair_ranker import RankedPreference, pair_template, pair_text
from bench.records import Completion, Item, Verdict, read_jsonl, write_jsonl
from bench.stages import judge
from bench.stages.data import _items
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import PairRankerSettings, PromptData, TaskFamily
from bench.world.tasks import Turn
from bench.world.writers import write

TEMPLATE = "{prompt}\n1: {first}\n2: {second}"
ITEMS = [Item(f"i{n}", "writing", [f"please name {n}"], baseline=["the red apple."]) for n in range(4)]
ANSWERS = [
    Completion(f"i{n}", [f"please name {n}"], ["the red apple." if n == 0 else "a dog " * n], [], [])
    for n in range(4)
]
GOOD, BAD = (
    Writer(error=0.0, missed_constraint=0.0, filler=0.0),
    Writer(error=1.0, missed_constraint=1.0, filler=1.0),
)


def judged(
    root: Path, model: Path, items: Sequence[Item], answers: Sequence[Completion], template: str = TEMPLATE
) -> list[Verdict]:
    for name in ("items", "completions", "out"):
        (root / name).mkdir(exist_ok=True)
    write_jsonl(root / "items" / "items.jsonl", items)
    write_jsonl(root / "completions" / "completions.jsonl", answers)
    inputs = {"items": root / "items", "completions": root / "completions", "model": model}
    settings = PairRankerSettings(batch_size=3, dtype="float32", template=template)
    judge.run(settings, StageRun(inputs, root / "out", Progress(root / "progress")))
    return list(read_jsonl(root / "out" / "verdicts.jsonl", Verdict))


def world_pairs(n: int, seed: int) -> list[tuple[str, str, str]]:
    """(prompt, good answer, bad answer) of the world's tasks."""
    family = TaskFamily(categories=CATEGORIES, constraint_counts=(0.2, 0.4, 0.4))
    rng, found = random.Random(seed), []
    for item in _items(PromptData(family=family, split="train", n=n, n_turns=1, reference=None, seed=seed)):
        turn = Turn.from_json((item.task or [])[0])
        found.append((item.turns[0], write(turn, GOOD, rng), write(turn, BAD, rng)))
    return found


# Classifiers ----------------------------------------------------------------------------------------------------------


def make_classifier(folder: Path) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    causal: Any = make_model(folder.with_name("causal"), max_positions=2048, heads=1)
    AutoModelForSequenceClassification.from_pretrained(causal, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(causal).save_pretrained(folder)
    return folder


def train(
    scorer: Any,
    model: Any,
    pairs: Sequence[tuple[str, str, str]],
    logits: Callable[[list[list[int]]], Any],
    steps: int,
) -> None:
    """The logistic loss of each pair in either order."""
    import torch

    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = [
            (p, a, b, 1.0) if rng.random() < 0.5 else (p, b, a, 0.0) for p, a, b in rng.sample(list(pairs), 8)
        ]
        rows = [scorer.ids((p, a, b)) for p, a, b, _ in batch]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits(rows), torch.tensor([y for *_, y in batch])
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def held_out(pairs: Sequence[tuple[str, str, str]]) -> tuple[list[Item], list[Completion]]:
    """Every other item has the good answer as the policy's, the others as the baseline's."""
    items = [
        Item(f"{i}", None, [p], baseline=[bad if i % 2 == 0 else good])
        for i, (p, good, bad) in enumerate(pairs)
    ]
    answers = [
        Completion(f"{i}", [p], [good if i % 2 == 0 else bad], [], [])
        for i, (p, good, bad) in enumerate(pairs)
    ]
    return items, answers


def test_a_classifier_prefers_what_it_was_trained_to_prefer(tmp_path: Path) -> None:
    import torch

    from bench.engines.ranker import TextScorer

    folder = make_classifier(tmp_path / "ranker")
    scorer = TextScorer(folder, "float32", 8, partial(pair_text, pair_template(TEMPLATE)))
    model: Any = scorer.scorer.model

    def logits(rows: list[list[int]]) -> Any:
        width, pad = max(map(len, rows)), scorer.scorer.tokenizer.pad_token_id
        model.config.pad_token_id = pad
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return model(input_ids=ids, attention_mask=mask).logits[:, 0]

    model.config.pad_token_id = scorer.scorer.tokenizer.pad_token_id
    train(scorer, model.train(), world_pairs(64, seed=1), logits, steps=60)
    model.eval().save_pretrained(folder)
    found = judged(tmp_path, folder, *held_out(world_pairs(24, seed=2)))
    right = [
        (verdict.preference or 0.0) > 0.5 if i % 2 == 0 else (verdict.preference or 0.0) < 0.5
        for i, verdict in enumerate(found)
    ]
    assert sum(right) >= 20, [verdict.preference for verdict in found]


def test_both_orders_are_read_and_averaged_and_equal_texts_are_a_tie(tmp_path: Path) -> None:
    """Against the classifier's own logits, one text at a time. A head that nobody has trained knows nothing of order."""
    from bench.engines.reward import Scorer
    from bench.models.tokenize import Ids, prompt_ids

    folder = make_classifier(tmp_path / "ranker")
    found, scorer = judged(tmp_path, folder, ITEMS, ANSWERS), Scorer(folder, "float32", 1)

    def logit(prompt: str, first: str, second: str) -> float:
        text = pair_text(pair_template(TEMPLATE), (prompt, first, second))
        return scorer.rewards([Ids(prompt_ids(scorer.tokenizer, [{"role": "user", "content": text}]), [])])[0]

    for item, answer, verdict in zip(ITEMS[1:], ANSWERS[1:], found[1:], strict=True):
        ours, theirs = answer.completions[0], "the red apple."
        logits = logit(item.turns[0], ours, theirs), logit(item.turns[0], theirs, ours)
        shares = 1 / (1 + math.exp(-logits[0])), 1 / (1 + math.exp(logits[1]))
        assert verdict.preference == pytest.approx(sum(shares) / 2, abs=1e-6)
        assert verdict.details is not None
        assert [verdict.details[f"logit_{side}_first"] for side in ("policy", "baseline")] == pytest.approx(
            logits, abs=1e-5
        )
        assert [call.policy_first for call in verdict.calls] == [True, False]
        assert [call.preference for call in verdict.calls] == pytest.approx(shares, abs=1e-6)
    assert found[0].preference == 0.5 and not found[0].calls and found[0].policy_length == 14


def test_a_ranker_that_loves_the_first_is_half_sure_and_nothing_is_read_as_template() -> None:
    asked: list[tuple[str, str, str]] = []

    def compare(pairs: Sequence[tuple[str, str, str]]) -> list[float]:
        asked.extend(pairs)
        return [1e6] * len(pairs)

    found = list(RankedPreference(compare, "m", "d").judge(ITEMS, ANSWERS, baseline(ITEMS)))
    assert [verdict.preference for verdict in found] == [0.5] * 4 and len(asked) == 6
    assert (
        pair_text(pair_template("{prompt}|{first}|{second}"), ("{first}", "{second}", "b"))
        == "{first}|{second}|b"
    )


# PairRM ---------------------------------------------------------------------------------------------------------------


def make_pair_rm(folder: Path) -> Path:
    """A small network in the form of llm-blender/PairRM-hf, with a tokenizer that has its marks and wraps texts as DeBERTa's does."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import DebertaV2Config, PreTrainedTokenizerFast

    from bench.engines.ranker import MARKS, PairRM

    words = sorted(
        {
            word
            for pair in (*world_pairs(64, 1), *world_pairs(24, 2))
            for text in pair
            for word in text.split()
        }
    )
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *MARKS]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(special)
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    marks = {
        "source_prefix_id": 4,
        "cand1_prefix_id": 5,
        "cand2_prefix_id": 6,
        "cand_prefix_id": 3,
        "n_tasks": 1,
        "drop_out": 0.0,
    }
    config = DebertaV2Config(
        vocab_size=len(vocabulary),
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=64,
        **size,
        **marks,
    )
    PairRM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_pair_rms_own_layout_is_read_as_its_card_describes_it(tmp_path: Path) -> None:
    """Three parts, each with its own ends; the logit is the head's difference at the marks, by hand; swapped sides are another reading."""
    import torch

    from bench.engines.ranker import PairRMScorer, is_pair_rm

    folder = make_pair_rm(tmp_path / "pairrm")
    assert is_pair_rm(folder) and not is_pair_rm(make_classifier(tmp_path / "ranker"))
    scorer = PairRMScorer(folder, "float32", 2)
    pair = world_pairs(1, seed=1)[0]
    ids = scorer.ids(pair)
    assert (
        [ids.count(mark) for mark in (1, 2, 4, 5, 6)] == [3, 3, 1, 1, 1]
        and ids[:2] == [1, 4]
        and ids[-1] == 2
    )
    with torch.inference_mode():
        hidden = scorer.model.pretrained_model(
            torch.tensor([ids]), torch.ones(1, len(ids))
        ).last_hidden_state[0]
        source, first, second = (hidden[ids.index(mark)] for mark in (4, 5, 6))
        by_hand = scorer.model.head_layer(torch.cat([source, first])) - scorer.model.head_layer(
            torch.cat([source, second])
        )
    others = world_pairs(4, seed=1)
    assert scorer.logits(others)[0] == pytest.approx(by_hand.item(), abs=1e-5)
    assert scorer.logits(others) == pytest.approx([scorer.logits([one])[0] for one in others], abs=1e-5)
    assert scorer.ids((f"{pair[0]} <|candidate1|>", *pair[1:])).count(5) == 1
    long = scorer.ids(("word " * 3000, "word " * 3000, "word " * 3000))
    assert len(long) == 2048 and long.index(5) == 1225  # 1,224 tokens of prompt, then [CLS] and the mark


def test_pair_rm_prefers_what_it_was_trained_to_prefer(tmp_path: Path) -> None:
    import torch

    from bench.engines.ranker import PairRMScorer

    folder = make_pair_rm(tmp_path / "pairrm")
    scorer = PairRMScorer(folder, "float32", 8)

    def logits(rows: list[list[int]]) -> Any:
        width = max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return scorer.model(torch.tensor([row + [0] * (width - len(row)) for row in rows]), mask)

    train(scorer, scorer.model.train(), world_pairs(64, seed=1), logits, steps=60)
    scorer.model.eval().save_pretrained(folder)
    found = judged(tmp_path, folder, *held_out(world_pairs(24, seed=2)))
    right = [
        (verdict.preference or 0.0) > 0.5 if i % 2 == 0 else (verdict.preference or 0.0) < 0.5
        for i, verdict in enumerate(found)
    ]
    assert sum(right) >= 20, [verdict.preference for verdict in found]


# The command ----------------------------------------------------------------------------------------------------------


@outer
def test_a_ranker_judges_a_sweep_and_its_position_bias_is_audited(tmp_path: Path) -> None:
    model = make_classifier(tmp_path / "my-ranker")
    words = ["do=audit", "judge=pair_ranker", f"judge.model={model}", "n_items=12", "n_canaries=4"]
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    (path,) = ran.results.glob("judges/pair_ranker-my-ranker-*/passport.json")
    found = json.loads(path.read_text())
    assert found["judge"]["judge"] == "pair_ranker" and "value" in found["statistics"]["position_bias"]
    items, written = tmp_path / "items.json", tmp_path / "mine.jsonl"
    items.write_text(json.dumps([{"instruction": f"Say {i}", "output": "one"} for i in range(6)]))
    written.write_text(
        "".join(json.dumps({"prompt": f"Say {i}", "completion": "two " * i}) + "\n" for i in range(6))
    )
    judging = ["judge=pair_ranker", f"judge.model={model}", f"judge.items={items}", f"completions={written}"]
    done = bench(*judging, results=tmp_path / "results")
    assert done.code == 0, done.err
    assert "Each cell was judged on 6 prompts; 0 verdicts are unscored" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "judge.model must be set"),
        (
            ("judge.model=nowhere",),
            "judge.model must be a folder of PairRM, or a sequence classifier of one output, got nowhere",
        ),
        (("judge.template=no-place",), "the template must contain {prompt}, {first}, {second}"),
        (
            ("judge.calibration=nowhere.csv",),
            "judge.calibration must be a file, got nowhere.csv: no such file",
        ),
    ],
)
def test_a_wrong_ranker_is_refused_before_a_run(
    problems: Callable[..., list[str]], words: tuple[str, ...], said: str
) -> None:
    found = problems("judge=pair_ranker", *words)
    assert any(said in problem for problem in found), found
