"""The stages that load no models: labels and their noise, preference rows, verdicts, and the numbers of a cell by hand."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import make_preferences, write_rows

from bench.config import CATEGORIES, GoldWeights, WorldAnnotator, Writer
from bench.judges.gold import NO_TASK
from bench.records import (
    Completion,
    Item,
    Labelled,
    Logps,
    Pair,
    Unpaired,
    Verdict,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from bench.stages import data, judge, label, score
from bench.store.stage_run import Outcome, Progress, StageRun
from bench.store.stage_settings import (
    ChosenData,
    GoldLabels,
    GoldPreferenceSettings,
    LocalPairData,
    LocalPromptData,
    OpponentData,
    PairData,
    PromptData,
    ScoreSettings,
    TaskFamily,
    WrittenData,
)
from bench.world.tasks import Turn
from bench.world.writers import write

FAMILY = TaskFamily(categories=CATEGORIES, constraint_counts=(0.2, 0.4, 0.4))
WEIGHTS = GoldWeights(content=0.45, constraints=0.35, conciseness=0.2)
SLOPPY = Writer(error=0.3, missed_constraint=0.6, filler=0.5)
SURE = WorldAnnotator(temperature=1e-9, length_bias=0.0, flip_rate=0.0)


class Room:
    """A folder in which stages are run one after another."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, name: str) -> Path:
        (self.root / name).mkdir(exist_ok=True)
        return self.root / name

    def run(self, stage: Any, settings: Any, name: str, **inputs: Path) -> Outcome:
        return stage.run(settings, StageRun(inputs, self.folder(name), Progress(self.root / "progress")))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def prompts(
    room: Room, n: int, name: str = "items", split: str = "train", reference: Writer | None = None
) -> Path:
    settings = PromptData(family=FAMILY, split=split, n=n, n_turns=1, reference=reference, seed=0)  # type: ignore[arg-type]
    room.run(data, settings, name)
    return room.folder(name)


def written(room: Room, items: Path, name: str = "samples", draws: int = 2, writer: Writer = SLOPPY) -> Path:
    """What a simulated writer answers, in place of a model."""
    rng = random.Random(1)
    rows = []
    for draw in range(draws):
        for item in read_jsonl(items / "items.jsonl", Item):
            assert item.task is not None
            text = write(Turn.from_json(item.task[0]), writer, rng)
            rows.append(Completion(item.id, item.turns[:1], [text], [len(text.split())], [True], draw))
    write_jsonl(room.folder(name) / "completions.jsonl", rows)
    return room.folder(name)


def labelled(
    room: Room, annotator: WorldAnnotator, n: int = 1500, seed: int = 0
) -> tuple[list[Labelled], Outcome]:
    items = prompts(room, n)
    samples = written(room, items)
    outcome = room.run(
        label,
        GoldLabels(gold=WEIGHTS, annotator=annotator, seed=seed),
        "labels",
        items=items,
        completions=samples,
    )
    return list(read_jsonl(room.folder("labels") / "labels.jsonl", Labelled)), outcome


# Labels ---------------------------------------------------------------------------------------------------------------


def test_a_cold_annotator_without_flips_is_always_right(room: Room) -> None:
    labels, outcome = labelled(room, SURE)
    assert {row.correct for row in labels} == {True, None}
    assert (
        outcome.counts["correct"]
        == outcome.counts["with_truth"]
        == sum(row.correct is not None for row in labels)
        > 1000
    )


@pytest.mark.parametrize("flip_rate", [0.1, 0.4])
def test_flips_turn_the_set_share_of_labels(room: Room, flip_rate: float) -> None:
    labels, _ = labelled(room, WorldAnnotator(temperature=1e-9, length_bias=0.0, flip_rate=flip_rate))
    right = [row.correct for row in labels if row.correct is not None]
    assert sum(right) / len(right) == pytest.approx(
        1 - flip_rate, abs=4 * math.sqrt(flip_rate * (1 - flip_rate) / len(right))
    )


