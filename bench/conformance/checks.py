"""Checks of every method's real trainer against references.py: prescribed log-probabilities in float64, then a real model and batch.

With prescribed log-probabilities the trainer's own loss code runs on a stand-in model that returns them, so that TRL's losses and ours are
held to the same numbers. The real batch has padding, a completion that is cut, EOS, and a policy that is not the reference.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import math
import random
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from bench.config import Pretraining, RefinedDpo, SftTraining, Trained, WorldModel
from bench.conformance.judged import OUTSIDE, SIDES, csft_rows, passes_through, ppo_rows, token_features, token_references, with_references
from bench.conformance.references import (
    REFERENCES,
    SPA_THRESHOLD,
    PrescribedPair,
    extrapolated,
    judged,
    kto_weights,
    ppo_parts,
    ppo_total,
    sft_chosen,
    spa,
)
from bench.methods import load
from bench.planning.judging import reward_scale
from bench.records import Logps, Message, Pair
from bench.store.stage_settings import TrainSettings
from bench.training import losses
from bench.training.trainers import TrainingJob
from bench.world.models import new_model
from bench.world.tokenizer import new_tokenizer, vocabulary

EXACT, SINGLE = 1e-9, 1e-5  # largest relative deviation in float64 and in float32
GRADIENT = 1e-6  # of a central difference
LOGGED = 1e-7  # TRL's accuracies are float32
TEN_DIGITS = 1e-10

REFERENCE_FREE = frozenset({"sft_chosen", "slic", "simpo", "orpo", "cpo", "csft"})
UNPAIRED = frozenset({"kto", "csft", "offline_ppo"})  # a pair is two rows
NAMES = tuple(REFERENCES)
COUPLED = frozenset({"kto", "kto_pair", "offline_ppo"})  # losses whose rows share a number of their batch: batch size is part of the method

# Settings that each method is checked at; golden values belong to the first.
HALOS = {"gamma": 0.99, "gae_lambda": 0.95, "value_weight": 0.01, "kl_weight": 0.1, "value_max_grad_norm": 0.1}
REFINED = {"distrusted": 0.1, "window": 50, "threshold": "pairs", "delay": 0.2, "decoupling": 0.0}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sft_chosen": [{}],
    "dpo": [{"beta": 0.1}, {"beta": 2.0}, {"beta": 0.1, "sft_weight": 0.5}, {"beta": 1.0, "sft_weight": 2.0}],
    "cdpo": [{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 1.0, "label_smoothing": 0.3}],
    "robust": [{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 1.0, "label_smoothing": 0.3}],
    "ipo": [{"beta": 0.1}, {"beta": 1.0}],
    "ipo_summed": [{"beta": 0.1}, {"beta": 1.0}],
    "hinge": [{"beta": 0.1}, {"beta": 1.0}],
    "slic": [{"delta": 1.0, "lambda_nll": 0.1}, {"delta": 10.0, "lambda_nll": 0.5}],
    "simpo": [{"beta": 2.0, "gamma": 1.6}, {"beta": 10.0, "gamma": 3.0}],
    "orpo": [{"lambda_or": 0.1}, {"lambda_or": 1.0}],
    "cpo": [{"beta": 0.1, "alpha": 1.0}, {"beta": 0.5, "alpha": 0.3}],
    "kto": [
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7},
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0, "weight_ratio": 4 / 3},
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0, "weight_ratio": 0.5},
    ],
    "kto_pair": [{"beta": 0.1}, {"beta": 0.5}],
    "csft": [{}],
    "offline_ppo": [
        {"clip": 0.5, **HALOS},
        {"clip": 0.25, **HALOS},
        {"clip": 0.8, "gamma": 0.7, "gae_lambda": 0.4, "value_weight": 1.5, "kl_weight": 2.0, "value_max_grad_norm": 1.0},
    ],
    "spa": [{"beta": 0.1, "alpha": 0.1, **REFINED}, {"beta": 1.0, "alpha": 0.4, **REFINED}],
}
# log-probabilities -20 and -30, the reference's -22 and -28, lengths 10 and 12, a KL of 3
GOLDEN_ROW = PrescribedPair(
    -20, -30, -22, -28, 10, 12, mismatched_chosen=-40, mismatched_rejected=-40, ref_mismatched_chosen=-43, ref_mismatched_rejected=-43
)
# Ratios 1.5 and 2.25 of two desirable tokens, 0.4 of an undesirable one; values 0.1, 0.2 and 0.4
PPO_ROW = PrescribedPair(
    -3.0, -2.0, -3.0 - 3 * math.log(1.5), -2.0 - math.log(0.4), 2, 1, value_chosen=0.3, value_rejected=0.4
)  # fmt: skip
GOLDEN = {
    "sft_chosen": 2.0,
    "dpo": 0.5130152524,
    "cdpo": 0.5530152524,
    "robust": 0.4630152524,
    "ipo": 21.4677777778,
    "ipo_summed": 1.0,
    "hinge": 0.6,
    "slic": 2.0,
    "simpo": 1.0374879505,
    "orpo": 2.0451931604,
    "cpo": 2.3132616875,
    "kto": (0.5249791875 + 0.3775406688) / 2,  # desirable, undesirable
    "kto_pair": 0.4257391713,  # KL_w 2, KL_l 0: half of (1 - sigma(0.2)) + (1 - sigma(0.4))
    "csft": 2.25,  # (20 / 10 + 30 / 12) / 2
    # Surprises .99 x .2 - .1 = .098, 1 - .2 = .8 and -1 - .4 = -1.4; advantages .098 + .9405 x .8 = .8504, .8, -1.4, their mean
    # .0834666667 and variance 1.1007600356, whitened .7309897465, .6829518251, -1.4139415716. Policy: the mean of -1.5 x .7309897465,
    # -2 x .6829518251 (clipped) and .5 x 1.4139415716 (clipped) = -.5851391614. Value: half the mean of (.1 - 1)², .2², .4² =
    # .1683333333. KL: -ln(1.5 x 2.25 x .4) / 3 = -.1000348642. In all -.5851391614 + .0016833333 - .0100034864.
    "offline_ppo": -0.5934593145,
    "spa": 0.5530152524,  # of a distrusted label: cDPO's with ε = α
}


def _at_first_step(name: str, m: Any, rows: Sequence[PrescribedPair]) -> float:
    """The loss while the policy is the reference."""
    match name:
        case "dpo":
            return math.log(2) + m.sft_weight * sft_chosen(rows, m)
        case "cdpo" | "robust" | "spa":
            return math.log(2)
        case "ipo" | "ipo_summed":
            return 1 / (4 * m.beta**2)
        case "hinge":
            return 1.0
        case "kto":
            return 0.25 * sum(kto_weights(m))
        case "offline_ppo":  # whitened advantages have mean 0, and there is no KL
            return m.value_weight * ppo_parts(judged(rows), m).value
        case "kto_pair":
            return 0.5
    raise KeyError(name)


@dataclass(frozen=True)
class Check:
    """One comparison: the largest relative deviation found, and the largest that passes."""

    kind: Literal["golden", "loss", "gradient", "logged", "batch"]  # golden values have ten digits, a batch is in float32
    name: str
    deviation: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.deviation <= self.tolerance  # NaN does not


class Reduction(NamedTuple):
    """loss of `method` at `settings` = scale × loss of `other` at `other_settings`, on rows of a kind."""

    text: str
    method: str
    settings: dict[str, Any]
    other: str
    other_settings: dict[str, Any]
    scale: float
    rows: str  # any; equal lengths (T = 10); equal references


EPS_0 = {"beta": 0.3, "label_smoothing": 0.0}
CALIBRATION = {"delta": 5.0, "lambda_nll": 0.0}
REDUCTIONS = [
    Reduction("ε 0 = DPO", "cdpo", EPS_0, "dpo", {"beta": 0.3}, 1, "any"),
    Reduction("ε 0 = DPO", "robust", EPS_0, "dpo", {"beta": 0.3}, 1, "any"),
    Reduction("α 0 = DPO", "spa", {"beta": 0.3, "alpha": 0.0, **REFINED}, "dpo", {"beta": 0.3}, 1, "any"),
    Reduction("length T: T² × IPO with means at τT", "ipo_summed", {"beta": 0.05}, "ipo", {"beta": 0.5}, 100, "equal lengths"),
    Reduction("equal references: β × SLiC at δ 1/β, λ 0", "hinge", {"beta": 0.2}, "slic", CALIBRATION, 0.2, "equal references"),
    Reduction("equal references, λ 0: δ × hinge at β 1/δ", "slic", CALIBRATION, "hinge", {"beta": 0.2}, 5, "equal references"),
    Reduction(
        "length T, γ 0: CPO at β/T, α 0", "simpo", {"beta": 2.0, "gamma": 0.0}, "cpo", {"beta": 0.2, "alpha": 0.0}, 1, "equal lengths"
    ),
    Reduction("λ 0 = SFT on chosen", "orpo", {"lambda_or": 0.0}, "sft_chosen", {}, 1, "any"),
    Reduction("equal references, α 0 = DPO", "cpo", {"beta": 0.3, "alpha": 0.0}, "dpo", {"beta": 0.3}, 1, "equal references"),
]

KINDS: dict[str, type] = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in (*get_args(Trained), RefinedDpo)}
TRAINING = {
    "learning_rate": 1e-9,  # one step is looked at, before it is taken
    "num_train_epochs": 1.0,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw_torch",
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
}


def method(name: str, settings: Mapping[str, Any], **training: Any) -> Any:
    return KINDS[name](name=name, **TRAINING | training, **settings)


def deviation(found: float, expected: float) -> float:
    return abs(found - expected) / max(1.0, abs(expected))


MAX_LENGTH = 32  # tokens; the longest completions are cut
N_PAIRS = 8

# Prescribed log-probabilities -----------------------------------------------------------------------------------------

FIRST_PROMPT = 10  # token of the first pair's prompt; those of completions say whose they are
WHOSE = ("chosen", "rejected", "mismatched_chosen", "mismatched_rejected")


class StatesOfValues(torch.nn.Module):
    """Hidden states whose first number is a value: sums spread over the tokens of completions, OUTSIDE elsewhere."""

    def forward(self, sums: torch.Tensor, shares: torch.Tensor) -> SimpleNamespace:
        values = torch.where(shares > 0, sums[:, None] * shares / shares.sum(dim=1, keepdim=True), OUTSIDE)
        states = torch.zeros(*values.shape, TINY.hidden_size, dtype=values.dtype)
        states[..., 0] = values
        return SimpleNamespace(last_hidden_state=torch.cat([states, states[:, -1:]], dim=1))


class LogpsOfTable(torch.nn.Module):
    """A model whose completions have the summed log-probabilities of a table (pairs, 4), spread unevenly over their tokens."""

    def __init__(self, rows: Sequence[PrescribedPair]):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor([[getattr(row, whose) for whose in WHOSE] for row in rows], dtype=torch.float64))
        self.values = torch.tensor([[row.value_chosen, row.value_rejected, 0.0, 0.0] for row in rows], dtype=torch.float64)
        self.base_model = StatesOfValues()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        inside = (labels[:, 1:] != -100).double()
        shares = inside * torch.arange(1, inside.shape[1] + 1)
        where = input_ids[:, 0] - FIRST_PROMPT, input_ids[:, 1] - 1
        sums = self.table[where]
        self.base_model(self.values[where], shares)
        nothing = torch.zeros_like(inside)
        per_token = sums[:, None] * shares / shares.sum(dim=1, keepdim=True)
        return SimpleNamespace(log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def _pair_features(rows: Sequence[PrescribedPair]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    features = [
        {"prompt_ids": [FIRST_PROMPT + i], "chosen_ids": [1] * row.chosen_length, "rejected_ids": [2] * row.rejected_length}
        for i, row in enumerate(rows)
    ]
    return features, {"ref_chosen_logps": [row.ref_chosen for row in rows], "ref_rejected_logps": [row.ref_rejected for row in rows]}


def _kto_features(rows: Sequence[PrescribedPair]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    features = token_features(rows, FIRST_PROMPT, (0, 1))
    features = [feature | {"KL_completion_ids": [3 if feature["label"] else 4] * 7} for feature in features]
    own = [value for row in rows for value in (row.ref_chosen, row.ref_rejected)]
    partners = [value for row in rows for value in (row.ref_mismatched_chosen, row.ref_mismatched_rejected)]
    return features, {"ref_logps": own, "ref_KL_logps": partners}


def random_rows(rng: random.Random, n: int, *, spread: float = 3.0, drift: float = 0.0, kind: str = "any") -> list[PrescribedPair]:
    """Pairs of some length whose policy is `drift` ± `spread` nats above the reference."""
    found = []
    for _ in range(n):
        lengths = [10, 10] if kind == "equal lengths" else [rng.randint(1, MAX_LENGTH - 1), rng.randint(1, MAX_LENGTH - 1)]
        sums = [-rng.uniform(0.05, 4) * length for length in (*lengths, 7, 7)]
        references = [value - rng.gauss(drift, spread) for value in sums]
        if kind == "equal references":
            references = [-20.0] * 4
        numbers = dict(zip((*WHOSE, *(f"ref_{whose}" for whose in WHOSE)), (*sums, *references), strict=True))
        values = {f"value_{side}": rng.gauss(0, 1) * length for side, length in zip(SIDES, lengths, strict=True)}
        found.append(PrescribedPair(**numbers, **values, chosen_length=lengths[0], rejected_length=lengths[1]))
    return found


# A real model and batch -----------------------------------------------------------------------------------------------

TINY = WorldModel(
    kind="world",
    name="conformance",
    start="sft",
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_length=MAX_LENGTH,
    pretraining=Pretraining(steps=1, batch_size=1, learning_rate=1e-3, init_std=0.15, seed=0),
    sft=SftTraining(steps=1, batch_size=1, learning_rate=1e-3),
)


class FirstStep(TrainerCallback):
    """The first logged numbers, and the gradient that the first step is taken with."""

    def __init__(self) -> None:
        self.logs: dict[str, float] = {}
        self.gradient = torch.empty(0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if not self.gradient.numel():
            parts = [p.grad.flatten() for _, p in sorted(seen["model"].named_parameters()) if p.grad is not None]
            self.gradient = torch.cat(parts).detach().clone()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and not self.logs:
            self.logs = dict(logs)


class Computed(NamedTuple):
    """A loss, its gradient by the table of prescribed numbers, and what is logged."""

    loss: float
    gradient: torch.Tensor
    logged: dict[str, float]


def computed(trainer: Any, model: Any, inputs: Any) -> Computed:
    metrics = trainer._metrics["train"]
    metrics.clear()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    gradient = torch.zeros_like(model.table) if model.table.grad is None else model.table.grad
    return Computed(loss.item(), gradient, {name: values[-1] for name, values in metrics.items()})


class Bench:
    """Trainers of every method over a tiny model, and what they compute. `close` puts the process back as it was."""

    def __init__(self) -> None:
        # Every training ends in a garbage collection, which is most of its time unless what is loaded by now is left out of it.
        transformers_logging.set_verbosity_error()  # models of random weights are made on purpose
        transformers_logging.disable_progress_bar()
        gc.collect()
        gc.freeze()
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._folder = tempfile.TemporaryDirectory(prefix="bench-conformance-")
        self.folder = Path(self._folder.name)
        self.tokenizer = new_tokenizer(4 * MAX_LENGTH)  # tokenizes what is then cut
        self.pairs = self._make_pairs(random.Random(0))
        self.rows = self._by_hand()
        self.csft_rows, self.ppo_rows = csft_rows(self), ppo_rows(self)
        self._prescribed: dict[Any, Any] = {}

    def close(self) -> None:
        self._folder.cleanup()
        torch.set_num_threads(self._threads)
        gc.unfreeze()

    def _make_pairs(self, rng: random.Random) -> list[Pair]:
        words = vocabulary()

        def text(n: int) -> str:
            return " ".join(rng.choice(words) for _ in range(n))

        lengths = [(3, 9), (12, 2), (60, 5), (1, 1), (8, 60), (17, 16), (4, 11), (6, 6)]
        answers = [(text(a), text(b)) for a, b in lengths]
        partners = [*answers[1:], answers[0]]  # of another prompt
        return [
            Pair(str(i), [{"role": "user", "content": text(rng.randint(2, 5))}], *answer, *partner)
            for i, (answer, partner) in enumerate(zip(answers, partners, strict=True))
        ]

    def first_settings(self, name: str) -> Any:
        return method(name, SETTINGS[name][0])

    def model(self, seed: int) -> Any:
        return new_model(TINY.model_copy(update={"pretraining": TINY.pretraining.model_copy(update={"seed": seed})}), self.tokenizer)

    def _by_hand(self) -> list[PrescribedPair]:
        """Log-probabilities of policy (seed 0) and reference (seed 1): one row at a time, unpadded, float64, the plain forward."""
        models = [self.model(seed).double().eval() for seed in (0, 1)]
        ended = set()
        rows = []
        for pair in self.pairs:
            numbers: dict[str, Any] = {}
            for column in WHOSE:
                prompt, completion = self.ids(pair.prompt, getattr(pair, column))
                ended.add(completion[-1] == self.tokenizer.eos_token_id)
                for prefix, model in zip(("", "ref_"), models, strict=True):
                    numbers[f"{prefix}{column}"] = math.fsum(self.token_logps(model, prompt, completion))
                if column in SIDES:
                    numbers[f"{column}_length"] = len(completion)
            rows.append(PrescribedPair(**numbers))
        if ended != {True, False} or len({row.chosen_length for row in rows}) < 4:
            raise AssertionError("the real batch must hold completions with EOS, ones that are cut, and padding")
        return rows

    @staticmethod
    @torch.no_grad()
    def token_logps(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
        logps = torch.log_softmax(model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0], -1)
        places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        return [logps[place, token].item() for place, token in zip(places, completion, strict=True)]

    def ids(self, prompt: list[Message], completion: str) -> tuple[list[int], list[int]]:
        """From the rendered text, without bench.models.tokenize."""
        asked: Any = [dict(message) for message in prompt]
        answered = [*asked, {"role": "assistant", "content": completion}]
        before, whole = (
            self.tokenizer(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens), add_special_tokens=False
            )["input_ids"]
            for messages, opens in ((asked, True), (answered, False))
        )
        if whole[: len(before)] != before:
            raise AssertionError("a prompt's tokens must begin those of prompt and completion")
        return before, whole[len(before) : MAX_LENGTH]

    def trainer(self, settings: Any, callback: TrainerCallback | None = None) -> Any:
        """The method's real trainer over the real pairs, with the reference log-probs that were computed by hand."""
        reference = {}
        for pair, row in zip(self.pairs, self.rows, strict=True):
            for column in WHOSE:
                name = f"train/{pair.id}/{column}"
                reference[name] = Logps(name, getattr(row, f"ref_{column}"), 0)
        whole = TrainSettings(method=settings, max_length=MAX_LENGTH, dtype="float32", seed=0)
        out = self.folder
        tokenizer = copy.deepcopy(self.tokenizer)  # csft adds to it
        job = TrainingJob(whole, self.model(0), tokenizer, self.pairs, reference, out, callback or TrainerCallback())
        trainer = load(settings.name).make_trainer(job)
        return with_references(trainer, self.ppo_rows) if settings.name == "offline_ppo" else trainer

    def first_step(self, settings: Any) -> FirstStep:
        seen = FirstStep()
        with quiet():
            self.trainer(settings, seen).train()
        return seen

    def prepared(self, settings: Any) -> Any:
        """The method's trainer for prescribed log-probabilities and values."""
        if settings not in self._prescribed:
            self._prescribed[settings] = trainer = self.trainer(settings)
            trainer.model.train()
            if settings.name == "offline_ppo":
                passes_through(trainer.critic.module)
        return self._prescribed[settings]

    def prescribed(self, settings: Any, rows: Sequence[PrescribedPair], sides: Sequence[int] = (0, 1)) -> Computed:
        """What the method's trainer computes at prescribed log-probabilities, a table (pairs, 4).

        `sides`: which completions of the pairs csft and offline_ppo see, chosen (0) or rejected (1).
        """
        trainer, model = self.prepared(settings), LogpsOfTable(rows)
        if settings.name == "spa":
            trainer.threshold.seen = deque([SPA_THRESHOLD] * settings.window, settings.window)
        if settings.name in UNPAIRED - {"kto"}:
            features = token_features(rows, FIRST_PROMPT, sides)
            inputs = trainer.data_collator([feature | {"row": 0} for feature in features])
            references = token_references(rows, sides, inputs["input_ids"].shape[1] - 1)
        else:
            features, references = (_kto_features if settings.name == "kto" else _pair_features)(rows)
            inputs = trainer.data_collator([feature | {"row": 0} for feature in features])
        # The collator would make its reference log-probs float32.
        inputs |= {name: torch.tensor(values, dtype=torch.float64) for name, values in references.items()}
        return computed(trainer, model, inputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the trainer's summary line."""
    with contextlib.redirect_stdout(None):
        yield


# Checks ---------------------------------------------------------------------------------------------------------------


def quick_checks(bench: Bench, name: str) -> Iterator[Check]:
    """Checks at prescribed log-probabilities, milliseconds each: what mutants have to survive."""
    yield golden(bench, name)
    yield first_step(bench, name)
    yield equation(bench, name)
    yield gradient(bench, name)
    yield logged(bench, name)
    for reduction in REDUCTIONS:
        if reduction.method == name:
            yield reduces(bench, reduction)
    if name == "kto":
        yield without_kl(bench)
    if name == "dpo":
        yield adds_up(bench)
    if name == "csft":
        yield only_desirable(bench)
    if name == "offline_ppo":
        yield value_gradient(bench)
    if name == "spa":
        yield extrapolation()


def checks(bench: Bench, name: str) -> Iterator[Check]:
    yield from quick_checks(bench, name)
    yield real_batch(bench, name)
    if name not in COUPLED:
        yield accumulation(bench, name)


def golden(bench: Bench, name: str) -> Check:
    loss = bench.prescribed(bench.first_settings(name), [PPO_ROW if name == "offline_ppo" else GOLDEN_ROW]).loss
    return Check("golden", "golden value", abs(loss - GOLDEN[name]), TEN_DIGITS)


def first_step(bench: Bench, name: str) -> Check:
    """Policy = reference gives the known value; without a reference in the loss: another reference changes nothing."""
    found = []
    rng = random.Random(f"first step/{name}")
    for settings in SETTINGS[name]:
        m, rows = method(name, settings), random_rows(rng, 4)
        if name in REFERENCE_FREE:
            same = [replace(row, ref_chosen=row.ref_chosen - 5, ref_rejected=row.ref_rejected + 9) for row in rows]
            expected = bench.prescribed(m, rows).loss
        else:
            same = [replace(row, **{f"ref_{whose}": getattr(row, whose) for whose in WHOSE}) for row in rows]
            expected = _at_first_step(name, m, same)
        found.append(deviation(bench.prescribed(m, same).loss, expected))
    return Check("loss", "reference plays no part" if name in REFERENCE_FREE else "policy = reference", worst_of(found), EXACT)


def _runs(name: str, saturated: bool = False) -> Iterator[tuple[Any, list[PrescribedPair]]]:
    """Each settings with one pair, and policies above and below the reference, where clamps do and do not bite; `saturated`: also with
    log-ratios that saturate everything. offline_ppo's do not: a ratio of e^3000 is no number."""
    for settings in SETTINGS[name]:
        rng = random.Random(f"rows/{name}")
        m = method(name, settings)
        yield m, random_rows(rng, 1)
        yield m, random_rows(rng, 5, drift=4.0)
        yield m, random_rows(rng, 5, drift=-4.0)
        if saturated:
            yield m, random_rows(rng, 6, spread=30.0 if name == "offline_ppo" else 3000.0)


def equation(bench: Bench, name: str) -> Check:
    found = (deviation(bench.prescribed(m, rows).loss, REFERENCES[name](rows, m)) for m, rows in _runs(name, saturated=True))
    return Check("loss", "equation", worst_of(found), EXACT)


def worst_of(deviations: Iterable[float]) -> float:
    """Their maximum; NaN is the worst of all."""
    every = list(deviations)
    return math.nan if any(map(math.isnan, every)) else max(every)


def gradient(bench: Bench, name: str, step: float = 1e-5) -> Check:
    """Autograd of the trainer's loss against central differences of the reference. Nothing may flow through KTO's reference point."""
    found = []
    for m, rows in _runs(name):
        gradients = bench.prescribed(m, rows).gradient
        for i, row in enumerate(rows):
            for j, whose in enumerate(WHOSE):
                if whose.startswith("mismatched"):
                    expected = 0.0
                else:
                    up, down = (
                        REFERENCES[name]([*rows[:i], replace(row, **{whose: getattr(row, whose) + move}), *rows[i + 1 :]], m)
                        for move in (step, -step)
                    )
                    expected = (up - down) / (2 * step)
                found.append(deviation(gradients[i, j].item(), expected))
    return Check("gradient", "gradient", worst_of(found), GRADIENT)


def logged(bench: Bench, name: str) -> Check:
    """rewards/* are beta (or 1) times the summed log-ratios to the reference, for every method; logps/* are sums."""
    found = []
    for m, rows in _runs(name):
        numbers = bench.prescribed(m, rows).logged
        gains = {side: [getattr(row, f"gain_{side}") for row in rows] for side in SIDES}
        means = {side: reward_scale(m) * math.fsum(values) / len(rows) for side, values in gains.items()}
        expected = {f"rewards/{side}": value for side, value in means.items()}
        expected |= {"rewards/margins": means["chosen"] - means["rejected"]}
        expected |= {f"logps/{side}": math.fsum(getattr(row, side) for row in rows) / len(rows) for side in SIDES}
        # Every desirable row against every undesirable one: they need not be pairs.
        against = itertools.product(*gains.values()) if name in UNPAIRED else zip(*gains.values(), strict=True)
        right = [a > b for a, b in against]
        expected["rewards/accuracies"] = sum(right) / len(right)
        found += [deviation(numbers.get(key, math.nan), value) for key, value in expected.items()]
    return Check("logged", "logged rewards and log-probs", worst_of(found), LOGGED)


def reduces(bench: Bench, reduction: Reduction) -> Check:
    found = []
    rng = random.Random(f"reduction/{reduction.method}")
    for drift in (4.0, -4.0):
        rows = random_rows(rng, 5, drift=drift, kind=reduction.rows)
        one = bench.prescribed(method(reduction.method, reduction.settings), rows).loss
        found.append(deviation(one, reduction.scale * bench.prescribed(method(reduction.other, reduction.other_settings), rows).loss))
    return Check("loss", reduction.text, worst_of(found), EXACT)


def without_kl(bench: Bench) -> Check:
    """KTO with a reference point that is clamped to 0: 1 - sigma(± beta r)."""
    found = []
    for row in random_rows(random.Random("without kl"), 5):
        below = replace(row, mismatched_chosen=row.ref_mismatched_chosen - 3, mismatched_rejected=row.ref_mismatched_rejected - 1)
        m = method("kto", SETTINGS["kto"][0])
        plain = sum(1 / (1 + math.exp(sign * m.beta * gain)) for sign, gain in ((1, row.gain_chosen), (-1, row.gain_rejected))) / 2
        found.append(deviation(bench.prescribed(m, [below]).loss, plain))
    return Check("loss", "KL below 0: no reference point", worst_of(found), EXACT)


def adds_up(bench: Bench) -> Check:
    """With an SFT term, a loss of ours: TRL's DPO plus sft_weight times SFT on the chosen."""
    rows = random_rows(random.Random("sft term"), 5)
    dpo, sft = (bench.prescribed(m, rows).loss for m in (method("dpo", {"beta": 0.3}), method("sft_chosen", {})))
    wholes = {weight: bench.prescribed(method("dpo", {"beta": 0.3, "sft_weight": weight}), rows).loss for weight in (0.0, 0.5, 3.0)}
    found = (deviation(whole, dpo + weight * sft) for weight, whole in wholes.items())
    return Check("loss", "DPO + w × SFT on chosen", worst_of(found), EXACT)


def only_desirable(bench: Bench) -> Check:
    rows = random_rows(random.Random("only desirable"), 5)
    found, sft = bench.prescribed(method("csft", {}), rows, sides=(0,)).loss, bench.prescribed(method("sft_chosen", {}), rows).loss
    return Check("loss", "desirable rows alone = SFT on chosen", deviation(found, sft), EXACT)


def value_gradient(bench: Bench, step: float = 1e-5) -> Check:
    """A shift of all values moves the value loss alone: advantages are fixed, and the policy's hidden states detached."""
    found = []
    for m, rows in _runs("offline_ppo"):
        last = [layer for layer in bench.prepared(m).critic.module if isinstance(layer, torch.nn.Linear)][-1]
        last.zero_grad()
        bench.prescribed(m, rows)
        assert last.bias.grad is not None
        moved = [[replace(each, values=[v + move for v in each.values]) for each in judged(rows)] for move in (step, -step)]
        up, down = (ppo_parts(completions, m).value for completions in moved)
        found.append(deviation(last.bias.grad.item(), m.value_weight * (up - down) / (2 * step)))
    return Check("gradient", "gradient of the values", worst_of(found), GRADIENT)


def extrapolation() -> Check:
    """De-coupled detection's imagined model, on logits of its own: the real models' are in tests/methods/test_spa.py."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    tokens = torch.randint(0, 5, (3, 4), generator=generator)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]])
    found = []
    for extent in (0.125, 0.5, 2.0):
        for i, value in enumerate(losses.extrapolated_logps(ours, theirs, tokens, mask, extent).tolist()):
            kept = [t for t in range(4) if mask[i, t]]
            mine, reference = ([each[i, t].tolist() for t in kept] for each in (ours, theirs))
            found.append(deviation(value, extrapolated(mine, reference, [int(tokens[i, t]) for t in kept], extent)))
    return Check("loss", "logits extrapolated", worst_of(found), EXACT)


def n_rows(name: str) -> int:
    """Rows of the real batch."""
    return 2 * N_PAIRS if name in UNPAIRED else N_PAIRS


def real_batch(bench: Bench, name: str) -> Check:
    """What a whole training logs at its first step, against the reference on log-probabilities by hand."""
    found = []
    for settings in SETTINGS[name]:
        m = method(name, settings, batch_size=n_rows(name))
        if name == "offline_ppo":
            expected = ppo_total(ppo_parts(bench.ppo_rows, m), m)
        elif name == "spa":
            expected = spa(bench.rows, m, threshold=0.0)  # nothing is distrusted at first
        else:
            expected = REFERENCES[name](bench.csft_rows if name == "csft" else bench.rows, m)
        found.append(deviation(bench.first_step(m).logs["loss"], expected))
    return Check("batch", "real batch", worst_of(found), SINGLE)


def accumulation(bench: Bench, name: str) -> Check:
    return accumulated(lambda **training: bench.first_step(method(name, SETTINGS[name][-1], **training)), n_rows(name))


def accumulated(first_step: Callable[..., FirstStep], n: int) -> Check:
    """All rows at once, or in two, four, eight parts: one gradient, one logged loss."""
    whole = first_step(batch_size=n)
    found = []
    for parts_of in (2, 4, 8):
        parts = first_step(batch_size=n // parts_of, gradient_accumulation_steps=parts_of)
        found.append((parts.gradient - whole.gradient).abs().max().item() / whole.gradient.abs().max().item())
        found.append(deviation(parts.logs["loss"], whole.logs["loss"]))
    return Check("batch", "batch size and accumulation", worst_of(found), SINGLE)
