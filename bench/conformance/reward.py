"""Checks of best_of_n's reward model.

TRL's RewardTrainer at prescribed rewards in float64, then on a real model and batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerCallback

from bench.config import BestOfN, Cpo, Dpo, RewardModel, name_of
from bench.conformance.checks import (
    EXACT,
    FIRST_PROMPT,
    GRADIENT,
    MAX_LENGTH,
    N_PAIRS,
    SINGLE,
    TEN_DIGITS,
    TRAINING,
    Bench,
    Check,
    FirstStep,
    Kind,
    deviation,
    method,
    quiet,
    worst_of,
)
from bench.conformance.references import TRL, Facts, Rewards, Row, bradley_terry
from bench.engines.reward import new_reward_model
from bench.methods import load
from bench.store.stage_settings import RewardModelSettings
from bench.training.trainers import TrainingJob

FACTS = Facts(
    "2203.02155 eq. 1",
    "-log σ(R_w - R_l), then argmax R of n",
    f"{TRL} RewardTrainer",
    "InstructGPT: all pairs of a prompt are one element of a batch; TRL drops rows over max_length, here they are cut",
)
# Margins 1 and -2: -log sigma(1) = 0.3132616875, -log sigma(-2) = 2.1269280110; their mean.
GOLDEN: list[Rewards] = [(1.5, 0.5), (-3.0, -1.0)]
GOLDEN_LOSS = 1.2200948493
REDUCTIONS: list[tuple[str, Kind, dict[str, float]]] = [
    ("DPO at β 1, reference 0", Dpo, {"beta": 1.0}),
    ("CPO at β 1, α 0", Cpo, {"beta": 1.0, "alpha": 0.0}),
]


class PrescribedRewards(torch.nn.Module):
    """A model with the prescribed rewards of a table (pairs, 2)."""

    def __init__(self, rows: Sequence[Rewards]):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(
            logits=self.table[input_ids[:, 0] - FIRST_PROMPT, input_ids[:, 1] - 1][:, None]
        )


class RewardBench:
    """RewardTrainers over the pairs of a Bench."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.start = bench.folder / "start"
        bench.model(0).save_pretrained(self.start)
        self._trainer = self.trainer()
        self._trainer.model.train()

    def model(self) -> Any:
        return new_reward_model(self.start, "float32", seed=0)

    def trainer(self, callback: TrainerCallback | None = None, **training: Any) -> Any:
        method = RewardModel.model_validate(TRAINING | training)
        settings = RewardModelSettings(method=method, max_length=MAX_LENGTH, dtype="float32", seed=0)
        pairs, callback = self.bench.pairs, callback or TrainerCallback()
        job = TrainingJob(
            settings, self.model(), self.bench.tokenizer, pairs, {}, self.bench.folder, callback
        )
        return load(name_of(BestOfN)).make_trainer(job)

    def first_step(self, **training: Any) -> FirstStep:
        record = FirstStep()
        with quiet():
            self.trainer(record, **training).train()
        return record

    def prescribed(self, rows: Sequence[Rewards]) -> tuple[float, torch.Tensor, dict[str, float]]:
        """Returns (loss, its gradient by the table (pairs, 2), logged numbers) at prescribed rewards."""
        model, metrics = PrescribedRewards(rows), self._trainer._metrics["train"]
        features = [
            {"chosen_ids": [FIRST_PROMPT + i, 1], "rejected_ids": [FIRST_PROMPT + i, 2, 2]}
            for i in range(len(rows))
        ]
        metrics.clear()
        loss = self._trainer.compute_loss(
            model, self._trainer.data_collator([feature | {"row": 0} for feature in features])
        )
        loss.backward()
        assert model.table.grad is not None
        return loss.item(), model.table.grad, {name: values[-1] for name, values in metrics.items()}

    def by_hand(self) -> list[Rewards]:
        """Rewards of the real pairs by hand: the head's weights times the last token's hidden state.

        One row at a time, unpadded, in float64.
        """
        model = self.model().double().eval()

        def reward(ids: list[int]) -> float:
            with torch.no_grad():
                hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            return math.fsum((hidden * model.score.weight[0]).tolist())

        rows = []
        for pair in self.bench.pairs:
            both = (self.bench.ids(pair.prompt, text) for text in (pair.chosen, pair.rejected))
            chosen, rejected = (reward([*prompt, *completion]) for prompt, completion in both)
            rows.append((chosen, rejected))
        return rows


