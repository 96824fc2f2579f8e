"""Checks of every method's real trainer against references.py.

First at prescribed log-probabilities in float64: the trainer's own loss code runs on a stand-in model that
returns them. So TRL's losses and ours are compared with the same numbers. Then on a real model and batch,
with padding, a completion that is cut, EOS, and a policy that differs from the reference.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import random
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from bench.config import (
    Cdpo,
    Cpo,
    Csft,
    Dpo,
    Hinge,
    Ipo,
    IpoSummed,
    Kto,
    OfflinePpo,
    Orpo,
    Pretraining,
    RefinedDpo,
    Robust,
    SftChosen,
    SftTraining,
    Simpo,
    Slic,
    Trained,
    Training,
    WorldModel,
    name_of,
)
from bench.conformance.judged import (
    OUTSIDE,
    csft_rows,
    passes_through,
    ppo_rows,
    token_features,
    token_references,
    with_references,
)
from bench.conformance.references import (
    REFERENCES,
    REFINED,
    SPA_THRESHOLD,
    Row,
    extrapolated,
    judged,
    ppo_parts,
    ppo_total,
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

# Largest relative deviations that pass.
EXACT, SINGLE = 1e-9, 1e-5  # in float64 and in float32
GRADIENT = 1e-6  # between a gradient and a central difference
LOGGED = 1e-7  # TRL's accuracies are float32.
TEN_DIGITS = 1e-10  # absolute, of a golden value

Kind = type[Training]
# Kinds are in the order of tables.
KINDS: tuple[Kind, ...] = tuple(sorted(REFERENCES, key=(*get_args(Trained), RefinedDpo).index))


@dataclass(frozen=True)
class Check:
    """One comparison: the largest relative deviation, and the tolerance for it."""

    # Golden values have ten digits; a batch is in float32.
    kind: Literal["golden", "loss", "gradient", "logged", "batch"]
    name: str
    deviation: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.deviation <= self.tolerance  # NaN does not pass.


class Reduction(NamedTuple):
    """loss of `method` at `settings` = scale × loss of `other` at `other_settings`.

    `rows` is the kind of rows for which this holds.
    """

    text: str
    method: Kind
    settings: dict[str, Any]
    other: Kind
    other_settings: dict[str, Any]
    scale: float
    rows: str  # any; equal lengths (T = 10); equal references


EPS_0 = {"beta": 0.3, "label_smoothing": 0.0}
CALIBRATION = {"delta": 5.0, "lambda_nll": 0.0}
REDUCTIONS = [
    Reduction("ε 0 = DPO", Cdpo, EPS_0, Dpo, {"beta": 0.3}, 1, "any"),
    Reduction("ε 0 = DPO", Robust, EPS_0, Dpo, {"beta": 0.3}, 1, "any"),
    Reduction("α 0 = DPO", RefinedDpo, {"beta": 0.3, "alpha": 0.0, **REFINED}, Dpo, {"beta": 0.3}, 1, "any"),
    Reduction(
        "length T: T² × IPO with means at τT",
        IpoSummed,
        {"beta": 0.05},
        Ipo,
        {"beta": 0.5},
        100,
        "equal lengths",
    ),
    Reduction(
        "equal references: β × SLiC at δ 1/β, λ 0",
        Hinge,
        {"beta": 0.2},
        Slic,
        CALIBRATION,
        0.2,
        "equal references",
    ),
    Reduction(
        "equal references, λ 0: δ × hinge at β 1/δ",
        Slic,
        CALIBRATION,
        Hinge,
        {"beta": 0.2},
        5,
        "equal references",
    ),
    Reduction(
        "length T, γ 0: CPO at β/T, α 0",
        Simpo,
        {"beta": 2.0, "gamma": 0.0},
        Cpo,
        {"beta": 0.2, "alpha": 0.0},
        1,
        "equal lengths",
    ),
    Reduction("λ 0 = SFT on chosen", Orpo, {"lambda_or": 0.0}, SftChosen, {}, 1, "any"),
    Reduction(
        "equal references, α 0 = DPO",
        Cpo,
        {"beta": 0.3, "alpha": 0.0},
        Dpo,
        {"beta": 0.3},
        1,
        "equal references",
    ),
]

TRAINING = {
    "learning_rate": 1e-9,  # Checks look at one step before it is taken.
    "num_train_epochs": 1.0,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw_torch",
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
}


def method(kind: Kind, settings: Mapping[str, Any], **training: Any) -> Any:
    return kind.model_validate({"name": name_of(kind), **TRAINING, **training, **settings})


def deviation(value: float, expected: float) -> float:
    return abs(value - expected) / max(1.0, abs(expected))


MAX_LENGTH = 32  # tokens; the longest completions are cut
N_PAIRS = 8

# Prescribed log-probabilities -------------------------------------------------------------------------------

# Prompt token of the first pair. The tokens of a completion are its place in COMPLETIONS + 1.
FIRST_PROMPT = 10
COMPLETIONS = ("chosen", "rejected", "mismatched_chosen", "mismatched_rejected")


class PrescribedStates(torch.nn.Module):
    """Hidden states with a value as their first number.

    Sums are spread over the tokens of completions; places outside hold OUTSIDE.
    """

    def forward(self, sums: torch.Tensor, shares: torch.Tensor) -> SimpleNamespace:
        values = torch.where(shares > 0, sums[:, None] * shares / shares.sum(dim=1, keepdim=True), OUTSIDE)
        states = torch.zeros(*values.shape, TINY.hidden_size, dtype=values.dtype)
        states[..., 0] = values
        return SimpleNamespace(last_hidden_state=torch.cat([states, states[:, -1:]], dim=1))


class Prescribed(torch.nn.Module):
    """A model with prescribed log-probabilities.

    The summed log-probabilities of a table (pairs, 4) are spread unevenly over the tokens of the completions.
    """

    def __init__(self, rows: Sequence[Row]):
        super().__init__()
        self.table = torch.nn.Parameter(
            torch.tensor(
                [[getattr(row, column) for column in COMPLETIONS] for row in rows], dtype=torch.float64
            )
        )
        self.values = torch.tensor(
            [[row.value_chosen, row.value_rejected, 0.0, 0.0] for row in rows], dtype=torch.float64
        )
        self.base_model = PrescribedStates()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        inside = (labels[:, 1:] != -100).double()
        shares = inside * torch.arange(1, inside.shape[1] + 1)
        place = input_ids[:, 0] - FIRST_PROMPT, input_ids[:, 1] - 1
        sums = self.table[place]
        self.base_model(self.values[place], shares)
        nothing = torch.zeros_like(inside)
        per_token = sums[:, None] * shares / shares.sum(dim=1, keepdim=True)
        return SimpleNamespace(
            log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )


def _pair_features(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    features = [
        {
            "prompt_ids": [FIRST_PROMPT + i],
            "chosen_ids": [1] * row.chosen_length,
            "rejected_ids": [2] * row.rejected_length,
        }
        for i, row in enumerate(rows)
    ]
    return features, {
        "ref_chosen_logps": [row.ref_chosen for row in rows],
        "ref_rejected_logps": [row.ref_rejected for row in rows],
    }


def _kto_features(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    features = [
        {
            "prompt_ids": [FIRST_PROMPT + i],
            "completion_ids": [1 + side] * (row.rejected_length if side else row.chosen_length),
            "KL_completion_ids": [3 + side] * 7,
            "label": not side,
        }
        for i, row in enumerate(rows)
        for side in (0, 1)
    ]
    own = [value for row in rows for value in (row.ref_chosen, row.ref_rejected)]
    partners = [value for row in rows for value in (row.ref_mismatched_chosen, row.ref_mismatched_rejected)]
    return features, {"ref_logps": own, "ref_KL_logps": partners}


def random_rows(
    rng: random.Random, n: int, *, spread: float = 3.0, drift: float = 0.0, kind: str = "any"
) -> list[Row]:
    """n random pairs, with the policy `drift` ± `spread` nats above the reference.

    `kind` is the `rows` of a Reduction.
    """
    rows = []
    for _ in range(n):
        lengths = (
            [10, 10]
            if kind == "equal lengths"
            else [rng.randint(1, MAX_LENGTH - 1), rng.randint(1, MAX_LENGTH - 1)]
        )
        sums = [-rng.uniform(0.05, 4) * length for length in (*lengths, 7, 7)]
        references = [value - rng.gauss(drift, spread) for value in sums]
        if kind == "equal references":
            references = [-20.0] * 4
        numbers = dict(
            zip(
                (*COMPLETIONS, *(f"ref_{column}" for column in COMPLETIONS)),
                (*sums, *references),
                strict=True,
            )
        )
        values = {
            f"value_{side}": rng.gauss(0, 1) * length
            for side, length in zip(("chosen", "rejected"), lengths, strict=True)
        }
        rows.append(Row(**numbers, **values, chosen_length=lengths[0], rejected_length=lengths[1]))
    return rows


# A real model and batch -------------------------------------------------------------------------------------

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
    """Records the first logged numbers and the gradient of the first step."""

    def __init__(self) -> None:
        self.logs: dict[str, float] = {}
        self.gradient = torch.empty(0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **state_of_trainer: Any) -> None:
        if not self.gradient.numel():
            parts = [
                p.grad.flatten()
                for _, p in sorted(state_of_trainer["model"].named_parameters())
                if p.grad is not None
            ]
            self.gradient = torch.cat(parts).detach().clone()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs and not self.logs:
            self.logs = dict(logs)


class Bench:
    """Every method's trainer over a tiny model, with the numbers that it computes.

    `close` restores the process's settings.
    """

    def __init__(self) -> None:
        # Every training ends with a garbage collection. Without gc.freeze it would take most of the time.
        transformers_logging.set_verbosity_error()  # Models with random weights are intended here.
        transformers_logging.disable_progress_bar()
        gc.collect()
        gc.freeze()
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._folder = tempfile.TemporaryDirectory(prefix="bench-conformance-")
        self.folder = Path(self._folder.name)
        self.tokenizer = new_tokenizer(4 * MAX_LENGTH)  # Texts are tokenized first and then cut.
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
        completions = [(text(a), text(b)) for a, b in lengths]
        partners = [*completions[1:], completions[0]]  # of another prompt
        return [
            Pair(str(i), [{"role": "user", "content": text(rng.randint(2, 5))}], *both, *partner)
            for i, (both, partner) in enumerate(zip(completions, partners, strict=True))
        ]

    def first_settings(self, kind: Kind) -> Any:
        return method(kind, REFERENCES[kind].settings[0])

    def model(self, seed: int) -> Any:
        return new_model(
            TINY.model_copy(update={"pretraining": TINY.pretraining.model_copy(update={"seed": seed})}),
            self.tokenizer,
        )

    def _by_hand(self) -> list[Row]:
        """Log-probabilities of policy (seed 0) and reference (seed 1), computed by hand.

        One row at a time, unpadded, in float64, with the plain forward pass.
        """
        models = [self.model(seed).double().eval() for seed in (0, 1)]
        ended = set()
        rows = []
        for pair in self.pairs:
            numbers: dict[str, Any] = {}
            for column in COMPLETIONS:
                prompt, completion = self.ids(pair.prompt, getattr(pair, column))
                ended.add(completion[-1] == self.tokenizer.eos_token_id)
                for prefix, model in zip(("", "ref_"), models, strict=True):
                    numbers[f"{prefix}{column}"] = math.fsum(self.token_logps(model, prompt, completion))
                if column in ("chosen", "rejected"):
                    numbers[f"{column}_length"] = len(completion)
            rows.append(Row(**numbers))
        if ended != {True, False} or len({row.chosen_length for row in rows}) < 4:
            raise AssertionError(
                "the real batch must hold completions with EOS, ones that are cut, and padding"
            )
        return rows

    @staticmethod
    @torch.no_grad()
    def token_logps(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
        logps = torch.log_softmax(model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0], -1)
        places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        return [logps[place, token].item() for place, token in zip(places, completion, strict=True)]

    def ids(self, prompt: list[Message], completion: str) -> tuple[list[int], list[int]]:
        """Token ids (prompt, completion) of the rendered text, computed without bench.models.tokenize."""
        question: Any = [dict(message) for message in prompt]
        conversation = [*question, {"role": "assistant", "content": completion}]
        before, whole = (
            self.tokenizer(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens),
                add_special_tokens=False,
            )["input_ids"]
            for messages, opens in ((question, True), (conversation, False))
        )
        if whole[: len(before)] != before:
            raise AssertionError("a prompt's tokens must begin those of prompt and completion")
        return before, whole[len(before) : MAX_LENGTH]

    def trainer(self, settings: Any, callback: TrainerCallback | None = None) -> Any:
        """The method's real trainer over the real pairs, with the reference log-probs computed by hand."""
        reference = {}
        for pair, row in zip(self.pairs, self.rows, strict=True):
            for column in COMPLETIONS:
                name = f"train/{pair.id}/{column}"
                reference[name] = Logps(name, getattr(row, f"ref_{column}"), 0)
        whole = TrainSettings(method=settings, max_length=MAX_LENGTH, dtype="float32", seed=0)
        out = self.folder
        tokenizer = copy.deepcopy(self.tokenizer)  # csft adds tokens to it.
        job = TrainingJob(
            whole, self.model(0), tokenizer, self.pairs, reference, out, callback or TrainerCallback()
        )
        trainer = load(settings.name).make_trainer(job)
        return with_references(trainer, self.ppo_rows) if isinstance(settings, OfflinePpo) else trainer

    def first_step(self, settings: Any) -> FirstStep:
        record = FirstStep()
        with quiet():
            self.trainer(settings, record).train()
        return record

    def prepared(self, settings: Any) -> Any:
        """The method's trainer for prescribed log-probabilities and values."""
        if settings not in self._prescribed:
            self._prescribed[settings] = trainer = self.trainer(settings)
            trainer.model.train()
            if isinstance(settings, OfflinePpo):
                passes_through(trainer.critic.module)
        return self._prescribed[settings]

    def prescribed(
        self, settings: Any, rows: Sequence[Row], sides: Sequence[int] = (0, 1)
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        """Returns (loss, gradient by the table (pairs, 4), logged numbers) at prescribed log-probabilities.

        `sides`: the completions of each pair that csft and offline_ppo see, chosen (0) or rejected (1).
        """
        trainer, model = self.prepared(settings), Prescribed(rows)
        if isinstance(settings, RefinedDpo):
            trainer.threshold.seen = deque([SPA_THRESHOLD] * settings.window, settings.window)
        if settings.feedback == "rows" and not settings.with_partners:
            features = token_features(rows, FIRST_PROMPT, sides)
            inputs = trainer.data_collator([feature | {"row": 0} for feature in features])
            references = token_references(rows, sides, inputs["input_ids"].shape[1] - 1)
        else:
            features, references = (_kto_features if settings.with_partners else _pair_features)(rows)
            inputs = trainer.data_collator([feature | {"row": 0} for feature in features])
        # The collator would turn reference log-probs into float32.
        inputs |= {name: torch.tensor(values, dtype=torch.float64) for name, values in references.items()}
        trainer._metrics["train"].clear()
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        gradient = torch.zeros_like(model.table) if model.table.grad is None else model.table.grad
        return (
            loss.detach(),
            gradient,
            {name: values[-1] for name, values in trainer._metrics["train"].items()},
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the trainer's summary line."""
    with contextlib.redirect_stdout(None):
        yield


# Checks -----------------------------------------------------------------------------------------------------


def quick_checks(bench: Bench, kind: Kind) -> Iterator[Check]:
    """Checks at prescribed log-probabilities, milliseconds each. Every mutant must fail one of them."""
    yield golden(bench, kind)
    yield first_step(bench, kind)
    yield equation(bench, kind)
    yield gradient(bench, kind)
    yield logged(bench, kind)
    for reduction in REDUCTIONS:
        if reduction.method is kind:
            yield reduces(bench, reduction)
    if kind in OF_ONE_METHOD:
        yield OF_ONE_METHOD[kind](bench)


def checks(bench: Bench, kind: Kind) -> Iterator[Check]:
    yield from quick_checks(bench, kind)
    yield real_batch(bench, kind)
    if not kind.couples_rows:
        yield accumulation(bench, kind)


def golden(bench: Bench, kind: Kind) -> Check:
    loss, _, _ = bench.prescribed(bench.first_settings(kind), [REFERENCES[kind].row])
    return Check("golden", "golden value", abs(loss.item() - REFERENCES[kind].golden), TEN_DIGITS)


def first_step(bench: Bench, kind: Kind) -> Check:
    """With policy = reference the loss has its known value.

    A loss without a reference is checked otherwise: another reference changes nothing.
    """
    worst = 0.0
    rng = random.Random(f"first step/{name_of(kind)}")
    for settings in REFERENCES[kind].settings:
        m, rows = method(kind, settings), random_rows(rng, 4)
        at_first_step = REFERENCES[kind].at_first_step
        if at_first_step is None:
            others = [
                replace(row, ref_chosen=row.ref_chosen - 5, ref_rejected=row.ref_rejected + 9) for row in rows
            ]
            worst = max(
                worst, deviation(bench.prescribed(m, others)[0].item(), bench.prescribed(m, rows)[0].item())
            )
            continue
        same = [
            replace(row, **{f"ref_{column}": getattr(row, column) for column in COMPLETIONS}) for row in rows
        ]
        worst = max(worst, deviation(bench.prescribed(m, same)[0].item(), at_first_step(same, m)))
    return Check(
        "loss", "policy = reference" if kind.has_reference else "reference plays no part", worst, EXACT
    )


def _batches(kind: Kind) -> list[list[Row]]:
    """Batches for every case.

    One pair; policies above and below the reference, so that clamps do and do not bite; log-ratios that
    saturate everything. Those of offline_ppo do not saturate, because a ratio of e^3000 overflows.
    """
    rng = random.Random(f"rows/{name_of(kind)}")
    return [
        random_rows(rng, 1),
        random_rows(rng, 5, drift=4.0),
        random_rows(rng, 5, drift=-4.0),
        random_rows(rng, 6, spread=30.0 if kind is OfflinePpo else 3000.0),
    ]


def equation(bench: Bench, kind: Kind) -> Check:
    worst = 0.0
    for settings in REFERENCES[kind].settings:
        m = method(kind, settings)
        for rows in _batches(kind):
            worst = worst_of(
                worst, deviation(bench.prescribed(m, rows)[0].item(), REFERENCES[kind].loss(rows, m))
            )
    return Check("loss", "equation", worst, EXACT)


def worst_of(*deviations: float) -> float:
    """The maximum; NaN is the worst of all."""
    return math.nan if any(map(math.isnan, deviations)) else max(deviations)


def gradient(bench: Bench, kind: Kind, step: float = 1e-5) -> Check:
    """Compares autograd of the trainer's loss with central differences of the reference.

    No gradient may flow through KTO's reference point.
    """
    worst = 0.0
    for settings in REFERENCES[kind].settings:
        m = method(kind, settings)
        for rows in _batches(kind)[:3]:
            gradients = bench.prescribed(m, rows)[1]
            for i, row in enumerate(rows):
                for j, column in enumerate(COMPLETIONS):
                    if column.startswith("mismatched"):
                        expected = 0.0
                    else:
                        up, down = (
                            REFERENCES[kind].loss(
                                [
                                    *rows[:i],
                                    replace(row, **{column: getattr(row, column) + move}),
                                    *rows[i + 1 :],
                                ],
                                m,
                            )
                            for move in (step, -step)
                        )
                        expected = (up - down) / (2 * step)
                    worst = worst_of(worst, deviation(gradients[i, j].item(), expected))
    return Check("gradient", "gradient", worst, GRADIENT)


def logged(bench: Bench, kind: Kind) -> Check:
    """Checks the logged rewards/* and logps/*.

    For every method rewards/* are beta (or 1) times the summed log-ratios to the reference; logps/* are sums.
    """
    worst = 0.0
    for settings in REFERENCES[kind].settings:
        m = method(kind, settings)
        for rows in _batches(kind)[:3]:
            numbers = bench.prescribed(m, rows)[2]
            gains = {side: [getattr(row, f"gain_{side}") for row in rows] for side in ("chosen", "rejected")}
            means = {side: reward_scale(m) * math.fsum(values) / len(rows) for side, values in gains.items()}
            expected = {f"rewards/{side}": value for side, value in means.items()}
            expected |= {"rewards/margins": means["chosen"] - means["rejected"]}
            expected |= {
                f"logps/{side}": math.fsum(getattr(row, side) for row in rows) / len(rows)
                for side in ("chosen", "rejected")
            }
            against = zip(gains["chosen"], gains["rejected"], strict=True)
            # Rows need not be pairs: each desirable row is compared with each undesirable one.
            if kind.feedback == "rows":
                against = ((a, b) for a in gains["chosen"] for b in gains["rejected"])  # type: ignore[assignment]
            right = [a > b for a, b in against]
            expected["rewards/accuracies"] = sum(right) / len(right)
            worst = worst_of(
                worst, *(deviation(numbers.get(key, math.nan), value) for key, value in expected.items())
            )
    return Check("logged", "logged rewards and log-probs", worst, LOGGED)


def reduces(bench: Bench, reduction: Reduction) -> Check:
    worst = 0.0
    rng = random.Random(f"reduction/{name_of(reduction.method)}")
    for drift in (4.0, -4.0):
        rows = random_rows(rng, 5, drift=drift, kind=reduction.rows)
        one = bench.prescribed(method(reduction.method, reduction.settings), rows)[0].item()
        other = bench.prescribed(method(reduction.other, reduction.other_settings), rows)[0].item()
        worst = worst_of(worst, deviation(one, reduction.scale * other))
    return Check("loss", reduction.text, worst, EXACT)


def without_kl(bench: Bench) -> Check:
    """KTO with its reference point clamped to 0 is 1 - sigma(± beta r)."""
    worst = 0.0
    for row in random_rows(random.Random("without kl"), 5):
        below = replace(
            row,
            mismatched_chosen=row.ref_mismatched_chosen - 3,
            mismatched_rejected=row.ref_mismatched_rejected - 1,
        )
        m = bench.first_settings(Kto)
        plain = (
            sum(
                1 / (1 + math.exp(sign * m.beta * gain))
                for sign, gain in ((1, row.gain_chosen), (-1, row.gain_rejected))
            )
            / 2
        )
        worst = worst_of(worst, deviation(bench.prescribed(m, [below])[0].item(), plain))
    return Check("loss", "KL below 0: no reference point", worst, EXACT)


def adds_up(bench: Bench) -> Check:
    """DPO with an SFT term (a loss of ours) is TRL's DPO plus sft_weight times SFT on the chosen."""
    worst = 0.0
    rows = random_rows(random.Random("sft term"), 5)
    for weight in (0.0, 0.5, 3.0):
        whole = bench.prescribed(method(Dpo, {"beta": 0.3, "sft_weight": weight}), rows)[0]
        parts = (
            bench.prescribed(method(Dpo, {"beta": 0.3}), rows)[0]
            + weight * bench.prescribed(method(SftChosen, {}), rows)[0]
        )
        worst = worst_of(worst, deviation(whole.item(), parts.item()))
    return Check("loss", "DPO + w × SFT on chosen", worst, EXACT)


def only_desirable(bench: Bench) -> Check:
    rows = random_rows(random.Random("only desirable"), 5)
    csft, sft = (
        bench.prescribed(method(Csft, {}), rows, sides=(0,))[0],
        bench.prescribed(method(SftChosen, {}), rows)[0],
    )
    return Check("loss", "desirable rows alone = SFT on chosen", deviation(csft.item(), sft.item()), EXACT)


def value_gradient(bench: Bench, step: float = 1e-5) -> Check:
    """A shift of all values moves only the value loss.

    Advantages are fixed, and the policy's hidden states are detached.
    """
    worst = 0.0
    for settings in REFERENCES[OfflinePpo].settings:
        m = method(OfflinePpo, settings)
        last = [layer for layer in bench.prepared(m).critic.module if isinstance(layer, torch.nn.Linear)][-1]
        for rows in _batches(OfflinePpo)[:3]:
            last.zero_grad()
            bench.prescribed(m, rows)
            assert last.bias.grad is not None
            moved = [
                [replace(each, values=[v + move for v in each.values]) for each in judged(rows)]
                for move in (step, -step)
            ]
            up, down = (ppo_parts(completions, m).value for completions in moved)
            worst = worst_of(
                worst, deviation(last.bias.grad.item(), m.value_weight * (up - down) / (2 * step))
            )
    return Check("gradient", "gradient of the values", worst, GRADIENT)


def extrapolation() -> Check:
    """De-coupled detection's imagined model on given logits.

    tests/methods/test_spa.py checks it on the logits of real models.
    """
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    tokens = torch.randint(0, 5, (3, 4), generator=generator)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]])
    worst = 0.0
    for extent in (0.125, 0.5, 2.0):
        values = losses.extrapolated_logps(ours, theirs, tokens, mask, extent).tolist()
        for i, value in enumerate(values):
            kept = [t for t in range(4) if mask[i, t]]
            policy, reference = ([each[i, t].tolist() for t in kept] for each in (ours, theirs))
            worst = worst_of(
                worst,
                deviation(value, extrapolated(policy, reference, [int(tokens[i, t]) for t in kept], extent)),
            )
    return Check("loss", "logits extrapolated", worst, EXACT)


