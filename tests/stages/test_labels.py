"""Labels of a loop by hand: which two of several samples make a pair, what is a tie, what is right; and the pairs that come of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench.config import GoldWeights, WorldAnnotator, Writer
from bench.records import (
    Completion,
    Item,
    Labelled,
    Logps,
    Pair,
    Reward,
    Text,
    Trust,
    Verdict,
    read_detections,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from bench.scoring import numbers as numbers_of
from bench.stages import data, label
from bench.stages.label import extremes
from bench.store.stage_run import Outcome, Progress, StageRun
from bench.store.stage_settings import (
    DemonstratedData,
    DemonstrationData,
    DrawnData,
    GoldLabels,
    LoopPairData,
    NewPromptData,
    PromptData,
    RankLabels,
    TaskFamily,
)

FAMILY = TaskFamily(categories=("writing", "math", "stem"), constraint_counts=(0.2, 0.4, 0.4))
WEIGHTS = GoldWeights(content=0.45, constraints=0.45, conciseness=0.1)
SLOPPY = Writer(error=0.3, missed_constraint=0.6, filler=0.5)
SURE = WorldAnnotator(temperature=1e-9, length_bias=0.0, flip_rate=0.0)


def run(stage: Any, settings: Any, out: Path, **inputs: Path) -> Outcome:
    out.mkdir()
    return stage.run(settings, StageRun(inputs, out, Progress(out.parent / "progress")))


def sample(name: str, draw: int, text: str) -> Completion:
    return Completion(name, ["Say it."], [text], [len(text.split())], [True], draw)


def folder(path: Path, name: str, rows: Any) -> Path:
    path.mkdir()
    write_jsonl(path / name, rows)
    return path


def labels(
    room: Path,
    labeller: str,
    samples: list[Completion],
    items: list[Item] | None = None,
    length_penalty: float = 0.0,
    **read: Path,
) -> list[Labelled]:
    asked = items or [Item(name, None, ["Say it."]) for name in dict.fromkeys(c.id for c in samples)]
    where = {
        "items": folder(room / "items", "items.jsonl", asked),
        "completions": folder(room / "samples", "completions.jsonl", samples),
    }
    settings = RankLabels(labeller=labeller, beta=0.5, truth=WEIGHTS, seed=0, length_penalty=length_penalty)  # type: ignore[arg-type]
    run(label, settings, room / "labels", **where, **read)
    return list(read_jsonl(room / "labels" / "labels.jsonl", Labelled))


# Which pair -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "pair"),
    [
        ([0.1, 0.9], (0, 1)),
        ([0.9, 0.1], (0, 1)),  # as they were drawn, whichever is better
        ([0.3, 0.9, 0.1, 0.5], (1, 2)),
        ([0.1, 0.3, 0.9], (0, 2)),
        ([0.5, 0.9, 0.9, 0.1, 0.1], (1, 3)),  # the first of equals
        ([0.4, 0.4, 0.4], (0, 1)),
    ],
)
def test_the_best_and_the_worst_make_the_pair(scores: list[float], pair: tuple[int, int]) -> None:
    draws = [sample("a", i, f"text {i}") for i in range(len(scores))]
    names = ["a", *(f"a/{i}" for i in range(1, len(scores)))]
    assert tuple(c.draw for c in extremes(draws, dict(zip(names, scores, strict=True)))) == pair


def test_implicit_rewards_by_hand(tmp_path: Path) -> None:
    """β 0.5. a: (-10 + 14) - (-12 + 13) = 3, σ(1.5); b: (-20 + 15) - (-9 + 8) = -4, σ(-2); c: equal log-ratios; d: equal texts."""
    policy = {
        "a": -10.0,
        "a/1": -12.0,
        "b": -20.0,
        "b/1": -9.0,
        "c": -7.0,
        "c/1": -9.0,
        "d": -5.0,
        "d/1": -6.0,
    }
    reference = {
        "a": -14.0,
        "a/1": -13.0,
        "b": -15.0,
        "b/1": -8.0,
        "c": -8.0,
        "c/1": -10.0,
        "d": -5.0,
        "d/1": -5.0,
    }
    read = {
        f"{role}_logps": folder(
            tmp_path / role, "logps.jsonl", [Logps(name, value, 5) for name, value in sums.items()]
        )
        for role, sums in (("policy", policy), ("reference", reference))
    }
    samples = [
        sample(name, draw, "same" if name == "d" else f"{name} {draw}") for name in "abcd" for draw in (0, 1)
    ]
    rows = labels(tmp_path, "implicit", samples, **read)
    assert [row.first_preferred for row in rows] == [True, False, None, None]
    sure = [1 / (1 + math.exp(-x)) for x in (1.5, -2.0, 0.0, 0.5)]
    assert [row.p_first for row in rows] == pytest.approx(sure)
    assert {row.correct for row in rows} == {None}  # nobody knows the truth of these


def test_a_length_penalty_by_hand(tmp_path: Path) -> None:
    """β 0.5, 0.2 a token: 0.5 · 4 - 0.2 · 12 = -0.4 against 0.5 · 1 - 0.2 · 3 = -0.1: the longer one loses its lead of 1.5."""
    sums = {"policy": ((-10.0, 12), (-12.0, 3)), "reference": ((-14.0, 12), (-13.0, 3))}
    read = {
        f"{role}_logps": folder(
            tmp_path / role,
            "logps.jsonl",
            [Logps(name, *row) for name, row in zip(("a", "a/1"), rows, strict=True)],
        )
        for role, rows in sums.items()
    }
    (row,) = labels(
        tmp_path, "implicit", [sample("a", 0, "long"), sample("a", 1, "short")], length_penalty=0.2, **read
    )
    assert row.first_preferred is False
    assert row.p_first == pytest.approx(1 / (1 + math.exp(0.3)))


def judged(
    room: Path, samples: list[Completion], verdicts: dict[str, Any]
) -> tuple[list[Labelled], dict[str, int]]:
    """Labels of a judge who says so; `verdicts`: a preference, or why there is none, by name."""
    said = [
        Verdict(name, "j", unscored=p) if isinstance(p, str) else Verdict(name, "j", **p)
        for name, p in verdicts.items()
    ]
    asked = [Item(name, None, ["Say it."]) for name in dict.fromkeys(c.id for c in samples)]
    inputs = {
        "items": folder(room / "items", "items.jsonl", asked),
        "completions": folder(room / "samples", "completions.jsonl", samples),
        "verdicts": folder(room / "verdicts", "verdicts.jsonl", said),
    }
    counts = run(
        label, RankLabels(labeller="judge", beta=None, truth=WEIGHTS, seed=0), room / "labels", **inputs
    ).counts
    return list(read_jsonl(room / "labels" / "labels.jsonl", Labelled)), counts


def test_a_judges_preference_of_two_samples_is_the_label(tmp_path: Path) -> None:
    """a: 0.8; b: 0.3; c: a tie; d: unread, which is no tie."""
    samples = [sample(name, draw, f"{name} {draw}") for name in "abcd" for draw in (0, 1)]
    verdicts = {
        "a/0-1": {"preference": 0.8},
        "b/0-1": {"preference": 0.3},
        "c/0-1": {"preference": 0.5},
        "d/0-1": "no verdict in it",
    }
    rows, counts = judged(tmp_path, samples, verdicts)
    assert [row.first_preferred for row in rows] == [True, False, None, None]
    assert [row.p_first for row in rows] == [pytest.approx(0.8), pytest.approx(0.3), 0.5, None]
    assert [row.unscored for row in rows] == [None, None, None, "no verdict in it"]
    assert {name: counts[name] for name in ("rows", "ties", "unscored", "unscored_verdicts")} == {
        "rows": 4,
        "ties": 1,
        "unscored": 1,
        "unscored_verdicts": 1,
    }


def test_of_three_samples_a_judge_takes_the_best_and_worst_by_mean_preference(tmp_path: Path) -> None:
    """a: means (0.6 + 0.2) / 2 = 0.4, (0.4 + 0.9) / 2 = 0.65, (0.8 + 0.1) / 2 = 0.45: sample 1 over 0, p = 0.5 + 0.25 / 2.
    b: sample 0 against 1 is unread: 0.2, 0.9 and (0.8 + 0.1) / 2 = 0.45. c: only 1 against 2 is read. d: nothing is."""
    samples = [sample(name, draw, f"{name} {draw}") for name in "abcd" for draw in (0, 1, 2)]
    said: dict[str, Any] = {
        "0-1": [0.6, None, None, None],
        "0-2": [0.2, 0.2, None, None],
        "1-2": [0.9, 0.9, 0.7, None],
    }
    verdicts = {
        f"{name}/{pair}": "unread" if (p := values[i]) is None else {"preference": p}
        for pair, values in said.items()
        for i, name in enumerate("abcd")
    }
    rows, counts = judged(tmp_path, samples, verdicts)
    assert [(row.first, row.second, row.first_preferred) for row in rows] == [
        ("a 0", "a 1", False),
        ("b 0", "b 1", False),
        ("c 1", "c 2", True),
        ("d 0", "d 1", None),
    ]
    assert [row.p_first for row in rows[:3]] == pytest.approx([0.375, 0.15, 0.7])
    assert (rows[3].unscored, counts["unscored"], counts["unscored_verdicts"]) == ("unread", 1, 6)


def test_of_a_judges_ratings_the_highest_stands_against_the_lowest(tmp_path: Path) -> None:
    """b: one sample unread, the others tie. c: one alone is rated."""
    samples = [sample(name, draw, f"{name} {draw}") for name in "abc" for draw in (0, 1, 2)]
    ratings: dict[str, Any] = {
        "a": 7,
        "a/1": 9,
        "a/2": 2,
        "b": 5,
        "b/1": "unread",
        "b/2": 5,
        "c": "unread",
        "c/1": 3,
        "c/2": "unread",
    }
    verdicts = {
        name: value if isinstance(value, str) else {"rating": value} for name, value in ratings.items()
    }
    rows, _ = judged(tmp_path, samples, verdicts)
    assert [(row.first, row.second, row.first_preferred, row.p_first) for row in rows] == [
        ("a 1", "a 2", True, 1.0),
        ("b 0", "b 2", None, 0.5),
        ("c 0", "c 1", None, None),
    ]
    assert rows[2].unscored == "unread"


def test_samples_are_laid_before_a_judge_in_every_pair_or_each_by_itself(tmp_path: Path) -> None:
    """Earlier messages are part of what is asked."""
    context = [{"role": "system", "content": "Be brief."}]
    items = [Item("a", "math", ["Add."]), Item("b", None, ["Go on."], context=context)]
    inputs = {
        "items": folder(tmp_path / "items", "items.jsonl", items),
        "completions": folder(
            tmp_path / "s",
            "completions.jsonl",
            [sample(n, draw, f"{n}{draw}") for draw in range(3) for n in "ab"],
        ),
    }
    for form, expected in (
        ("pairs", [("a/0-1", "a0", ["a1"]), ("a/0-2", "a0", ["a2"]), ("a/1-2", "a1", ["a2"])]),
        ("each", [("a", "a0", None), ("a/1", "a1", None), ("a/2", "a2", None)]),
    ):
        run(data, DrawnData(form=form), tmp_path / form, **inputs)  # type: ignore[arg-type]
        asked = list(read_jsonl(tmp_path / form / "items.jsonl", Item))
        answers = list(read_jsonl(tmp_path / form / "completions.jsonl", Completion))
        assert [item.id for item in asked] == [answer.id for answer in answers]
        found = [
            (item.id, answer.completions[0], item.baseline)
            for item, answer in zip(asked, answers, strict=True)
        ]
        assert found[:3] == expected
        assert (asked[0].turns, asked[3].turns) == (["Add."], ["system: Be brief.\n\nuser: Go on."])


def test_a_reward_model_ranks_more_than_two(tmp_path: Path) -> None:
    rewards = {"a": 0.5, "a/1": -1.0, "a/2": 2.0}
    read = {
        "rewards": folder(
            tmp_path / "rewards", "rewards.jsonl", [Reward(name, value) for name, value in rewards.items()]
        )
    }
    (row,) = labels(
        tmp_path, "reward_model", [sample("a", draw, f"text {draw}") for draw in range(3)], **read
    )
    assert (row.first, row.second, row.first_preferred) == ("text 1", "text 2", False)
    assert row.p_first == pytest.approx(1 / (1 + math.exp(3)))


def test_the_shorter_one_wins_and_equal_lengths_are_ties(tmp_path: Path) -> None:
    samples = [
        sample("a", 0, "one two three"),
        sample("a", 1, "one two"),
        sample("b", 0, "one two"),
        sample("b", 1, "three four"),
    ]
    rows = labels(tmp_path, "shorter", samples)
    assert [(row.first_preferred, row.p_first) for row in rows] == [(False, 0.0), (None, 0.5)]


def test_a_coin_is_fair_seeded_and_says_that_it_knows_nothing(tmp_path: Path) -> None:
    samples = [sample(f"{i}", draw, f"{i} {draw}") for i in range(1000) for draw in (0, 1)]
    (tmp_path / "again").mkdir()
    rows, again = labels(tmp_path, "random", samples), labels(tmp_path / "again", "random", samples)
    assert rows == again
    assert {row.p_first for row in rows} == {0.5}
    assert abs(sum(bool(row.first_preferred) for row in rows) - 500) < 4 * math.sqrt(250)


def test_a_demonstration_is_chosen_whether_it_is_better_or_not(tmp_path: Path) -> None:
    """Right where the world's truth agrees; the same text on both sides is a tie."""
    run(
        data,
        PromptData(family=FAMILY, split="train", n=60, n_turns=1, reference=SLOPPY, seed=0),
        tmp_path / "asked",
    )
    items = list(read_jsonl(tmp_path / "asked" / "items.jsonl", Item))
    perfect = Writer(error=0.0, missed_constraint=0.0, filler=0.0)
    run(
        data,
        PromptData(family=FAMILY, split="train", n=60, n_turns=1, reference=perfect, seed=0),
        tmp_path / "right",
    )
    best = [(item.baseline or [])[0] for item in read_jsonl(tmp_path / "right" / "items.jsonl", Item)]
    samples = [
        sample(item.id, 0, "" if i % 2 else text)
        for i, (item, text) in enumerate(zip(items, best, strict=True))
    ]
    rows = labels(tmp_path, "human", samples, items)
    for i, (row, item, text) in enumerate(zip(rows, items, best, strict=True)):
        said = (item.baseline or [])[0]
        assert (row.first, row.second) == (said, "" if i % 2 else text)
        assert row.first_preferred is (None if said == row.second else True)
        if i % 2:
            assert row.correct is True  # anything is better than nothing
        else:
            assert row.correct in (None, False)  # nothing is better than a perfect answer


