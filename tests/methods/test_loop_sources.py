"""What a loop reads on a model of one's own: prompts from conversations, numbers by iteration, files and models of self-rewarding.

Planned in this process on public datasets in small. The whole commands on tiny folders are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from outer import outer
from published import publish
from tiny import bench, make_model, make_preferences, make_reward_model, plans, write_rows

from bench.cli.compose import CheckedCommand
from bench.commands import why
from bench.config import prompt_ranges
from bench.forecast.compute import Sizes
from bench.forecast.stage_time import token_bound
from bench.models import recorded
from bench.models.hub import read_config
from bench.models.model_size import Memory, read_shape
from bench.planning.inputs import CellPlan
from bench.readers.prompts import read_prompts
from bench.readers.rows import BadRows
from bench.records import (
    Completion,
    Conversation,
    Item,
    Labelled,
    Logps,
    Pair,
    Text,
    read_items,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from bench.runner.worker import describe, run_stage
from bench.stages import data, label
from bench.store.keys import Source, Stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import ConversationSft, LoopPairData, NextPromptData, RankLabels
from bench.store.store import Store

Problems = Callable[..., list[str]]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another one, a reward model, pairs, UltraChat and UltraFeedback in small, and own files."""
    found = tmp_path_factory.mktemp("loops")
    make_model(found / "model", max_positions=1024)
    make_model(found / "writer", seed=1, max_positions=1024)
    make_reward_model(found / "rewards")
    make_preferences(found / "pairs.jsonl", paired=True, messages=True, n=24)
    publish(found / "ultrachat", "ultrachat_200k", traps=True)
    publish(found / "ultrafeedback", "ultrafeedback_cleaned", n=60)
    for name in ("ift", "eft", "prompts"):
        rows = [turn(f"{name} {i}?", f"dog {i}. Score: {i % 5 + 1}") for i in range(12)]
        write_rows(found / f"{name}.jsonl", rows)
    return found


