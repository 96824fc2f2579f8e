"""Readers of public datasets: every source's exact columns, its traps, what is dropped and counted; splits, next prompts, overlap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from published import (
    PUBLISHED,
    bot,
    chinese,
    halos,
    helpsteer3,
    nectar,
    oasst,
    pku_saferlhf,
    publish,
    shp,
    ultrafeedback,
    user,
    write,
)
from pydantic import TypeAdapter
from tiny import make_model, plans

from bench import methods, readers
from bench.cli.compose import CheckedCommand
from bench.config import DatasetData, Reading, TrlRows
from bench.forecast.row_counts import data_lines
from bench.models.tokenize import PromptTooLong, load_tokenizer, positions, preference_ids, row_ids
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan
from bench.readers.common import Tally
from bench.readers.learnable import learn_check
from bench.readers.rows import BadRows, raw_rows
from bench.readers.splits import Divided, divide, overlap
from bench.readers.subsets import normalised, prompt_group
from bench.records import Item, Pair, Unpaired, read_jsonl, read_rows
from bench.stages import data
from bench.store.keys import Source
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import ConversationData, DatasetRows, LocalPairData, NextPromptData
from bench.store.store import Store

Open = Callable[..., CheckedCommand]
READ = sorted(name for name in PUBLISHED if name not in ("ultrachat_200k", "alpaca_gpt4_zh"))


@pytest.fixture
def settings(opened: Open, model_folder: Path, tmp_path: Path) -> Callable[..., DatasetData]:
    """The data section of a command, over a folder of made-up rows."""

    def read(name: str, path: Path, *words: str) -> DatasetData:
        found = (
            opened(
                "model=local",
                f"model.path={model_folder}",
                f"data={name}",
                f"data.path={path}",
                "method=kto",
                *words,
            )
            .cells[0]
            .data
        )
        assert isinstance(found, DatasetData)
        return found

    return read


def pairs(data: DatasetData, *, seed: int = 0, **changed: Any) -> LocalPairData:
    own = {name: getattr(data, name) for name in DatasetRows.model_fields if name != "version"}
    shares = {
        "fraction": data.fraction,
        "heldout_fraction": data.heldout_fraction,
        "overlap": data.overlap,
    } | changed
    return LocalPairData(dataset=DatasetRows(version=1, **own), seed=seed, **shares)


def dropped(found: Divided, split: str = "train") -> dict[str, int]:
    start = f"{split}/dropped/"
    return {name.removeprefix(start): n for name, n in found.counts.items() if name.startswith(start)}


def texts(row: Pair) -> tuple[list[str], str, str]:
    return [m["content"] for m in row.prompt], row.chosen, row.rejected


# Every source --------------------------------------------------------------------------------------------------------

TRAPS: dict[str, tuple[dict[str, int], list[tuple[list[str], str, str]]]] = {
    "ultrafeedback_binarized": (
        {"empty completion": 1, "same completions": 1},
        [(["tied?"], "one", "other")],
    ),
    "ultrafeedback_cleaned": ({"chosen not rated higher": 1}, []),
    "orca_dpo_pairs": ({"empty completion": 1}, [(["You are an AI assistant.", "with?"], "yes", "no")]),
    "hh_rlhf": (
        {
            "empty completion": 1,
            "no answer at the end": 1,
            "speakers do not take turns": 1,
            "transcripts part before the last answer": 1,
        },
        [(["a?", "b", "c?"], "d", "e")],
    ),
    "shp": ({"score ratio too small": 1, "more pairs than a post may give": 2}, []),
    "oasst1": (
        # no lower-ranked answer: 2 prompter messages, the best of 3 answers' lists, and two messages of each plain tree
        {
            "deleted": 1,
            "another language": 3,
            "no neighbour in rank": 1,
            "an ancestor is missing": 1,
            "no lower-ranked answer": 2 + 3 + 2 * 40,
        },
        [
            (["which?"], "first", "next"),
            (["which?"], "next", "last"),
            (["which?", "next", "and then?"], "deep good", "deep bad"),
        ],
    ),
    "halos": ({}, []),
    "helpsteer3": ({"tie": 1}, [(["weak?"], "yes", "no")]),
    "pku_saferlhf": ({"same completions": 1}, [(["how?"], "this way", "I cannot")]),
    "nectar": (
        {"fewer than two ranks": 1, "empty completion": 1},
        [(["which?"], "first", "third"), (["a?", "b", "c?"], "d", "e")],
    ),
    "skywork_80k": ({"same completions": 1}, []),
    "tulu_3_8b": ({"empty completion": 1}, []),
    "oasst2": ({"no lower-ranked answer": 2 * 40}, []),
    "chinese_dpo_pairs": (
        {"empty completion": 1},
        [(["你是一个助手。", "天空为什么是蓝色的?"], "因为瑞利散射。", "不知道。")],
    ),
    "dataset": ({}, []),
}


@pytest.mark.parametrize("name", READ)
def test_a_source_is_read_with_its_traps_dropped_and_counted(
    name: str, settings: Any, tmp_path: Path
) -> None:
    folder = publish(tmp_path / name, name, traps=True)
    found = divide(pairs(settings(name, folder), heldout_fraction=0.2), folder)
    reasons, kept = TRAPS[name]
    assert dropped(found) == reasons
    rows = [texts(row) for row in [*found.train, *found.heldout]]
    assert [row for row in kept if row not in rows] == []
    train_files = sum(split.startswith("train") for split in PUBLISHED[name].files)
    n = 40 * train_files + (20 if "heldout" in PUBLISHED[name].files else 80 if name == "hh_rlhf" else 0)
    plain = [row for row in rows if row[0][0].startswith("please name")]
    assert len(plain) == n
    assert all(chosen.startswith("the ") and rejected.startswith("a ") for _, chosen, rejected in plain), (
        "chosen is the good answer"
    )
    assert len({row.id for row in [*found.train, *found.heldout]}) == len(rows)
    assert found.heldout and not {prompt_group(row.prompt) for row in found.train} & {
        prompt_group(row.prompt) for row in found.heldout
    }


def test_the_folder_reads_as_hf_datasets_reads_it(settings: Any, tmp_path: Path) -> None:
    import datasets

    folder = publish(tmp_path / "uf", "ultrafeedback_binarized")
    theirs = datasets.load_dataset(
        "parquet",
        data_files={"train": str(folder / "data/train_prefs-*.parquet")},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    ours = divide(pairs(settings("ultrafeedback_binarized", folder)), folder).train
    last = [([row["prompt"]], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in theirs]
    assert [texts(row) for row in ours] == last


def test_ties_of_ultrafeedback_are_kept_and_counted_or_dropped(settings: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path / "uf", "ultrafeedback_binarized", traps=True)
    kept = divide(pairs(settings("ultrafeedback_binarized", folder)), folder)
    assert kept.counts["train/noted/equal scores"] == 1
    without = divide(pairs(settings("ultrafeedback_binarized", folder, "data.reading.ties=drop")), folder)
    assert dropped(without)["equal scores"] == 1 and "train/noted/equal scores" not in without.counts
    assert len(kept.train) == len(without.train) + 1


def test_shp_filters_train_rows_alone(settings: Any, tmp_path: Path) -> None:
    close = [
        shp("close?", "yes", "no", (9, 6)),
        *[shp("many?", f"yes {i}", f"no {i}", a_is_better=False) for i in range(7)],
    ]
    write(tmp_path / "askhr" / "train.json", [shp("other?", "yes", "no"), shp("third?", "yes", "no")])
    write(tmp_path / "askhr" / "test.json", close)
    found = divide(pairs(settings("shp", tmp_path)), tmp_path)
    assert len(found.heldout) == 8 and not dropped(found, "heldout")
    assert all(row.chosen.startswith("yes") for row in found.heldout)


def test_which_pairs_of_a_post_are_kept_does_not_hang_on_the_order_of_rows(
    settings: Any, tmp_path: Path
) -> None:
    rows = [shp("many?", f"yes {i}", f"no {i}") for i in range(9)] + [shp("other?", "yes", "no")]
    kept = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        folder = tmp_path / name
        (
            write(folder / "askhr" / "train.json", order),
            write(folder / "askhr" / "test.json", [shp("held?", "yes", "no")]),
        )
        kept.append(
            {
                row.chosen
                for row in divide(pairs(settings("shp", folder)), folder).train
                if row.prompt[0]["content"] == "many?"
            }
        )
    assert kept[0] == kept[1] and len(kept[0]) == 5


def test_more_languages_of_oasst_can_be_had(settings: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path / "oasst", "oasst1", traps=True)
    found = divide(pairs(settings("oasst1", folder, "data.reading.languages=[en,es]")), folder)
    assert (["¿cuál?"], "uno", "dos") in [texts(row) for row in found.train]


def test_halos_rows_say_their_split_and_binary_ones_are_unpaired(settings: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path / "halos", "halos")
    found = divide(pairs(settings("halos", folder / "feedback.json")), folder / "feedback.json")
    assert (len(found.train), len(found.heldout)) == (32, 8)
    binary = [
        {
            "prompt_id": i,
            "prompt": [user(f"q{i}")],
            "output": [bot("x")],
            "label": i % 2,
            "reward": 0.5,
            "type": "binary_feedback",
        }
        for i in range(40)
    ]
    file = write(tmp_path / "feedback.json", binary)
    rows = divide(pairs(settings("halos", file), heldout_fraction=0.3), file)
    assert all(isinstance(row, Unpaired) for row in rows.train)
    assert {row.prompt[0]["content"]: row.label for row in rows.train} == {
        f"q{i}": i % 2 == 1 for i in range(40) if f"q{i}" in {row.prompt[0]["content"] for row in rows.train}
    }


def read_traps(name: str, folder: Path, **settings: Any) -> tuple[list[Any], dict[str, int]]:
    """The train rows of a source's traps, and its dropped rows by reason."""
    own = readers.load(load_reading(name, **settings).reader)
    file = write(folder / "rows.jsonl", PUBLISHED[name].traps)
    tally = Tally()
    raws = readers._raws([file], "train", own, tally)
    rows = list(own.read(raws, load_reading(name, **settings), tally, train=True))
    assert not tally.problems
    return rows, {reason: n for reason, n in tally.dropped.items() if n}