def test_the_annotator_looks_at_the_best_and_the_worst_of_more_than_two(tmp_path: Path) -> None:
    perfect = Writer(error=0.0, missed_constraint=0.0, filler=0.0)
    run(
        data,
        PromptData(family=FAMILY, split="train", n=20, n_turns=1, reference=perfect, seed=0),
        tmp_path / "asked",
    )
    items = list(read_jsonl(tmp_path / "asked" / "items.jsonl", Item))
    best = {item.id: (item.baseline or [])[0] for item in items}
    samples = [
        sample(name, draw, text)
        for name, right in best.items()
        for draw, text in enumerate(["", "Well well.", right])
    ]
    write_jsonl(tmp_path / "asked" / "completions.jsonl", samples)
    settings = GoldLabels(gold=WEIGHTS, annotator=SURE, seed=0)
    outcome = run(
        label, settings, tmp_path / "labels", items=tmp_path / "asked", completions=tmp_path / "asked"
    )
    rows = list(read_jsonl(tmp_path / "labels" / "labels.jsonl", Labelled))
    assert [(row.first, row.second, row.first_preferred) for row in rows] == [
        ("", best[row.id], False) for row in rows
    ]
    assert outcome.counts["correct"] == outcome.counts["with_truth"] == 20


# Prompts and pairs ----------------------------------------------------------------------------------------------------


