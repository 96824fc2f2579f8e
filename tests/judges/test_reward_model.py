"""A reward model as a judge: in the stage with a real classifier, by hand, and as the whole command's judge and audited judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny import bench, make_reward_model

from bench.judges import baseline
from bench.judges.reward_model import RewardModelPreference
from bench.models.tokenize import conversation, row_ids
from bench.records import Completion, Item, Message, Verdict, read_jsonl, write_jsonl
from bench.stages import judge
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import RewardJudgeSettings

ITEMS = [Item(f"i{n}", "writing", [f"please name {n}"], baseline=["the red apple."]) for n in range(5)]
ANSWERS = [
    Completion(f"i{n}", [f"please name {n}"], ["the red apple." if n == 0 else "a dog" * n], [], [])
    for n in range(5)
]


def judged(root: Path, model: Path) -> list[Verdict]:
    for name in ("items", "completions", "out"):
        (root / name).mkdir(exist_ok=True)
    write_jsonl(root / "items" / "items.jsonl", ITEMS)
    write_jsonl(root / "completions" / "completions.jsonl", ANSWERS)
    inputs = {"items": root / "items", "completions": root / "completions", "model": model}
    judge.run(
        RewardJudgeSettings(batch_size=3, dtype="float32"),
        StageRun(inputs, root / "out", Progress(root / "progress")),
    )
    return list(read_jsonl(root / "out" / "verdicts.jsonl", Verdict))


def test_the_preference_is_the_logistic_of_the_difference_of_rewards(tmp_path: Path) -> None:
    """Against the model's own rewards, one text at a time. Equal texts are a tie exactly."""
    from bench.engines.reward import Scorer

    model = make_reward_model(tmp_path / "reward")
    found, scorer = judged(tmp_path, model), Scorer(model, "float32", 1)

    def reward(item: Item, text: str) -> float:
        return scorer.rewards([row_ids(scorer.tokenizer, conversation(item, []), text, None)])[0]

    for item, answer, verdict in zip(ITEMS, ANSWERS, found, strict=True):
        ours, theirs = reward(item, answer.completions[0]), reward(item, "the red apple.")
        assert verdict.preference == pytest.approx(1 / (1 + math.exp(theirs - ours)), abs=1e-6)
        assert verdict.details == {
            "reward": pytest.approx(ours, abs=1e-5),
            "reward_baseline": pytest.approx(theirs, abs=1e-5),
        }
        assert (verdict.policy_length, verdict.baseline_length) == (
            len(answer.completions[0]),
            14,
        ) and not verdict.calls
    assert found[0].preference == 0.5 and len({verdict.preference for verdict in found}) == 5


def test_a_classifier_of_several_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a reward model must have one output, got num_labels=2"):
        judged(tmp_path, make_reward_model(tmp_path / "reward", num_labels=2))


def test_rewards_far_apart_are_preferences_of_0_and_1_and_each_text_is_scored_once() -> None:
    asked: list[tuple[Sequence[Message], str]] = []

    def rewards(rows: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        asked.extend(rows)
        return [1e6 * (text != "the red apple.") for _, text in rows]

    found = list(RewardModelPreference(rewards).judge(ITEMS, ANSWERS, baseline(ITEMS)))
    assert [verdict.preference for verdict in found] == [0.5, 1, 1, 1, 1]
    assert len(asked) == 9 and asked[0][0] == [{"role": "user", "content": "please name 0"}]


def test_a_reward_model_is_audited_as_a_function(tmp_path: Path) -> None:
    """A head that nobody has trained: what it prefers has little to do with the truth, and the passport says so."""
    model = make_reward_model(tmp_path / "my-reward")
    words = ["do=audit", "judge=reward_model", f"judge.model={model}", "n_items=24", "n_canaries=4"]
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    (path,) = ran.results.glob("judges/reward_model-my-reward-*/passport.json")
    found = json.loads(path.read_text())
    assert "unmeasured" in found["statistics"]["position_bias"] and found["statistics"]["win_rate"]["n"] == 24
    assert found["judge"]["judge"] == "reward_model" and any("gold" in fault for fault in found["faults"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "judge.model must be set"),
        (
            ("judge.model=nowhere",),
            "judge.model must be a folder of a sequence classifier of one output, got nowhere",
        ),
        (("judge.items=nowhere.json",), "judge.items must be a file, got nowhere.json"),
    ],
)
def test_a_wrong_reward_model_is_refused_before_a_run(
    problems: Callable[..., list[str]], words: tuple[str, ...], said: str
) -> None:
    found = problems("judge=reward_model", *words)
    assert any(said in problem for problem in found), found
