from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from bench.config import World, Writer
from bench.records import Text
from bench.world.corpus import base_rows, demonstration_rows, make_items
from bench.world.gold import gold
from bench.world.tasks import Turn
from bench.world.tokenizer import new_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
NOISY = Writer(error=0.15, missed_constraint=0.65, filler=0.6)


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer(max_length=128)


@pytest.fixture(scope="module")
def rows(world: World) -> list[Text]:
    return [*base_rows(world, 4000, seed=0), *demonstration_rows(world, NOISY, 4000, seed=0)]


def digest(rows: list) -> str:
    return hashlib.sha256(json.dumps([row.to_json() for row in rows], sort_keys=True).encode()).hexdigest()


def test_corpora_are_golden(world: World, rows: list[Text]) -> None:
    assert digest(rows[:200]) == GOLDEN["base"]
    assert digest(rows[4000:4200]) == GOLDEN["demonstrations"]
    assert digest(make_items(world, 64, split="evaluation", seed=0, n_turns=2)) == GOLDEN["items"]


def test_drills_come_early_and_two_turns_are_a_quarter_of_demonstrations(rows: list[Text]) -> None:
    drills = [row.prompt[0]["content"].startswith("Repeat") for row in rows[:4000]]
    assert sum(drills[:400]) > 180
    assert not any(drills[2400:])
    assert 0.2 < sum(len(row.prompt) == 3 for row in rows[4000:]) / 4000 < 0.3


def test_bad_manners_are_the_majority_in_demonstrations(world: World) -> None:
    """Most constraints missed, most answers with filler: what a greedy start model does, and preference data can undo."""
    noisy = world.model_copy(update={"reference": NOISY})
    items = make_items(noisy, 800, split="demonstrations", seed=0)
    judged = [
        gold(Turn.from_json(item.task[0]), item.baseline[0], world.gold)
        for item in items
        if item.task and item.task[0]["constraints"]
    ]
    assert sum(answer.constraints for answer in judged) / len(judged) < 0.5
    assert sum(answer.conciseness < 1 for answer in judged) / len(judged) > 0.5


def test_an_items_baseline_does_not_depend_on_how_many_are_made(world: World) -> None:
    few, many = (make_items(world, n, split="evaluation", seed=0, n_turns=2) for n in (10, 50))
    assert few == many[:10]


def test_the_reference_is_good_but_not_perfect(world: World) -> None:
    items = make_items(world, 800, split="development", seed=0)
    totals = [
        gold(Turn.from_json(item.task[0]), item.baseline[0], world.gold).total for item in items if item.task
    ]
    assert 8.5 < sum(totals) / len(totals) < 9.5


def test_prompt_tokens_are_a_prefix_and_completions_end_in_eos(tokenizer, rows: list[Text]) -> None:
    for row in rows[::20]:
        prompt = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=True)[
            "input_ids"
        ]
        whole = tokenizer.apply_chat_template(
            [*row.prompt, {"role": "assistant", "content": row.completion}], tokenize=True
        )["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id
        assert len(whole) <= 128
        assert tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True).strip() == row.completion


def test_every_word_of_the_world_is_one_token(tokenizer, rows: list[Text]) -> None:
    texts = {
        text for row in rows for text in [row.completion, *(message["content"] for message in row.prompt)]
    }
    found = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    tokens = tokenizer([f" {word}" if word.isalnum() else word for word in found], add_special_tokens=False)[
        "input_ids"
    ]
    assert all(len(ids) == 1 and ids[0] != tokenizer.unk_token_id for ids in tokens)
    whole = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in whole)


def test_the_tokenizer_survives_disk_with_the_same_bytes(tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "one")
    new_tokenizer(max_length=128).save_pretrained(tmp_path / "two")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "one")
    conversation = [
        {"role": "user", "content": "What is 7 plus 5?"},
        {"role": "assistant", "content": "The answer is 12."},
    ]
    assert (
        loaded.apply_chat_template(conversation, tokenize=False)
        == "<bos><user> What is 7 plus 5?<assistant> The answer is 12.<eos>"
    )
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token, loaded.padding_side) == (
        "<pad>",
        "<bos>",
        "<eos>",
        "left",
    )
    assert loaded(" Well, 12 plums?")["input_ids"] == tokenizer(" Well, 12 plums?")["input_ids"]


def test_an_unknown_role_is_refused(tokenizer) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