def test_temperature_makes_labels_as_uncertain_as_the_logistic_says(room: Room) -> None:
    """Labels are draws from p_first, and p_first is σ(gold difference / temperature)."""
    labels, _ = labelled(room, WorldAnnotator(temperature=2.0, length_bias=0.0, flip_rate=0.0))
    drawn = [row for row in labels if row.first_preferred is not None]
    expected = statistics.fmean(row.p_first for row in drawn)
    variance = statistics.fmean(row.p_first * (1 - row.p_first) for row in drawn)
    share = statistics.fmean(row.first_preferred for row in drawn)  # type: ignore[misc]
    assert share == pytest.approx(expected, abs=4 * math.sqrt(variance / len(drawn)))
    sure = [row for row in drawn if max(row.p_first, 1 - row.p_first) > 0.95]
    assert statistics.fmean(row.first_preferred == (row.p_first > 0.5) for row in sure) > 0.9
    unsure = [row for row in drawn if max(row.p_first, 1 - row.p_first) < 0.7]
    assert 0.45 < statistics.fmean(row.first_preferred == (row.p_first > 0.5) for row in unsure) < 0.75


def test_another_seed_draws_other_labels_of_the_same_opinions(room: Room) -> None:
    annotator = WorldAnnotator(temperature=2.0, length_bias=0.0, flip_rate=0.1)
    first, _ = labelled(room, annotator, 200, seed=0)
    again, _ = labelled(room, annotator, 200, seed=0)
    other, _ = labelled(room, annotator, 200, seed=1)
    assert first == again
    assert [row.p_first for row in first] == [row.p_first for row in other]
    assert [row.first_preferred for row in first] != [row.first_preferred for row in other]


def test_equal_completions_are_ties_and_an_item_without_a_task_is_unscored(room: Room) -> None:
    items = prompts(room, 4)
    rows = [json.loads(line) for line in (items / "items.jsonl").read_text().splitlines()]
    rows[3]["task"] = None
    write_rows(items / "items.jsonl", rows)
    texts = {
        0: ("The answer is Rome.", "The answer is Rome."),
        1: ("", ""),
        2: ("Well.", "The gold of it!"),
        3: ("one.", "two."),
    }
    completions = [
        Completion(row["id"], row["turns"], [texts[i][draw]], [1], [True], draw)
        for draw in (0, 1)
        for i, row in enumerate(rows)
    ]
    write_jsonl(room.folder("samples") / "completions.jsonl", completions)
    settings = GoldLabels(
        gold=WEIGHTS, annotator=WorldAnnotator(temperature=1e-9, length_bias=0.0, flip_rate=0.0), seed=0
    )
    outcome = room.run(label, settings, "labels", items=items, completions=room.folder("samples"))
    labels = list(read_jsonl(room.folder("labels") / "labels.jsonl", Labelled))
    assert [row.first_preferred is None for row in labels] == [True, True, False, True]
    assert [row.unscored for row in labels] == [None, None, None, NO_TASK]
    assert labels[3].p_first is None
    assert (outcome.counts["rows"], outcome.counts["ties"], outcome.counts["unscored"]) == (4, 2, 1)


# Preference rows ------------------------------------------------------------------------------------------------------


def label_file(room: Room, name: str, preferred: Sequence[bool | None]) -> Path:
    rows = []
    for i, first in enumerate(preferred):
        prompt = [{"role": "user", "content": f"{name} {i}"}]
        rows.append(Labelled(f"{name}-{i}", prompt, f"first {i}", f"second {i}", 0.5, first))
    write_jsonl(room.folder(name) / "labels.jsonl", rows)
    return room.folder(name)


def pairs(
    room: Room, form: str = "paired", fraction: float = 1.0, seed: int = 0, n: int = 200, **kept: float
) -> tuple[list[Any], Outcome]:
    preferred = [None if i % 10 == 0 else i % 3 == 0 for i in range(n)]
    inputs = {
        "train": label_file(room, "train", preferred),
        "heldout": label_file(room, "heldout", preferred[:50]),
    }
    outcome = room.run(data, PairData(form=form, fraction=fraction, seed=seed, **kept), "rows", **inputs)  # type: ignore[arg-type]
    return list(read_rows(room.folder("rows") / "train.jsonl")), outcome