def load_reading(name: str, **settings: Any) -> Any:
    written = yaml.safe_load((Path(__file__).parents[2] / f"conf/data/{name}.yaml").read_text())["data"]
    return TypeAdapter(Reading).validate_python(written["reading"] | settings)


def test_helpsteer3_keeps_the_domains_and_strengths_that_are_asked_for(tmp_path: Path) -> None:
    assert read_traps("helpsteer3", tmp_path, domains=["general"])[1] == {"tie": 1, "another domain": 1}
    assert read_traps("helpsteer3", tmp_path, min_preference=2)[1] == {"tie": 1, "preference too weak": 1}


def test_the_safer_answer_of_pku_may_be_the_chosen_one(tmp_path: Path) -> None:
    assert [row.chosen for row in read_traps("pku_saferlhf", tmp_path, chosen="safer")[0]] == ["I cannot"]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("best_worst", {("first", "third")}),
        ("neighbours", {("first", "second"), ("second", "third")}),
        ("all", {("first", "second"), ("second", "third"), ("first", "third")}),
    ],
)
def test_a_ranking_of_nectar_becomes_the_pairs_that_are_asked_for(
    pairs: str, expected: set[tuple[str, str]], tmp_path: Path
) -> None:
    rows, _ = read_traps("nectar", tmp_path, pairs=pairs)
    of_ranking = [row for row in rows if row.prompt[0]["content"] == "which?"]
    assert {(row.chosen, row.rejected) for row in of_ranking} == expected
    assert len({row.id for row in of_ranking}) == len(expected)