def turn(asked: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def own(room: Path, *words: str) -> list[str]:
    return [
        f"model={room}/model",
        "model.max_length=256",
        "data=local",
        f"data.path={room}/pairs.jsonl",
        "data.heldout_fraction=0.3",
        "data.n_kl_prompts=2",
        "judge=none",
        "judge.n_items=2",
        "judge.decoding.max_new_tokens=6",
        "method.sample_max_new_tokens=6",
        *words,
    ]


def spin(room: Path, *words: str) -> list[str]:
    chats = ["sft=ultrachat_200k", f"sft.path={room}/ultrachat", "method.prompts=sft"]
    return own(room, "method=spin", "data.fraction=0", *chats, *words)


SELF = ["method=self_rewarding", "method.first_training={steps: 2, batch_size: 4, learning_rate: 1e-5}"]


def labelled(cell: CellPlan) -> dict[str, Stage]:
    return {stage.label: stage for stage in cell.stages}


def made(stage: Stage, results: Path) -> Path:
    """Folder of a data stage of files, run here with the stages before it."""
    store = Store(results)
    for each in stage.walk():
        if store.status(each).state != "done":
            run_stage(describe(each, store))
            store.invalidate(each)
    return store.folder(stage)


# SPIN -----------------------------------------------------------------------------------------------------------------


def test_spin_demonstrates_the_first_turns_that_its_start_model_learned(room: Path, tmp_path: Path) -> None:
    """The conversations of SFT are its demonstrations, as many as asked for and in an order that the seed draws."""
    cells = plans(*spin(room, "method.n_prompts=6", "method.iteration=1", "seed=0,1"))
    stages, other = (labelled(cell) for cell in cells if cell.cell.method.name == "spin")
    learned = stages["start model"].inputs["conversations"]
    shown = [stages[f"iteration {t} demonstrations"] for t in (0, 1)]
    assert [stage.inputs["conversations"] for stage in shown] == [learned] * 2
    conversations = read_jsonl(made(stages["conversations"], tmp_path) / "rows.jsonl", Conversation)
    first = {row.messages[0]["content"]: row.messages[1]["content"] for row in conversations}
    drawn = [read_items(made(stage, tmp_path)) for stage in (*shown, other["iteration 0 demonstrations"])]
    assert [len(items) for items in drawn] == [6, 6, 6]
    for item in (item for items in drawn for item in items):
        assert item.baseline == [first[item.turns[0]]] and not item.plain
    new, next_ones, of_other_seed = ({item.turns[0] for item in items} for items in drawn)
    assert not new & next_ones and new != of_other_seed


def test_every_iteration_of_spin_may_have_the_same_demonstrations_and_a_tuned_start(room: Path) -> None:
    """Algorithm 1. `sft.training=null`: the folder is the model that learned the conversations."""
    words = spin(
        room, "sft.training=null", "method.n_prompts=6", "method.prompt_sets=same", "method.iteration=3"
    )
    stages = labelled(plans(*words)[-1])
    assert "start model" not in stages
    samples = [stages[f"iteration {t} samples"] for t in range(4)]
    assert len({stage.inputs["items"].key for stage in samples}) == 1
    assert len({stage.key for stage in samples}) == 4
    assert (
        isinstance(samples[0].inputs["model"], Source)
        and stages["iteration 0 policy (spin)"] == (samples[1].inputs["model"])
    )
    assert token_bound(stages["iteration 3 policy (spin)"]) == 2 * 2 * 2 * 6 * 256  # two sets, two epochs


def test_pairs_of_the_same_prompts_have_different_names(tmp_path: Path) -> None:
    """Log-probs are looked up by name: two iterations with one prompt must not share one."""
    for t in (0, 1):
        (tmp_path / f"0{t}").mkdir()
        asked = [{"role": "user", "content": "Why?"}]
        rows = [
            Labelled(f"new-{i}", [{**asked[0], "content": f"Why {i}?"}], "So.", f"No {t}.", 1.0, True)
            for i in (1, 2)
        ]
        write_jsonl(tmp_path / f"0{t}" / "labels.jsonl", rows)
    (tmp_path / "out").mkdir()
    inputs = {f"0{t}": tmp_path / f"0{t}" for t in (0, 1)}
    data.run(LoopPairData(seed=0), StageRun(inputs, tmp_path / "out", Progress(tmp_path / "progress")))
    pairs = read_rows(tmp_path / "out" / "train.jsonl")
    assert [(row.id, row.rejected) for row in pairs if isinstance(row, Pair)] == [
        ("new-1", "No 0."),
        ("new-2", "No 0."),
        ("new-1@2", "No 1."),
        ("new-2@2", "No 1."),
    ]


@pytest.mark.parametrize("name", ["chats.parquet", "chats.jsonl"])
def test_a_file_of_prompts_may_be_one_of_conversations(name: str, tmp_path: Path) -> None:
    """UltraChat's columns (Parquet) and TRL's (JSONL): first turns, and what teaches nothing is counted."""
    system = {"role": "system", "content": "Be short."}
    chats = [
        [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant") * 2, texts, strict=False)
        ]
        for texts in (("Why?", "So.", "More?", "No."), ("When?", " "), ("Who?",), ("Why?", "Again."))
    ]
    rows = [{"messages": [system, *chats[0]]}, *({"messages": chat} for chat in chats)]
    if name.endswith("parquet"):
        rows = [{"prompt": row["messages"][-1]["content"], "prompt_id": "x", **row} for row in rows]
    read = read_prompts(write_rows(tmp_path / name, rows), with_completions=True)
    assert [(row.id, row.completion) for row in read.rows] == [("1", "So."), ("2", "So."), ("5", "Again.")]
    assert read.rows[0].prompt == [system, chats[0][0]]
    assert read.dropped == {"empty message": 1, "no answer": 1}
    assert [row.id for row in read.different()] == ["1", "2"]
    with pytest.raises(BadRows, match=r"expected columns prompt and completion, or messages, got prompt"):
        read_prompts(write_rows(tmp_path / "bare.jsonl", [{"prompt": "a"}]), with_completions=True)


# Numbers by iteration ---------------------------------------------------------------------------------------------------


def test_ranges_of_prompts_by_hand() -> None:
    assert prompt_ranges(5, 3) == [(0, 5), (5, 5), (10, 5)]
    assert prompt_ranges((8, 20, 30), 2) == prompt_ranges([8, 20], 2) == [(0, 8), (8, 20)]
    assert prompt_ranges((8, 20), 2, same=True) == [(0, 8), (0, 20)]
    assert prompt_ranges((8,), -1) == prompt_ranges(8, 0) == []


def test_spa_takes_other_numbers_of_prompts_in_each_iteration(room: Path, problems: Problems) -> None:
    """SPA, section 5.1: 2K labelled, then 8K, 20K and 30K of one shuffle. One number counts for all."""
    words = own(room, "data=ultrafeedback_cleaned", f"data.path={room}/ultrafeedback", "data.fraction=0.1")
    words = [word for word in words if word not in ("data=local", f"data.path={room}/pairs.jsonl")]
    listed, single = (
        labelled(plans(*words, "method=spa", "method.iteration=3", f"method.n_prompts={n}")[-1])
        for n in ("[3,5,7]", "5")
    )
    settings = [listed[f"iteration {t} prompts"].settings for t in (1, 2, 3)]
    assert [(s.after, s.n) for s in settings if isinstance(s, NextPromptData)] == [(0, 3), (3, 5), (8, 7)]
    assert [token_bound(listed[f"iteration {t} samples"]) for t in (1, 2, 3)] == [
        n * 2 * 6 for n in (3, 5, 7)
    ]
    assert [getattr(single[f"iteration {t} prompts"].settings, "n", 0) for t in (1, 2, 3)] == [5, 5, 5]
    few = "\n".join(problems(*words, "method=spa", "method.n_prompts=[3,5]"))
    assert (
        "iterations 1 to 3 need 3 numbers of prompts, got 2: give one for each, or one number for all" in few
    )
    assert "(method.n_prompts=[3,5] on the command line)" in few
    assert problems(*words, "method=spa", "method.n_prompts=[3,5]", "method.iteration=0,1,2") == []
    assert "method.n_prompts must be >= 1, got 0" in "\n".join(problems("method=spa", "method.n_prompts=0"))
    assert "method.n_prompts.1 must be >= 1, got 0" in "\n".join(
        problems("method=spa", "method.n_prompts=[3,0,1]")
    )


# Self-rewarding ---------------------------------------------------------------------------------------------------------


def test_self_rewarding_learns_from_ones_own_files_and_another_model_writes_its_prompts(
    room: Path, tmp_path: Path, opened: Callable[..., CheckedCommand]
) -> None:
    """Section 3.1: IFT and EFT, a fixed model that writes prompts, another number of them in each iteration."""
    files = [f"method.{name}={room}/{name}.jsonl" for name in ("ift", "eft")]
    writer = [f"method.prompt_writer={room}/writer", "method.new_prompts=self_instruct"]
    words = own(
        room, *SELF, *files, *writer, "method.n_prompts=[4,6]", "method.iteration=3", "data.fraction=0"
    )
    cell = plans(*words)[-1]
    stages = labelled(cell)
    first = stages["iteration 1 policy (self_rewarding)"].inputs
    assert (first["demonstrations"], first["evaluations"]) == (stages["instructions"], stages["evaluations"])
    for name in ("instructions", "evaluations"):
        rows = list(read_jsonl(made(stages[name], tmp_path) / "rows.jsonl", Text))
        assert [row.completion for row in rows] == [f"dog {i}. Score: {i % 5 + 1}" for i in range(12)]
    by_writer = [stages[f"iteration {t} prompts as written by method.prompt_writer"] for t in (2, 3)]
    assert len({stage.inputs["model"].key for stage in by_writer}) == 1
    assert by_writer[0].inputs["model"] != stages["iteration 1 policy (self_rewarding)"].inputs["model"]
    assert [getattr(stages[f"iteration {t} prompts"].settings, "n", 0) for t in (2, 3)] == [4, 6]
    sizes = Sizes(Store(tmp_path), opened(*words).session.hardware)  # type: ignore[arg-type]
    work = sizes.of(cell, read_shape({**read_config(room / "model"), "num_hidden_layers": 10**6}))
    sizes.close()
    assert work[by_writer[0]].flops < 1e-3 * work[stages["iteration 2 samples"]].flops  # its own size
    (request, *_) = read_items(made(stages["iteration 2 requests for prompts"], tmp_path))
    assert "ift " in request.turns[0] and "please name" not in request.turns[0]


def test_sft_of_self_rewarding_is_planned_as_it_trains(
    room: Path, tmp_path: Path, opened: Callable[..., CheckedCommand]
) -> None:
    """M1 and the model that judges for its evaluations: spread, checkpointed and in passes, as any SFT."""
    loop = ["method.new_prompts=self_instruct", "method.n_prompts=4", "method.iteration=1"]
    words = own(room, *SELF, *loop, "model.dtype=bfloat16", "accelerate=fsdp")

    def memory(checkpointing: bool, devices: int, passes: int = 2) -> tuple[list[Memory], list[str]]:
        steps = f"method.first_training.gradient_accumulation_steps={passes}"
        more = [steps, f"model.gradient_checkpointing={checkpointing}", f"accelerate.devices={devices}"]
        cell = plans(*words, *more)[-1]
        sizes = Sizes(Store(tmp_path), opened(*words, *more).session.hardware)
        work = sizes.of(cell, read_shape(llama_70b))
        sizes.close()
        trained = [labelled(cell)[name] for name in ("SFT baseline", "iteration 1 policy (self_rewarding)")]
        for stage in trained:
            sft = stage.settings
            assert isinstance(sft, ConversationSft)
            assert (sft.dtype, sft.gradient_checkpointing, sft.seed) == ("bfloat16", checkpointing, 0)
            assert work[stage].work.trained == 2 * 4 * passes * 256
        return [work[stage].memory for stage in trained], list(sizes.refused)

    llama_70b = recorded.sizes("meta-llama/Llama-2-70b-hf")
    assert llama_70b is not None
    plain, kept, split = memory(False, 2), memory(True, 2), memory(True, 8)
    assert plain[1] == kept[1] == split[1] == []
    for a, b, c in zip(plain[0], kept[0], split[0], strict=True):
        assert a.activations / b.activations == pytest.approx(34 * 80 / (2 * 80 + 34))
        assert b.activations == 2 * c.activations  # two rows at once, and one
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(a, part) == getattr(b, part) == 4 * getattr(c, part)
    _, refused = memory(True, 8, passes=1)
    assert "method.first_training.batch_size=4 x method.first_training.gradient" in refused[0]


@pytest.mark.parametrize("source", ["file", "sft"])
def test_self_rewarding_takes_prompts_of_ones_own(source: str, room: Path, tmp_path: Path) -> None:
    prompts = f"{room}/prompts.jsonl" if source == "file" else "sft"
    chats = (
        ["sft=ultrachat_200k", f"sft.path={room}/ultrachat", "sft.training=null"] if source == "sft" else []
    )
    words = own(room, *SELF, f"method.prompts={prompts}", *chats, "method.n_prompts=4", "method.iteration=3")
    stages = labelled(plans(*words)[-1])
    second, third = (read_items(made(stages[f"iteration {t} prompts"], tmp_path)) for t in (2, 3))
    assert len({item.turns[0] for item in (*second, *third)}) == 8
    assert all(item.baseline is None for item in second)
    if source == "file":
        assert [item.turns[0] for item in second] == [f"prompts {i}?" for i in range(4)]


def test_controls_of_self_rewarding_label_outside_the_world(room: Path, problems: Problems) -> None:
    words = own(room, *SELF, "method.new_prompts=self_instruct", "method.n_prompts=4", "method.iteration=2")
    cells = plans(*words, "method.labeller=random,shorter,reward_model")
    labels = [label for cell in cells for label in labelled(cell) if label.startswith("iteration 2 labels")]
    assert labels == [f"iteration 2 labels ({name})" for name in ("random", "shorter", "reward model")]
    assert "reward model" in labelled(cells[-1])  # trained on the labelled pairs
    of_folder = labelled(
        plans(*words, "method.labeller=reward_model", f"method.reward_model={room}/rewards")[-1]
    )
    assert "reward model" not in of_folder
    assert isinstance(of_folder["iteration 2 rewards"].inputs["model"], Source)
    assert "labeller=gold knows the truth" in "\n".join(problems(*words, "method.labeller=gold"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=spin", "method.prompts=sft"], "takes the conversations of sft=, got sft=none: add sft="),
        (["method=spa", "method.prompts=nowhere"], "method.prompts must be a file, got nowhere: no such file"),
        ([*SELF, "method.ift=nowhere"], "method.ift must be a file, got nowhere"),
        ([*SELF, "method.eft={room}/pairs.jsonl"], "expected columns prompt and completion, or messages, got"),
        ([*SELF, "method.eft=3"], "method.eft must be a valid boolean, got 3"),
        ([*SELF, "method.prompt_writer=nowhere"], "method.prompt_writer must be a folder of a causal LM"),
        (
            [*SELF, "method.prompt_writer={room}/writer", "method.prompts={room}/prompts.jsonl"],
            "prompt_writer writes new prompts, and method.prompts brings them: leave one out",
        ),
        ([*SELF, "method.reward_model={room}/rewards"], "only used with labeller=reward_model, got self"),
        ([*SELF, "data.fraction=0"], "set method.ift=FILE and method.eft=FILE or false"),
        (
            [*SELF, "data.fraction=0", "method.ift={room}/ift.jsonl", "method.eft=false", "method.labeller=reward_model"],
            "learns from labelled rows, got data.fraction=0",
        ),
    ],
)  # fmt: skip
def test_what_a_loop_cannot_read_is_said_at_the_door(
    words: list[str], said: str, room: Path, problems: Problems
) -> None:
    assert said in "\n".join(problems(*own(room, *(word.replace("{room}", str(room)) for word in words))))


def test_files_of_ones_own_are_not_for_the_world(room: Path, problems: Problems) -> None:
    for name in ("ift", "eft"):
        text = "\n".join(problems("method=self_rewarding", f"method.{name}={room}/{name}.jsonl"))
        assert f"method.{name} is for a model and pairs of yours, got data=world" in text


def test_judging_requests_need_a_chat_template(tmp_path: Path, room: Path, problems: Problems) -> None:
    """Rows may be plain text; what a policy is asked about them are messages."""
    bare = make_model(tmp_path / "bare", chat_template=False)
    text = make_preferences(tmp_path / "text.jsonl", paired=True, messages=False, n=12)
    words = [f"model={bare}", "data=local", f"data.path={text}", *SELF, "method.new_prompts=self_instruct"]
    assert "has no chat template" in "\n".join(problems(*words))
    assert problems(*words, "model.chat_template=zephyr") == []


# SPA's judge that is taught to choose ----------------------------------------------------------------------------------


def test_a_tuned_judge_learns_the_labelled_pairs_and_is_asked_about_samples(
    room: Path, tmp_path: Path, problems: Problems
) -> None:
    """SPA, section 5.1 and table 11: taught once from the start model, or anew from the policy of each iteration."""
    words = own(
        room, "method=iterative_dpo", "method.labeller=tuned_judge", f"method.prompts={room}/prompts.jsonl"
    )
    words += ["method.n_prompts=4", "method.iteration=2"]
    once, anew = (labelled(plans(*words, f"method.judge_init={init}")[-1]) for init in ("start", "previous"))
    judges = [once[f"iteration {t} log-probs of the judge's replies"].inputs["model"] for t in (1, 2)]
    assert judges == [once["tuned judge"]] * 2 and isinstance(once["tuned judge"].inputs["model"], Source)
    for t, before in ((1, "seed policy (dpo)"), (2, "iteration 1 policy (iterative_dpo)")):
        assert anew[f"iteration {t} judge"].inputs["model"] == anew[before]
        assert (
            anew[f"iteration {t} log-probs of the judge's replies"].inputs["model"]
            == anew[f"iteration {t} judge"]
        )
    # 4 prompts, two samples in two orders, two replies, of at most 256 tokens
    assert token_bound(once["iteration 1 log-probs of the judge's replies"]) == 4 * 2 * 2 * 256
    questions = made(once["labelled pairs as questions"], tmp_path)
    pairs = list(read_rows(tmp_path / "data" / once["preferences"].key / "train.jsonl"))
    taught = list(read_jsonl(questions / "rows.jsonl", Conversation))
    assert len(taught) == 2 * len(pairs) > 0
    for row, pair in zip(taught, (pair for pair in pairs for _ in range(2)), strict=True):
        asked, reply = (message["content"] for message in row.messages)
        assert isinstance(pair, Pair) and {pair.chosen, pair.rejected} <= set(asked.splitlines())
        first = asked.index(f"\n{pair.chosen}\n") < asked.index(f"\n{pair.rejected}\n")
        assert reply == f"Better: {'first' if first else 'second'}"
    for more, said in (
        (
            ["method.labeller=random", "method.judge_init=previous"],
            "judge_init is only used with labeller=tuned_judge",
        ),
        (
            ["adapter=lora", "method.judge_init=previous"],
            "trains the whole policy as a judge, got adapter=lora",
        ),
        (["method.judge_training=null"], "labeller=tuned_judge needs judge_training"),
        (["data.fraction=0", "method.seed_training=null"], "learns from labelled rows"),
    ):
        kept = [
            word for word in words if word.partition("=")[0] not in {new.partition("=")[0] for new in more}
        ]
        assert said in "\n".join(problems(*kept, *more))
    assert "labeller=tuned_judge asks a model about texts of yours" in "\n".join(
        problems("method=iterative_dpo", "method.labeller=tuned_judge")
    )


def test_the_likelier_reply_of_a_tuned_judge_counts_in_both_orders(tmp_path: Path) -> None:
    """σ(1) = 0.731 in one order, 0.5 in the other: 0.6155 for the first. Equal texts tie; without a question no label."""
    texts = {"a": ("one", "two"), "b": ("same", "same"), "c": ("long", "longer")}
    asked = {"a>a/1#0": -1.0, "a>a/1#0/1": -2.0, "a/1>a#0": -1.5, "a/1>a#0/1": -1.5}
    for name in ("items", "completions", "logps", "out"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "items" / "items.jsonl", [Item(name, None, [f"{name}?"]) for name in texts])
    drawn = [
        Completion(name, [f"{name}?"], [text], [], [], draw)
        for name, both in texts.items()
        for draw, text in enumerate(both)
    ]
    write_jsonl(tmp_path / "completions" / "completions.jsonl", drawn)
    write_jsonl(tmp_path / "logps" / "logps.jsonl", [Logps(name, value, 3) for name, value in asked.items()])
    inputs = {name: tmp_path / name for name in ("items", "completions")} | {
        "choice_logps": tmp_path / "logps"
    }
    settings = RankLabels(labeller="tuned_judge", beta=None, truth=None, seed=0)
    label.run(settings, StageRun(inputs, tmp_path / "out", Progress(tmp_path / "progress")))
    a, b, c = read_jsonl(tmp_path / "out" / "labels.jsonl", Labelled)
    assert (a.first, a.first_preferred) == ("one", True) and a.p_first == pytest.approx(0.615529)
    assert (b.first_preferred, b.unscored, b.p_first) == (None, None, 0.5)
    assert c.first_preferred is None and "fewer than two samples" in str(c.unscored)


# The articles' grids, each on folders of its own --------------------------------------------------------------------------

COMPARED = "sft_chosen,csft,slic,dpo,cdpo,robust,ipo,ipo_summed,hinge,simpo,orpo,cpo,kto,kto_pair,offline_ppo,best_of_n"


@outer
def test_every_method_of_the_comparisons_plans_from_one_pretrained_start(room: Path, tmp_path: Path) -> None:
    """HALOs' and SimPO's tables: the same start, rows and rate of the scale for each method."""
    publish(tmp_path / "hh", "hh_rlhf", n=30)
    pairs = ["data=hh_rlhf", f"data.path={tmp_path}/hh", "judge=none"]
    cells = plans("scale=archangel", f"model={room}/model", *pairs, f"method={COMPARED}")
    trained = [cell for cell in cells if cell.cell.method.name != "none"]
    assert [cell.cell.method.name for cell in trained] == COMPARED.split(",")
    starts = {
        source.key
        for cell in trained
        for source in cell.roles["train"].inputs.values()
        if isinstance(source, Source)
    }
    assert len(starts) == 1
    assert all(cell.cell.method.optimizer == "rmsprop" for cell in trained)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        (["method=spin", "method.loss=spin,sft", "method.prompts={room}/prompts.jsonl"], ["dpo", "sft_chosen"]),
        (["method=spa", "method.prompts={room}/prompts.jsonl"], ["spa"]),
        ([*SELF, "method.learns_from=pairs,best", "method.prompts={room}/prompts.jsonl"], ["dpo", "sft_chosen"]),
    ],
)  # fmt: skip
def test_losses_of_loops_plan_on_a_model_of_ones_own(
    words: list[str], trained: list[str], room: Path
) -> None:
    more = ["scale=zephyr_7b", "method.iteration=2", "method.n_prompts=4"]
    cells = plans(*own(room, *(word.replace("{room}", str(room)) for word in words), *more))
    policies = (labelled(cell).get(f"iteration 2 policy ({cell.cell.method.name})") for cell in cells)
    assert [policy.settings.method.name for policy in policies if policy] == trained  # type: ignore[attr-defined]