# Further checks of single methods.
OF_ONE_METHOD: dict[Kind, Callable[[Bench], Check]] = {
    Kto: without_kl,
    Dpo: adds_up,
    Csft: only_desirable,
    OfflinePpo: value_gradient,
    RefinedDpo: lambda _: extrapolation(),
}


def n_rows(kind: Kind) -> int:
    """Number of rows of the real batch."""
    return 2 * N_PAIRS if kind.feedback == "rows" else N_PAIRS


def real_batch(bench: Bench, kind: Kind) -> Check:
    """The loss logged at a whole training's first step equals the reference on log-probabilities by hand."""
    worst = 0.0
    for settings in REFERENCES[kind].settings:
        m = method(kind, settings, batch_size=n_rows(kind))
        if kind is OfflinePpo:
            expected = ppo_total(ppo_parts(bench.ppo_rows, m), m)
        elif kind is RefinedDpo:
            expected = spa(bench.rows, m, threshold=0.0)  # Nothing is distrusted at first.
        else:
            expected = REFERENCES[kind].loss(bench.csft_rows if kind is Csft else bench.rows, m)
        worst = worst_of(worst, deviation(bench.first_step(m).logs["loss"], expected))
    return Check("batch", "real batch", worst, SINGLE)


def accumulation(bench: Bench, kind: Kind) -> Check:
    """Eight pairs at once, or in two, four, eight parts: the same gradient and logged loss."""
    settings = REFERENCES[kind].settings[-1]
    whole = bench.first_step(method(kind, settings, batch_size=n_rows(kind)))
    worst = 0.0
    for n_parts in (2, 4, 8):
        size = n_rows(kind) // n_parts
        parts = bench.first_step(method(kind, settings, batch_size=size, gradient_accumulation_steps=n_parts))
        apart = (parts.gradient - whole.gradient).abs().max().item() / whole.gradient.abs().max().item()
        worst = worst_of(worst, apart, deviation(parts.logs["loss"], whole.logs["loss"]))
    return Check("batch", "batch size and accumulation", worst, SINGLE)