def test_alpacas_instructions_are_conversations_of_one_turn(tmp_path: Path) -> None:
    folder = publish(tmp_path, "alpaca_gpt4_zh", 3, traps=True)
    reading = ConversationData(version=1, files=("alpaca_gpt4_data_zh.json",), fraction=1.0, seed=0)
    rows, counts = readers.read_conversations(folder, reading)
    assert [[m["content"] for m in row.messages] for row in rows[:2]] == [
        ["翻译成中文。\nGood morning", "早上好"],
        ["写一首诗。", "春眠不觉晓"],
    ]
    assert len(rows) == 5 and counts["train/dropped/empty message"] == 1


def test_conversations_end_in_an_answer(tmp_path: Path) -> None:
    folder = publish(tmp_path, "ultrachat_200k", 3, traps=True)
    reading = ConversationData(version=1, files=("data/train_sft-*.parquet",), fraction=1.0, seed=0)
    rows, counts = readers.read_conversations(folder, reading)
    assert [m["content"] for m in rows[0].messages] == ["open?", "answer"]
    assert len(rows) == 4 and all(row.messages[-1]["role"] == "assistant" for row in rows)
    assert {name: n for name, n in counts.items() if "dropped" in name} == {
        "train/dropped/empty message": 1,
        "train/dropped/no answer": 1,
    }