LABELLERS: Sequence[tuple[str, list[str]]] = (
    ("random", []),
    ("implicit", ["method.judging_reference=previous"]),
    ("reward_model", ["method.reward_fraction=0.5"]),
    ("tuned_judge", ["method.judge_init=previous"]),
    ("judge", ["judge@method.labelling_judge=reward_model", "method.labelling_judge.model={room}/rewards"]),
    ("judge", ["judge@method.labelling_judge=pair_ranker", "method.labelling_judge.model={room}/rewards"]),
    ("judge", ["judge@method.labelling_judge=alpaca_eval", "method.labelling_judge.model=m"]),
)  # fmt: skip


@pytest.mark.parametrize(("labeller", "words"), LABELLERS)
def test_labellers_of_spas_tables_plan_with_its_numbers_of_prompts(
    labeller: str, words: list[str], room: Path
) -> None:
    """SPA's baselines (tables 1, 7 and 11): the same prompts and samples, labelled by somebody else."""
    pairs = [
        "data=ultrafeedback_cleaned",
        f"data.path={room}/ultrafeedback",
        "data.fraction=0.1",
        "judge=none",
    ]
    loop = [
        "method=iterative_dpo",
        "method.iteration=3",
        "method.n_prompts=[3,5,7]",
        f"method.labeller={labeller}",
    ]
    more = [word.format(room=room) for word in words]
    cell = plans("scale=zephyr_7b", f"model={room}/model", *pairs, *loop, *more)[-1]
    found = [getattr(labelled(cell)[f"iteration {t} prompts"].settings, "n", 0) for t in (1, 2, 3)]
    assert found == [3, 5, 7]