def test_new_prompts_go_on_where_the_labelled_ones_end(tmp_path: Path) -> None:
    run(
        data,
        PromptData(family=FAMILY, split="train", n=50, n_turns=1, reference=None, seed=3),
        tmp_path / "all",
    )
    run(data, NewPromptData(family=FAMILY, after=20, n=30, seed=3), tmp_path / "new")
    whole, new = ((tmp_path / name / "items.jsonl").read_text().splitlines() for name in ("all", "new"))
    assert new == whole[20:]


def test_demonstrated_items_are_the_first_turns_of_the_demonstrations(tmp_path: Path) -> None:
    run(data, DemonstrationData(family=FAMILY, writer=SLOPPY, n=60, seed=3), tmp_path / "texts")
    run(data, DemonstratedData(family=FAMILY, writer=SLOPPY, after=20, n=40, seed=3), tmp_path / "items")
    texts = list(read_jsonl(tmp_path / "texts" / "rows.jsonl", Text))[20:]
    items = list(read_jsonl(tmp_path / "items" / "items.jsonl", Item))
    for text, item in zip(texts, items, strict=True):
        said = [message["content"] for message in text.prompt] + [text.completion]
        assert (item.id, item.turns, item.baseline) == (text.id, said[:1], said[1:2])
    assert {len(text.prompt) for text in texts} == {1, 3}