def reward_checks(bench: Bench) -> Iterator[Check]:
    rewards = RewardBench(bench)
    yield Check("golden", "golden value", abs(rewards.prescribed(GOLDEN)[0] - GOLDEN_LOSS), TEN_DIGITS)
    yield no_difference(rewards)
    yield equation(rewards)
    yield gradient(rewards)
    yield logged(rewards)
    for text, kind, settings in REDUCTIONS:
        yield reduces(rewards, text, kind, settings)
    yield real_batch(rewards)
    yield accumulation(rewards)


def random_rewards(rng: random.Random, n: int, spread: float) -> list[Rewards]:
    return [(rng.gauss(1.0, spread), rng.gauss(0.0, spread)) for _ in range(n)]


def _batches() -> list[list[Rewards]]:
    """Batches of one pair, of ordinary rewards, and of rewards that saturate everything."""
    rng = random.Random("rewards")
    return [random_rewards(rng, 1, 1.0), random_rewards(rng, 5, 3.0), random_rewards(rng, 6, 1000.0)]


def no_difference(rewards: RewardBench) -> Check:
    """Equal rewards give log 2; a shift of both rewards of a pair changes nothing."""
    rows = _batches()[1]
    shifted = [(chosen + 7, rejected + 7) for chosen, rejected in rows]
    equal = deviation(rewards.prescribed([(chosen, chosen) for chosen, _ in rows])[0], math.log(2))
    return Check(
        "loss",
        "equal rewards, shifts",
        max(equal, deviation(rewards.prescribed(shifted)[0], bradley_terry(rows))),
        EXACT,
    )


def equation(rewards: RewardBench) -> Check:
    deviations = [deviation(rewards.prescribed(rows)[0], bradley_terry(rows)) for rows in _batches()]
    return Check("loss", "equation", worst_of(*deviations), EXACT)


def gradient(rewards: RewardBench, step: float = 1e-5) -> Check:
    """Compares autograd of the trainer's loss with central differences of the reference."""
    worst = 0.0
    for rows in _batches()[:2]:
        gradients = rewards.prescribed(rows)[1]
        for i, (chosen, rejected) in enumerate(rows):
            for j, (a, b) in enumerate(((step, 0.0), (0.0, step))):
                up, down = (
                    bradley_terry([*rows[:i], (chosen + sign * a, rejected + sign * b), *rows[i + 1 :]])
                    for sign in (1, -1)
                )
                worst = worst_of(worst, deviation(gradients[i, j].item(), (up - down) / (2 * step)))
    return Check("gradient", "gradient", worst, GRADIENT)


def logged(rewards: RewardBench) -> Check:
    """Checks the first step's logged numbers (see methods/best_of_n.py).

    They come from a whole training, where they have our names.
    """
    rows = rewards.by_hand()
    every = [reward for row in rows for reward in row]
    expected = {
        "rewards/accuracies": sum(chosen > rejected for chosen, rejected in rows) / len(rows),
        "rewards/margins": math.fsum(chosen - rejected for chosen, rejected in rows) / len(rows),
        "mean_reward": math.fsum(every) / len(every),
        "min_reward": min(every),
        "max_reward": max(every),
    }
    logs = rewards.first_step(batch_size=N_PAIRS).logs
    worst = worst_of(*(deviation(logs.get(name, math.nan), value) for name, value in expected.items()))
    return Check("logged", "logged rewards", worst, SINGLE)


def reduces(rewards: RewardBench, text: str, kind: Kind, settings: dict[str, float]) -> Check:
    """The loss equals a preference loss with the rewards as log-ratios."""
    rows = _batches()[1]
    logps = [Row(chosen, rejected, 0.0, 0.0, 10, 12) for chosen, rejected in rows]
    other = rewards.bench.prescribed(method(kind, settings), logps)[0].item()
    return Check("loss", text, deviation(rewards.prescribed(rows)[0], other), EXACT)


def real_batch(rewards: RewardBench) -> Check:
    """The loss logged at a whole training's first step equals the reference on rewards by hand.

    The batch has padding and cut completions.
    """
    loss = rewards.first_step(batch_size=N_PAIRS).logs["loss"]
    return Check("batch", "real batch", deviation(loss, bradley_terry(rewards.by_hand())), SINGLE)


def accumulation(rewards: RewardBench) -> Check:
    """Eight pairs at once, or in two, four, eight parts: the same gradient and logged loss."""
    whole = rewards.first_step(batch_size=N_PAIRS)
    worst = 0.0
    for size in (4, 2, 1):
        parts = rewards.first_step(batch_size=size, gradient_accumulation_steps=N_PAIRS // size)
        apart = (parts.gradient - whole.gradient).abs().max().item() / whole.gradient.abs().max().item()
        worst = worst_of(worst, apart, deviation(parts.logs["loss"], whole.logs["loss"]))
    return Check("batch", "batch size and accumulation", worst, SINGLE)