# What cannot be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (
            "ultrafeedback_binarized",
            {"prompt": "a", "chosen": "b"},
            "expected columns prompt, chosen, rejected, score_chosen",
        ),
        (
            "ultrafeedback_binarized",
            ultrafeedback("a?", "b", "c") | {"score_chosen": "8"},
            "score_chosen must be a number, got the text",
        ),
        (
            "orca_dpo_pairs",
            {"system": None, "question": "a", "chosen": "b", "rejected": "c"},
            "system must be text, got null",
        ),
        ("hh_rlhf", {"chosen": "b", "rejected": "c"}, "a transcript must begin with '\\n\\nHuman:', got 'b'"),
        ("shp", shp("a", "b", "c") | {"labels": 2}, "labels must be 1 or 0, got the number 2"),
        ("oasst1", oasst("a", None, "b", "bot"), "role must be prompter or assistant, got the text 'bot'"),
        (
            "halos",
            halos("a", "b", "c") | {"type": "scalar_feedback"},
            "type must be pairwise_feedback or binary_feedback",
        ),
        ("helpsteer3", helpsteer3("a", "b", "c") | {"context": "a"}, "prompt"),
        (
            "pku_saferlhf",
            pku_saferlhf("a", "b", "c") | {"better_response_id": 2},
            "better_response_id must be 0 or 1",
        ),
        (
            "nectar",
            nectar("a", "b", "c") | {"answers": ["b"]},
            "answers must be a list of answer, model and rank",
        ),
        ("chinese_dpo_pairs", chinese("a", "b", "c") | {"prompt": None}, "prompt must be text, got null"),
        ("dataset", {"prompt": "a", "text": "b"}, "expected columns prompt, chosen, rejected or"),
    ],
)
def test_a_row_of_another_shape_is_said_with_its_file_and_number(
    name: str, row: Any, reason: str, problems: Any, model_folder: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / ("feedback.json" if name == "halos" else "rows.jsonl"), [row])
    (problem,) = problems(
        "model=local", f"model.path={model_folder}", f"data={name}", f"data.path={file}", "method=dpo"
    )
    assert (
        problem.startswith(f"{file}:1: ")
        and reason in problem
        and problem.endswith(f"(data.path={file} on the command line)")
    )