def test_pairs_of_iterations_drop_ties_and_keep_the_order(tmp_path: Path) -> None:
    def asked(name: str) -> Any:
        return [{"role": "user", "content": f"Say {name}."}]

    def rows(name: str, *preferred: bool | None) -> Path:
        named = [(f"{name}{i}", each) for i, each in enumerate(preferred)]
        made = [Labelled(row, asked(row), f"{row} one", f"{row} two", 0.5, each) for row, each in named]
        return folder(tmp_path / name, "labels.jsonl", made)

    first = folder(tmp_path / "seed", "train.jsonl", [Pair("s0", asked("s0"), "good", "bad", "x", "y")])
    inputs = {"01": rows("a", True, None), "02": rows("b", False, True), "00": first}
    outcome = run(data, LoopPairData(seed=0), tmp_path / "pairs", **inputs)
    found: Any = read_rows(tmp_path / "pairs" / "train.jsonl")
    assert [(row.id, row.chosen, row.rejected) for row in found] == [
        ("s0", "good", "bad"),
        ("a0", "a0 one", "a0 two"),
        ("b0", "b0 two", "b0 one"),
        ("b1", "b1 one", "b1 two"),
    ]
    assert outcome.counts == {"train": 4, "train_prompts": 4, "train_ties": 1, "train_unscored": 0}