def test_ties_are_left_out_and_counted(room: Room) -> None:
    rows, outcome = pairs(room)
    assert outcome.counts == {
        "train_prompts": 200, "train_ties": 20, "train_unscored": 0, "train": 180,
        "heldout_prompts": 50, "heldout_ties": 5, "heldout_unscored": 0, "heldout": 45,
    }  # fmt: skip
    by_id = {row.id: row for row in rows}
    assert (by_id["train-3"].chosen, by_id["train-3"].rejected) == ("first 3", "second 3")
    assert (by_id["train-4"].chosen, by_id["train-4"].rejected) == ("second 4", "first 4")
    assert "train-10" not in by_id


def test_fractions_lie_inside_each_other_and_seeds_choose_other_rows(room: Room) -> None:
    ids = {f: [row.id for row in pairs(room, fraction=f)[0]] for f in (0.01, 0.1, 0.5, 1.0)}
    assert [len(chosen) for chosen in ids.values()] == [2, 18, 90, 180]
    for smaller, larger in zip((0.01, 0.1, 0.5), (0.1, 0.5, 1.0), strict=True):
        assert set(ids[smaller]) < set(ids[larger])
    assert {row.id for row in pairs(room, fraction=0.1, seed=1)[0]} != set(ids[0.1])
    assert len(list(read_rows(room.folder("rows") / "heldout.jsonl"))) == 45  # held-out rows are always all


def test_unpaired_rows_show_one_completion_of_each_prompt_with_both_labels(room: Room) -> None:
    rows, _ = pairs(room, form="unpaired")
    assert all(isinstance(row, Unpaired) for row in rows)
    assert len({row.id for row in rows}) == len(rows) == 180
    assert 0.35 < statistics.fmean(row.label for row in rows) < 0.65
    for row in rows:
        i = int(row.id.split("-")[1])
        assert row.label == (row.completion.startswith("first") == (i % 3 == 0))


def test_dropping_desirable_rows_leaves_the_others_and_is_nested(room: Room) -> None:
    """Of 180 unpaired rows, those with thumbs up are thinned; a smaller share lies inside a larger one."""
    whole, _ = pairs(room, form="unpaired")
    found = {f: pairs(room, form="unpaired", desirable_fraction=f)[0] for f in (0.1, 0.5)}
    undesirable = [row.id for row in whole if not row.label]
    for fraction, rows in found.items():
        assert [row.id for row in rows if not row.label] == undesirable
        assert sum(row.label for row in rows) == round(fraction * (len(whole) - len(undesirable)))
    kept = {fraction: {row.id for row in rows if row.label} for fraction, rows in found.items()}
    assert kept[0.1] < kept[0.5]


def test_a_writers_pairs_need_no_model_and_their_chosen_answers_are_baselines(room: Room) -> None:
    items = prompts(room, 40, split="evaluation")
    room.run(data, WrittenData(writer=SLOPPY, draws=2, seed=0), "written", items=items)
    room.run(
        label,
        GoldLabels(gold=WEIGHTS, annotator=SURE, seed=0),
        "labels",
        items=items,
        completions=room.folder("written"),
    )
    room.run(data, ChosenData(), "with chosen", items=items, labels=room.folder("labels"))
    labels = {row.id: row for row in read_jsonl(room.folder("labels") / "labels.jsonl", Labelled)}
    chosen = list(read_jsonl(room.folder("with chosen") / "items.jsonl", Item))
    assert len(chosen) == 40 and {item.turns[0] for item in chosen} == {
        item.turns[0] for item in read_jsonl(items / "items.jsonl", Item)
    }
    for item in chosen:
        seen = labels[item.id]
        assert item.baseline == [seen.second if seen.first_preferred is False else seen.first]
    assert any(seen.first_preferred is False for seen in labels.values())


def test_partners_come_from_other_prompts(room: Room) -> None:
    rows, _ = pairs(room)
    for row in rows:
        assert row.mismatched_chosen.split()[1] == row.mismatched_rejected.split()[1] != row.chosen.split()[1]