def test_a_bad_row_far_down_stops_the_stage_with_its_place(settings: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path, "orca_dpo_pairs", 60)
    with (folder / "orca_rlhf.jsonl").open("a") as file:
        file.write('{"system": "", "question": 1}\n')
    with pytest.raises(
        BadRows,
        match=r"orca_rlhf\.jsonl:61: expected columns system, question, chosen, rejected, got system, question",
    ):
        divide(pairs(settings("orca_dpo_pairs", folder)), folder)


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty prompts, half of them asked again in other letters."""
    rows = [{"prompt": f"what is {i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(60)]
    rows += [{"prompt": f"What  is {i}?", "chosen": f"good {i}", "rejected": "bad"} for i in range(0, 60, 2)]
    return write(tmp_path_factory.mktemp("many") / "rows.jsonl", rows)


def groups(rows: Any) -> set[str]:
    return {prompt_group(row.prompt) for row in rows}


@given(small=st.floats(0.05, 1.0), large=st.floats(0.05, 1.0), seed=st.integers(0, 3))
def test_fractions_are_nested_and_copies_of_a_prompt_stay_together(
    many: Path, small: float, large: float, seed: int
) -> None:
    small, large = sorted((small, large))
    one, other = (divide(_plain(fraction=fraction, seed=seed), many) for fraction in (small, large))
    assert groups(one.train) <= groups(other.train)
    assert not groups(one.train) & groups(one.heldout) and not groups(one.train) & groups(one.next_prompts)
    assert groups(one.train) | groups(one.next_prompts) | groups(one.heldout) == {
        f'[["text", "what is {i}"]]' for i in range(60)
    }
    assert (
        len(groups(one.train))
        == one.counts["train_prompts"]
        == max(1, round(small * one.counts["all_train_prompts"]))
    )
    assert len(one.next_prompts) == len(groups(one.next_prompts)), "a prompt is sampled for once"


def _plain(**changed: Any) -> LocalPairData:
    rows = DatasetRows(
        reading=TrlRows(reader="trl"),
        version=1,
        train_files=("x",),
        heldout_files=(),
        n_heldout=None,
        form=changed.pop("form", None),
    )
    return LocalPairData(**{"dataset": rows, "seed": 0, "fraction": 1.0, "heldout_fraction": 0.2} | changed)


def test_next_prompts_of_two_seeds_differ_and_of_one_do_not(many: Path) -> None:
    drawn = [
        [row.id for row in divide(_plain(fraction=0.2, seed=seed), many).next_prompts] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_train_rows_that_ask_what_held_out_ones_ask_are_dropped_and_counted(
    settings: Any, tmp_path: Path
) -> None:
    folder = publish(tmp_path, "ultrafeedback_binarized", 5)
    train = [
        ultrafeedback("what is it?", "a", "b"),
        ultrafeedback("What is  it", "c", "d"),
        ultrafeedback("else?", "e", "f"),
    ]
    write(folder / "data/train_prefs-00000-of-00001.parquet", train)
    write(folder / "data/test_prefs-00000-of-00001.parquet", [ultrafeedback("what is it?", "x", "y")])
    found = divide(pairs(settings("ultrafeedback_binarized", folder)), folder)
    assert [row.chosen for row in found.train] == ["e"]
    assert (found.counts["overlap/heldout/exact"], found.counts["overlap/heldout/normalised"]) == (1, 1)


def test_held_out_prompts_are_limited_whatever_the_seed(settings: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path, "ultrafeedback_binarized")
    data = settings("ultrafeedback_binarized", folder, "data.n_heldout=7")
    first, second = (divide(pairs(data, seed=seed), folder).heldout for seed in (0, 1))
    assert len(first) == 7 and first == second


def test_pairs_become_judged_completions_where_that_is_asked(many: Path) -> None:
    rows = divide(_plain(form="unpaired"), many).train
    assert {type(row) for row in rows} == {Unpaired}
    assert {row.label for row in rows} == {True, False}
    assert all(row.completion.startswith("good" if row.label else "bad") for row in rows)


# Prompts that are too long -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


LONG = "please name a very good red apple " * 40


def long_prompts(tmp_path: Path, tiny_model: Path, *words: str) -> CellPlan:
    """A cell over rows of which one of each split has a prompt that leaves no place for an answer."""
    folder = publish(tmp_path / "uf", "ultrafeedback_binarized", 12, n_heldout=6)  # over what lies there
    for file in PUBLISHED["ultrafeedback_binarized"].files.values():
        rows = [row for _, take in raw_rows(folder / file) if (row := take())]
        write(folder / file, [*rows, ultrafeedback(f"{LONG}{file}", "good", "bad")])
    own = (
        f"model={tiny_model}",
        "data=ultrafeedback_binarized",
        f"data.path={folder}",
        "method=dpo",
        "model.max_length=100",
        *words,
    )
    return plans(*own)[-1]


def test_rows_whose_prompt_fills_what_a_model_looks_at_are_dropped_and_counted(
    tiny_model: Path, tmp_path: Path
) -> None:
    said = data_lines([long_prompts(tmp_path, tiny_model)], Store(tmp_path / "store")).lines
    assert "  train of 13 read; dropped: 1 prompt too long" in said
    cell = long_prompts(tmp_path, tiny_model, "data.fraction=0.5")
    preferences = cell.roles["preferences"]
    inputs = {role: source.path for role, source in preferences.inputs.items() if isinstance(source, Source)}
    (tmp_path / "out").mkdir()
    room = StageRun(inputs, tmp_path / "out", Progress(tmp_path / "progress"))
    counts = data.run(preferences.settings, room).counts
    assert (counts["train/dropped/prompt too long"], counts["heldout/dropped/prompt too long"]) == (1, 1)
    assert (counts["train"], counts["heldout"], counts["all_train"]) == (6, 6, 12)
    data.run(NextPromptData(pairs=preferences.settings, after=0, n=6), room)
    tokenizer = load_tokenizer(tiny_model)
    for split in ("train", "heldout"):
        for row in read_rows(tmp_path / "out" / f"{split}.jsonl"):
            assert preference_ids(tokenizer, row, 100)["chosen"].completion
    assert all(
        not item.turns[0].startswith(LONG) for item in read_jsonl(tmp_path / "out" / "items.jsonl", Item)
    )


def test_held_out_prompts_are_those_that_the_model_has_positions_for(
    tmp_path: Path, tiny_model: Path
) -> None:
    """They are answered, not trained on: max_length does not touch them."""
    whole = next(stage for stage in long_prompts(tmp_path, tiny_model).stages if stage.label == "all rows")
    assert isinstance(whole.settings, LocalPairData) and whole.settings.max_length is None
    inputs = {role: source.path for role, source in whole.inputs.items() if isinstance(source, Source)}
    assert positions(inputs["tokenizer"]) == 256
    (tmp_path / "out").mkdir()
    assert (
        data.run(whole.settings, StageRun(inputs, tmp_path / "out", Progress(tmp_path / "progress"))).counts[
            "heldout"
        ]
        == 6
    )


@pytest.mark.parametrize("most", [20, 26, 27, 28, 60])
def test_a_prompt_fits_where_it_can_be_trained_on(most: int, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    several, plain = (
        [user("dog"), bot("horse"), user("é\u2028" * 3)],
        [{"role": "text", "content": "dog " * 26}],
    )
    for prompt in ([user("please name a dog")], several, plain):
        try:
            trained = bool(row_ids(tokenizer, prompt, "x", most))
        except PromptTooLong:
            trained = False
        assert (learn_check(tokenizer, most)(prompt, ["x"]) is None) == trained


# Overlap with the judge's items --------------------------------------------------------------------------------------

ITEMS = [Item("0", None, ["What is 4?"]), Item("1", None, ["what is 7"]), Item("2", None, ["3 + 4"])]


def test_overlap_is_word_for_word_or_but_for_case_spaces_and_final_punctuation() -> None:
    asked = ["what  is 4", "what is 7", "3 - 4", "what is 70"]
    rows = [
        Pair(str(i), [{"role": "user", "content": text}], "a", "b", "", "") for i, text in enumerate(asked)
    ]
    assert overlap(rows, ITEMS) == {"0": "normalised", "1": "exact"}


def test_a_later_question_is_no_overlap() -> None:
    row = Pair("0", [user("hello"), bot("hi"), user("what is 7")], "a", "b", "", "")
    assert overlap([row], ITEMS) == {}


@pytest.mark.parametrize("text", ["", "  ", "?!", "A b", "ａｂ", "straße"])
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_overlap_is_dropped_or_refused(many: Path) -> None:
    whole, without = divide(_plain(), many), divide(_plain(overlap="drop"), many, ITEMS)
    lost = groups(whole.train) - groups(without.train)
    assert lost == {f'[["text", "what is {i}"]]' for i in (4, 7)} - groups(whole.heldout)
    assert sum(n for name, n in without.counts.items() if name.startswith("overlap/items")) == len(
        whole.train
    ) - len(without.train)
    if lost:
        with pytest.raises(
            ValueError,
            match=r"train rows have the question of an item of the judge \(data\.overlap=refuse\), for example 'what is ",
        ):
            divide(_plain(overlap="refuse"), many, ITEMS)
    assert lost, "the fixture holds an overlap"


# Keys ----------------------------------------------------------------------------------------------------------------

MOVES: dict[str, set[str]] = {
    "data.name=other": set(),
    "data.n_kl_prompts=8": {"KL prompts"},
    "data.fraction=0.5": {"preferences"},
    "data.overlap=drop": set(),  # no judge brings items
    "data.heldout_fraction=0.3": {"preferences", "all rows"},
    "data.n_heldout=5": {"preferences", "all rows"},
    "model.max_length=90": {"preferences"},
    "data.reading.ties=drop": {"preferences", "all rows"},
    "data.train_files=[data/*_prefs-*.parquet]": {"preferences", "all rows"},
    "data.heldout_files=[]": {"preferences", "all rows"},
    "seed=1": {"preferences"},
}


@pytest.mark.parametrize("word", MOVES)
def test_a_setting_of_a_dataset_moves_the_rows_that_it_bears_on(
    word: str, opened: Open, model_folder: Path, tmp_path: Path
) -> None:
    folder = publish(tmp_path / "uf", "ultrafeedback_binarized", 5, n_heldout=5)
    words = (
        "model=local",
        f"model.path={model_folder}",
        "data=ultrafeedback_binarized",
        f"data.path={folder}",
        "method=dpo",
    )
    base = (
        "data.fraction=0.9",
        "judge.n_items=3",
    )  # else all rows are the preferences, and the held-out prompts those of KL
    less = tuple(other for other in base if other.partition("=")[0] != word.partition("=")[0])
    before, after = (_rows_of(opened(*words, *more)) for more in (base, (*less, word)))
    moved = {label for label in before if before[label] != after[label]}
    held_out = {"KL prompts", "held-out prompts"} if "all rows" in MOVES[word] else set()
    assert moved == MOVES[word] | held_out


def _rows_of(done: CheckedCommand) -> dict[str, str]:
    """Keys of a cell's data stages by label."""
    stages = plan_cell(done.cells[0], done.sources[0], methods.chain).stages
    return {stage.label: stage.key for stage in stages if stage.kind == "data"}


def test_a_copy_counts_by_the_content_of_the_files_that_are_read(
    opened: Open, model_folder: Path, tmp_path: Path
) -> None:
    digests = []
    for name in ("a", "b", "c"):
        folder = publish(tmp_path / name, "ultrafeedback_binarized", 5, n_heldout=5)
        if name == "b":
            (folder / "README.md").write_text("not read")
        if name == "c":
            write(
                folder / PUBLISHED["ultrafeedback_binarized"].files["heldout"],
                [ultrafeedback("else?", "a", "b")],
            )
        words = (
            "model=local",
            f"model.path={model_folder}",
            "data=ultrafeedback_binarized",
            f"data.path={folder}",
            "method=dpo",
        )
        source = opened(*words).sources[0].data
        assert source is not None
        digests.append(source.digest)
    assert digests[0] == digests[1] != digests[2]