# Whole commands on tiny folders -------------------------------------------------------------------------------------------

TRAINING = [
    "method.num_train_epochs=1.0",
    "method.learning_rate=1e-3",
    "method.batch_size=2",
    "method.gradient_accumulation_steps=1",
    "method.warmup_ratio=0",
]


@pytest.mark.slow
def test_loops_run_on_files_and_models_of_ones_own(room: Path, tmp_path: Path) -> None:
    """SPIN on UltraChat, self-rewarding on own files with a prompt writer, SPA with a list: trained, and explained."""
    files = [f"method.{name}={room}/{name}.jsonl" for name in ("ift", "eft")]
    writer = [
        f"method.prompt_writer={room}/writer",
        "method.new_prompts=self_instruct",
        "method.similarity=1.0",
    ]
    commands = (
        spin(room, "sft.training=null", "method.n_prompts=6", "method.prompt_sets=same", "method.iteration=2"),
        own(room, *SELF, *files, *writer, "method.n_prompts=[4,6]", "method.iteration=3", "data.fraction=0",
            "method.labeller=random", "method.judge_max_new_tokens=12"),
        own(room, "method=spa", "method.iteration=2", "method.n_prompts=[4,6]", f"method.prompts={room}/prompts.jsonl"),
    )  # fmt: skip
    results = tmp_path / "results"
    for words in commands:
        words = ["model.max_length=1024" if word.startswith("model.max_length") else word for word in words]
        ran = bench(*words, *TRAINING, results=results)
        assert ran.code == 0, ran.err[-3000:] + ran.out
    said = {
        cell.name.split("-i")[0]: "\n".join(why.lines(why.lineage(cell, Store(results / "store"))))
        for cell in (results / "cells").iterdir()
    }
    assert (
        "demonstrations of all iterations" in said["spin"] and ": 6 rows from conversations" in said["spin"]
    )
    assert "12 train rows kept from iteration 1 labels (human), iteration 2 labels (human)" in said["spin"]
    assert "prompts as written by method.prompt_writer" in said["self_rewarding"]
    assert "12 pairs of iteration" not in said["spa"] and "6 pairs of iteration 2 samples" in said["spa"]