def test_no_pair_left_is_a_named_failure(room: Room) -> None:
    inputs = {
        "train": label_file(room, "train", [None] * 5),
        "heldout": label_file(room, "heldout", [True, False]),
    }
    with pytest.raises(
        ValueError, match="No train pair is left of 5 labelled prompts: 5 were ties, 0 unscored"
    ):
        room.run(data, PairData(form="paired", fraction=1.0, seed=0), "rows", **inputs)
    inputs["train"] = label_file(room, "train", [True, None])
    with pytest.raises(
        ValueError,
        match=r"Too few train rows \(1\): KTO pairs each completion with another prompt, so the rows must have two prompts or more",
    ):
        room.run(data, PairData(form="paired", fraction=1.0, seed=0), "rows", **inputs)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("messages", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_form_of_a_users_file_becomes_rows(
    room: Room, paired: bool, messages: bool, suffix: str
) -> None:
    path = make_preferences(room.root / f"file{suffix}", paired=paired, messages=messages)
    outcome = room.run(data, LocalPairData(fraction=1.0, heldout_fraction=0.2, seed=0), "rows", file=path)
    train, heldout = (
        list(read_rows(room.folder("rows") / f"{split}.jsonl")) for split in ("train", "heldout")
    )
    assert len(train) + len(heldout) == (60 if paired else 120)
    assert outcome.counts["heldout"] == len(heldout) > 3
    assert all(isinstance(row, Pair if paired else Unpaired) for row in [*train, *heldout])
    assert {row.prompt[0]["role"] for row in train} == {"user" if messages else "text"}
    assert not {row.prompt[-1]["content"] for row in train} & {row.prompt[-1]["content"] for row in heldout}
    room.run(data, LocalPromptData(n=5), "items", preferences=room.folder("rows"))
    items = list(read_jsonl(room.folder("items") / "items.jsonl", Item))
    assert (
        len({item.turns[0] for item in items})
        == len(items)
        == min(5, len({row.prompt[-1]["content"] for row in heldout}))
    )
    assert all(item.plain != messages and item.task is None for item in items)
    room.run(data, LocalPromptData(n=5, answers=True), "answered", preferences=room.folder("rows"))
    answered = list(read_jsonl(room.folder("answered") / "items.jsonl", Item))
    good = {
        row.prompt[-1]["content"]: row.chosen if isinstance(row, Pair) else row.completion
        for row in heldout
        if isinstance(row, Pair) or row.label
    }
    assert answered and all(item.baseline == [good[item.turns[0]]] for item in answered)
    theirs = [Completion(item.id, item.turns, [f"mine of {item.id}"], [], []) for item in items]
    folder = room.folder("theirs")
    write_jsonl(folder / "completions.jsonl", theirs)
    room.run(data, OpponentData(), "duel", items=room.folder("items"), completions=folder)
    duel = list(read_jsonl(room.folder("duel") / "items.jsonl", Item))
    assert [item.baseline for item in duel] == [c.completions for c in theirs]


def test_a_judge_reads_the_messages_before_the_question() -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    item = Item("a", None, ["And now?"], context=earlier)
    assert item.question == "User: Hi\n\nAssistant: Hello\n\nUser: And now?"
    assert Item("b", None, ["And now?"]).question == "And now?"


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_a_judge_stage_counts_what_it_could_not_score(room: Room) -> None:
    items = prompts(room, 16, split="evaluation", reference=SLOPPY)
    rows = [json.loads(line) for line in (items / "items.jsonl").read_text().splitlines()]
    rows[5]["task"] = None
    completions = written(room, items, draws=1)
    write_rows(items / "items.jsonl", rows)
    outcome = room.run(
        judge,
        GoldPreferenceSettings(gold=WEIGHTS, temperature=1.0),
        "verdicts",
        items=items,
        completions=completions,
    )
    verdicts = list(read_jsonl(room.folder("verdicts") / "verdicts.jsonl", Verdict))
    assert outcome.counts == {"rows": 16, "unscored": 1}
    assert [v.unscored is not None for v in verdicts] == [i == 5 for i in range(16)]


# The numbers of a cell ------------------------------------------------------------------------------------------------


@pytest.fixture
def cell(room: Room) -> dict[str, Path]:
    """Two held-out pairs, four verdicts of which one is unscored, two rated conversations of two turns, two KL samples."""

    def put(name: str, file: str, rows: Sequence[Any]) -> Path:
        write_jsonl(room.folder(name) / file, rows)
        return room.folder(name)

    prompt = [{"role": "user", "content": "?"}]
    verdicts = [
        Verdict(
            "a",
            "j",
            preference=0.9,
            policy_length=10,
            baseline_length=20,
            details={"gold": 8.0, "content": 1.0},
        ),
        Verdict(
            "b",
            "j",
            preference=0.5,
            policy_length=30,
            baseline_length=20,
            details={"gold": 4.0, "content": 0.0},
        ),
        Verdict("c", "j", preference=0.1, policy_length=20, baseline_length=20),
        Verdict("d", "j", unscored="no task"),
    ]
    ratings = [
        Verdict(item, "r", turn, category, rating=value, policy_length=5)
        for item, category, values in (("m", "math", (10.0, 6.0)), ("w", "writing", (4.0, 2.0)))
        for turn, value in enumerate(values)
    ]
    completions = [
        Completion(i, ["?"], [text], [n], [done])
        for i, text, n, done in (("a", "four", 3, True), ("b", "eight888", 5, False))
    ]
    reference = {
        "heldout/1/chosen": -20.0,
        "heldout/1/rejected": -30.0,
        "heldout/2/chosen": -10.0,
        "heldout/2/rejected": -12.0,
    }
    policy = {
        "heldout/1/chosen": -18.0,
        "heldout/1/rejected": -33.0,
        "heldout/2/chosen": -14.0,
        "heldout/2/rejected": -13.0,
    }
    return {
        "preferences": put(
            "preferences", "heldout.jsonl", [Pair(str(i), prompt, "c", "r", "", "") for i in (1, 2)]
        ),
        "reference_logps": put(
            "reference", "logps.jsonl", [Logps(name, value, 4) for name, value in reference.items()]
        ),
        "policy_logps": put(
            "policy", "logps.jsonl", [Logps(name, value, 4) for name, value in policy.items()]
        ),
        "kl_policy_logps": put("kl_policy", "logps.jsonl", [Logps("x", -4.0, 4), Logps("y", -6.0, 4)]),
        "kl_reference_logps": put("kl_reference", "logps.jsonl", [Logps("x", -5.0, 4), Logps("y", -9.0, 4)]),
        "preference_completions": put("answers", "completions.jsonl", completions),
        "preference_verdicts": put("verdicts", "verdicts.jsonl", verdicts),
        "rating_verdicts": put("ratings", "verdicts.jsonl", ratings),
    }


def result(
    room: Room, inputs: dict[str, Path], beta: float | None = 0.1
) -> tuple[dict[str, float], dict[str, str]]:
    room.run(score, ScoreSettings(beta=beta, bootstrap_resamples=200, bootstrap_seed=0), "score", **inputs)
    text = (room.folder("score") / "result.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = json.loads(text)
    return found["metrics"], found["missing"]


def test_every_metric_by_hand(room: Room, cell: dict[str, Path]) -> None:
    """Log-ratios: chosen 2 and -4, rejected -3 and -1; margins 5 and -3."""
    metrics, missing = result(room, cell)
    expected = {
        "win_rate": 0.5,  # (0.9 + 0.5 + 0.1) / 3: the unscored one leaves the mean
        "n_scored": 3,
        "n_unscored": 1,
        "gold": 6.0,
        "gold_content": 0.5,
        "rating": 5.5,  # (10 + 6 + 4 + 2) / 4
        "rating_turn1": 7.0,
        "rating_turn2": 4.0,
        "rating_math": 8.0,
        "rating_writing": 3.0,
        "n_ratings": 4,
        "n_ratings_unscored": 0,
        "mean_length": 6.0,
        "mean_tokens": 4.0,
        "unfinished": 0.5,
        "n_completions": 2,
        "shift_chosen": -0.25,  # (2 / 4 - 4 / 4) / 2
        "shift_rejected": -0.5,  # (-3 / 4 - 1 / 4) / 2
        "reward_accuracy": 0.5,
        "reward_chosen": 0.1 * -1,
        "reward_rejected": 0.1 * -2,
        "reward_margin": 0.1,
        "logps_chosen": -16.0,
        "logps_rejected": -23.0,
        "kl": 2.0,  # (1 + 3) / 2
        "kl_se": 1.0,  # sd √2 / √2
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert missing["reward_auc"] == "for unpaired data; these are pairs: see reward_accuracy"
    assert metrics["win_rate_low"] < 0.5 < metrics["win_rate_high"]


def test_a_tie_of_rewards_is_half_right(room: Room, cell: dict[str, Path]) -> None:
    """A policy that has not moved ranks nothing: neither right nor wrong."""
    metrics, _ = result(room, {**cell, "policy_logps": cell["reference_logps"]})
    assert (metrics["reward_accuracy"], metrics["reward_accuracy_n"], metrics["reward_margin"]) == (
        0.5,
        2,
        0.0,
    )


def test_unpaired_rows_have_an_area_and_no_pairs(room: Room, cell: dict[str, Path]) -> None:
    """Rewards 2 and -4 desirable, -3 and -1 undesirable: of four comparisons 2 > -3, 2 > -1 are right."""
    prompt = [{"role": "user", "content": "?"}]
    rows = [
        Unpaired(str(i), prompt, "c", label, "")
        for i, label in ((1, True), (2, True), (3, False), (4, False))
    ]
    ratios = {1: 2.0, 2: -4.0, 3: -3.0, 4: -1.0}
    write_jsonl(cell["preferences"] / "heldout.jsonl", rows)
    write_jsonl(
        cell["reference_logps"] / "logps.jsonl", [Logps(f"heldout/{i}/completion", -20.0, 4) for i in ratios]
    )
    write_jsonl(
        cell["policy_logps"] / "logps.jsonl",
        [Logps(f"heldout/{i}/completion", -20.0 + r, 4) for i, r in ratios.items()],
    )
    metrics, missing = result(room, cell)
    assert metrics["reward_auc"] == 0.5
    assert metrics["reward_chosen"] == pytest.approx(-0.1)
    assert missing["reward_accuracy"] == missing["reward_margin"] == "the data are unpaired: see reward_auc"
    write_jsonl(cell["preferences"] / "heldout.jsonl", rows[:2])
    metrics, missing = result(room, cell)
    assert missing["reward_auc"] == "held-out rows are all of one label"
    assert missing["reward_rejected"] == missing["logps_rejected"] == "no held-out row of this kind"


def test_what_was_not_measured_says_why(room: Room, cell: dict[str, Path]) -> None:
    """A start model without a judge: completions and log-probs are all there is."""
    inputs = {name: cell[name] for name in ("preferences", "reference_logps")} | {
        "plain_completions": cell["preference_completions"]
    }
    metrics, missing = result(room, inputs, beta=None)
    assert set(missing) == {
        "win_rate", "equal_length_win_rate", "rating", "kl",
        "reward_accuracy", "reward_auc", "reward_chosen", "reward_rejected", "reward_margin",
        "shift_chosen", "shift_rejected", "repetition", "distinct",
    }  # fmt: skip
    assert missing["win_rate"] == missing["rating"] == "no judge is set (judge=none)"
    assert missing["kl"] == "the start model is its own reference"
    assert metrics["logps_chosen"] == -15.0
    assert metrics["mean_length"] == 6.0


def test_repetition_within_and_across_completions_by_hand(room: Room, cell: dict[str, Path]) -> None:
    """`a b a b a` holds aba bab aba: 1 of 3 is a repeat. `A b a c` holds aba bac: none. Too short: left out. 3 different of 5 in all."""
    texts = ["a b a b a", "A b a c", "a b"]
    write_jsonl(
        cell["preference_completions"] / "completions.jsonl",
        [Completion(t, ["?"], [t], [5], [True]) for t in texts],
    )
    metrics, _ = result(room, cell)
    assert metrics["repetition"] == pytest.approx((1 / 3 + 0) / 2)
    assert metrics["repetition_n"] == 2
    assert metrics["distinct"] == pytest.approx(3 / 5)


def test_nothing_scored_is_missing_and_not_a_number(room: Room, cell: dict[str, Path]) -> None:
    write_jsonl(cell["preference_verdicts"] / "verdicts.jsonl", [Verdict("a", "j", unscored="no task")])
    write_jsonl(cell["rating_verdicts"] / "verdicts.jsonl", [Verdict("m", "r", unscored="no task")])
    metrics, missing = result(room, cell)
    assert (metrics["n_scored"], metrics["n_unscored"], metrics["n_ratings_unscored"]) == (0, 1, 1)
    assert missing["win_rate"] == missing["rating"] == "nothing was scored"
    assert "win_rate" not in metrics