def test_nothing_but_ties_is_a_named_failure(tmp_path: Path) -> None:
    tie = Labelled("a", [{"role": "user", "content": "Say it."}], "one", "one", 0.5, None)
    with pytest.raises(ValueError, match="No pair is left of 1 labelled prompts: 1 were ties, 0 unscored"):
        run(
            data,
            LoopPairData(seed=0),
            tmp_path / "pairs",
            **{"00": folder(tmp_path / "labels", "labels.jsonl", [tie])},
        )


# What a noise detector said ---------------------------------------------------------------------------------------------


def known(name: str, correct: bool | None) -> Labelled:
    return Labelled(name, [], "a", "b", 0.5, True, correct)


def test_a_noise_detector_is_held_against_labels_whose_truth_is_known(tmp_path: Path) -> None:
    """Six pairs: distrusted are two wrong labels of three, one right one, and one that nobody knows of; the sixth was not looked at."""
    truth = {"a": False, "b": False, "c": False, "d": True, "e": None, "f": False}
    where = folder(
        tmp_path / "labels", "labels.jsonl", [known(name, correct) for name, correct in truth.items()]
    )
    said = {"a": True, "b": True, "c": False, "d": True, "e": True}
    training = folder(
        tmp_path / "training",
        "trust.jsonl",
        [Trust(name, distrusted, 0.5) for name, distrusted in said.items()],
    )
    assert read_detections(training, [where]) == [(True, True), (True, True), (False, True), (True, False)]
    numbers = numbers_of.Numbers()
    numbers_of._labels({"labels_00": where, "training": training}, numbers)
    assert numbers.metrics["label_accuracy"] == pytest.approx(1 / 5)
    assert numbers.metrics["noise_precision"] == pytest.approx(2 / 3)
    assert numbers.metrics["noise_recall"] == pytest.approx(2 / 3)
    assert numbers.metrics["noise_share"] == pytest.approx(3 / 4)


def test_without_a_truth_or_a_detector_there_is_no_number(tmp_path: Path) -> None:
    where = folder(tmp_path / "labels", "labels.jsonl", [known("a", None)])
    training = folder(tmp_path / "training", "trust.jsonl", [Trust("a", True, 0.4)])
    numbers = numbers_of.Numbers()
    numbers_of._labels({"labels_00": where, "training": training}, numbers)
    assert not numbers.metrics
    assert set(numbers.missing) == {"label_accuracy", "noise_precision", "noise_recall", "noise_share"}
    (training / "trust.jsonl").unlink()
    numbers = numbers_of.Numbers()
    numbers_of._labels({"labels_00": where, "training": training}, numbers)
    assert set(numbers.missing) == {"label_accuracy"}
