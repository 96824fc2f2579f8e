"""Each method's loss from its paper, written a second time.

Plain floats, one row after another; no torch, and no code shared with losses.py or TRL. Every function gives
the mean loss of a batch. Log-probabilities are sums over completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from bench.config import (
    Cdpo,
    Cpo,
    Csft,
    Dpo,
    Hinge,
    Ipo,
    IpoSummed,
    Kto,
    KtoPair,
    OfflinePpo,
    Orpo,
    RefinedDpo,
    Robust,
    SftChosen,
    Simpo,
    Slic,
    Training,
)


@dataclass(frozen=True)
class Row:
    """One pair: summed log-probabilities of policy and reference, and lengths in tokens.

    The same of KTO's mismatched completions, and a critic's values.
    """

    chosen: float
    rejected: float
    ref_chosen: float
    ref_rejected: float
    chosen_length: int
    rejected_length: int
    mismatched_chosen: float = 0.0
    mismatched_rejected: float = 0.0
    ref_mismatched_chosen: float = 0.0
    ref_mismatched_rejected: float = 0.0
    value_chosen: float = 0.0  # sum of a critic's values over the completion's tokens
    value_rejected: float = 0.0

    @property
    def gain_chosen(self) -> float:
        return self.chosen - self.ref_chosen

    @property
    def gain_rejected(self) -> float:
        return self.rejected - self.ref_rejected

    @property
    def delta(self) -> float:
        return self.gain_chosen - self.gain_rejected


# Values at which methods are checked ------------------------------------------------------------------------

OURS, TRL = "ours", "TRL"
HALOS = {
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "value_weight": 0.01,
    "kl_weight": 0.1,
    "value_max_grad_norm": 0.1,
}
REFINED = {"distrusted": 0.1, "window": 50, "threshold": "pairs", "delay": 0.2, "decoupling": 0.0}
# Log-probabilities -20 and -30, the reference's -22 and -28, lengths 10 and 12, a KL of 3.
GOLDEN_ROW = Row(
    -20,
    -30,
    -22,
    -28,
    10,
    12,
    mismatched_chosen=-40,
    mismatched_rejected=-40,
    ref_mismatched_chosen=-43,
    ref_mismatched_rejected=-43,
)
# Ratios 1.5 and 2.25 of two desirable tokens, 0.4 of an undesirable one; values 0.1, 0.2 and 0.4.
PPO_ROW = Row(
    -3.0, -2.0, -3.0 - 3 * math.log(1.5), -2.0 - math.log(0.4), 2, 1, value_chosen=0.3, value_rejected=0.4
)  # fmt: skip

Loss = Callable[[Sequence[Row], Any], float]
L = TypeVar("L", bound=Loss)


class Facts(NamedTuple):
    """Facts of a method for the table.

    Δ and r are differences and sums of log π/π_ref. The mean of a completion is over its tokens, EOS
    included.
    """

    paper: str
    equation: str
    computed_by: str
    elsewhere: str  # other forms under this name; names and versions as read in their code or threads


@dataclass(frozen=True)
class Reference:
    """A method's loss from its paper, with test values for its trainer."""

    loss: Loss
    facts: Facts
    settings: Sequence[dict[str, Any]]
    row: Row
    golden: float  # the loss of `row` at the first settings
    at_first_step: Loss | None  # the loss while policy = reference; None for a loss without a reference


REFERENCES: dict[type[Training], Reference] = {}


def reference(
    kind: type[Training],
    *,
    settings: Sequence[dict[str, Any]],
    golden: float,
    row: Row = GOLDEN_ROW,
    at_first_step: Loss | None = None,
    **facts: str,
) -> Callable[[L], L]:
    """Decorator: registers a function as the reference of a method, with its facts and golden value."""

    def registered(loss: L) -> L:
        REFERENCES[kind] = Reference(loss, Facts(**facts), settings, row, golden, at_first_step)
        return loss

    return registered


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@reference(
    SftChosen,
    paper="Preferred-FT in 2305.18290",
    equation="-log π(y_w)/|y_w|",
    computed_by=OURS,
    elsewhere="TRL's `sft` and SFTTrainer pool the tokens of a batch",
    settings=[{}],
    golden=2.0,
)
def sft_chosen(rows: Sequence[Row], m: Any) -> float:
    """Negative log-likelihood of the chosen completion per token; each completion counts once."""
    return mean([-row.chosen / row.chosen_length for row in rows])


@reference(
    Dpo,
    paper="2305.18290 eq. 7; 2404.19733",
    equation="-log σ(βΔ) - w log π(y_w)/|y_w|",
    computed_by=f"{TRL} sigmoid; with w {OURS}",
    elsewhere=(
        "TRL's `sft` with `sigmoid` pools the tokens of a batch; IRPO weighs the DPO term; "
        "HALOs' reward accuracy compares chosen of one prompt with rejected of another"
    ),
    settings=[
        {"beta": 0.1},
        {"beta": 2.0},
        {"beta": 0.1, "sft_weight": 0.5},
        {"beta": 1.0, "sft_weight": 2.0},
    ],
    golden=0.5130152524,
    at_first_step=lambda rows, m: math.log(2) + m.sft_weight * sft_chosen(rows, m),
)
def dpo(rows: Sequence[Row], m: Any) -> float:
    """2305.18290, eq. 7, plus the SFT term of 2404.19733."""
    preference = mean([minus_log_sigmoid(m.beta * row.delta) for row in rows])
    return preference - m.sft_weight * mean([row.chosen / row.chosen_length for row in rows])


@reference(
    Cdpo,
    paper="Mitchell 2023",
    equation="-(1-ε) log σ(βΔ) - ε log σ(-βΔ)",
    computed_by=OURS,
    elsewhere="TRL since v0.29: `sigmoid` ignores label_smoothing without an error, which leaves plain DPO",
    settings=[{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 1.0, "label_smoothing": 0.3}],
    golden=0.5530152524,
    at_first_step=lambda rows, m: math.log(2),
)
def cdpo(rows: Sequence[Row], m: Any) -> float:
    """Mitchell 2023: cross-entropy between the label's probability 1 - eps and sigma(beta delta)."""
    eps = m.label_smoothing
    return mean(
        [
            (1 - eps) * minus_log_sigmoid(m.beta * row.delta) + eps * minus_log_sigmoid(-m.beta * row.delta)
            for row in rows
        ]
    )


SPA_THRESHOLD = 0.6  # In checks a label with a lower confidence is distrusted.


@reference(
    RefinedDpo,
    paper="2406.04412 eq. 9 to 12",
    equation="-(1-αz) log σ(βΔ) - αz log σ(-βΔ)",
    computed_by=OURS,
    elsewhere=(
        "its release: de-coupled detection is off in every config, the threshold is one of batch means, two iterations; "
        "TRL: none. Labels and rounds: see method=spa"
    ),
    settings=[{"beta": 0.1, "alpha": 0.1, **REFINED}, {"beta": 1.0, "alpha": 0.4, **REFINED}],
    golden=0.5530152524,  # for a distrusted label: the value of cDPO with ε = α
    at_first_step=lambda rows, m: math.log(2),
)
def spa(rows: Sequence[Row], m: Any, threshold: float = SPA_THRESHOLD) -> float:
    """2406.04412, eq. 9 and 10.

    A share alpha of the label moves to the other side if the policy's confidence is below `threshold`.
    """
    losses = []
    for row in rows:
        share = m.alpha if sigmoid(m.beta * row.delta) < threshold else 0.0
        losses.append(
            (1 - share) * minus_log_sigmoid(m.beta * row.delta)
            + share * minus_log_sigmoid(-m.beta * row.delta)
        )
    return mean(losses)


def extrapolated(
    policy: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    tokens: Sequence[int],
    extent: float,
) -> float:
    """2406.04412, eq. 11 and 12: log-probability of tokens under the imagined model.

    Its logits are (1 + lambda) h - lambda h_ref, token by token.
    """
    total = 0.0
    for h, h_ref, token in zip(policy, reference, tokens, strict=True):
        imagined = [(1 + extent) * a - extent * b for a, b in zip(h, h_ref, strict=True)]
        top = max(imagined)
        total += imagined[token] - top - math.log(math.fsum(math.exp(each - top) for each in imagined))
    return total


@reference(
    Robust,
    paper="2403.00409",
    equation="[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)",
    computed_by=f"{TRL} robust",
    elsewhere="none known",
    settings=[{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 1.0, "label_smoothing": 0.3}],
    golden=0.4630152524,
    at_first_step=lambda rows, m: math.log(2),
)
def robust(rows: Sequence[Row], m: Any) -> float:
    """2403.00409: the unbiased estimate of the clean loss under flips with probability eps."""
    eps = m.label_smoothing
    clean, flipped = ([minus_log_sigmoid(sign * m.beta * row.delta) for row in rows] for sign in (1, -1))
    return mean([((1 - eps) * a - eps * b) / (1 - 2 * eps) for a, b in zip(clean, flipped, strict=True)])


@reference(
    Ipo,
    paper="2310.12036 eq. 17, means",
    equation="(r_w/|y_w| - r_l/|y_l| - 1/(2τ))²",
    computed_by=f"{TRL} ipo",
    elsewhere="sums in OpenRLHF, oxRL, rlhf-book, turbo-alignment; HALOs divides by tokens of non-zero log-ratio, 0/0 at step 0",
    settings=[{"beta": 0.1}, {"beta": 1.0}],
    golden=21.4677777778,
    at_first_step=lambda rows, m: 1 / (4 * m.beta**2),
)
def ipo(rows: Sequence[Row], m: Any) -> float:
    """2310.12036, eq. 17, with log-ratios per token."""
    h = [row.gain_chosen / row.chosen_length - row.gain_rejected / row.rejected_length for row in rows]
    return mean([(each - 0.5 / m.beta) ** 2 for each in h])


@reference(
    IpoSummed,
    paper="2310.12036 eq. 17",
    equation="(Δ - 1/(2τ))²",
    computed_by=OURS,
    elsewhere="TRL v0.7.5 to v0.7.10 and SPA's fork call it IPO",
    settings=[{"beta": 0.1}, {"beta": 1.0}],
    golden=1.0,
    at_first_step=lambda rows, m: 1 / (4 * m.beta**2),
)
def ipo_summed(rows: Sequence[Row], m: Any) -> float:
    """2310.12036, eq. 17, as printed."""
    return mean([(row.delta - 0.5 / m.beta) ** 2 for row in rows])


@reference(
    Hinge,
    paper="2309.06657",
    equation="max(0, 1 - βΔ)",
    computed_by=f"{TRL} hinge",
    elsewhere="not SLiC-HF: it has a reference and no NLL term",
    settings=[{"beta": 0.1}, {"beta": 1.0}],
    golden=0.6,
    at_first_step=lambda rows, m: 1.0,
)
def hinge(rows: Sequence[Row], m: Any) -> float:
    """2309.06657, hinge-norm."""
    return mean([max(0.0, 1 - m.beta * row.delta) for row in rows])


@reference(
    Slic,
    paper="2305.10425 eq. 4",
    equation="max(0, δ - log π(y_w) + log π(y_l)) - λ log π(y_w)",
    computed_by=OURS,
    elsewhere="TRL's DPOTrainer: none; HALOs main mixes a per-sequence and a per-token term",
    settings=[{"delta": 1.0, "lambda_nll": 0.1}, {"delta": 10.0, "lambda_nll": 0.5}],
    golden=2.0,
)
def slic(rows: Sequence[Row], m: Any) -> float:
    """2305.10425, eq. 4, with y_ref := y_w."""
    calibration = [max(0.0, m.delta - row.chosen + row.rejected) for row in rows]
    return mean(calibration) - m.lambda_nll * mean([row.chosen for row in rows])


@reference(
    Simpo,
    paper="2405.14734 eq. 6",
    equation="-log σ(β [log π(y_w)/|y_w| - log π(y_l)/|y_l|] - γ)",
    computed_by=OURS,
    elsewhere="TRL (experimental CPO) adds an NLL term unless cpo_alpha=0; SimPO's and HALOs' code set γ/β",
    settings=[{"beta": 2.0, "gamma": 1.6}, {"beta": 10.0, "gamma": 3.0}],
    golden=1.0374879505,
)
def simpo(rows: Sequence[Row], m: Any) -> float:
    """2405.14734, eq. 6."""
    return mean(
        [
            minus_log_sigmoid(
                m.beta / row.chosen_length * row.chosen
                - m.beta / row.rejected_length * row.rejected
                - m.gamma
            )
            for row in rows
        ]
    )


def _odds(mean_logps: float) -> float:
    p = math.exp(mean_logps)
    return p / (1 - p)


@reference(
    Orpo,
    paper="2403.07691 eq. 6, 7",
    equation="-log π(y_w)/|y_w| - λ log σ(log odds(y_w) - log odds(y_l))",
    computed_by=OURS,
    elsewhere="TRL (experimental): the NLL pools the tokens of a batch and counts the prompt's; λ is called beta",
    settings=[{"lambda_or": 0.1}, {"lambda_or": 1.0}],
    golden=2.0451931604,
)
def orpo(rows: Sequence[Row], m: Any) -> float:
    """2403.07691, eq. 6 and 7: NLL + lambda · L_OR."""
    nll = mean([-row.chosen / row.chosen_length for row in rows])
    ratios = [
        _odds(row.chosen / row.chosen_length) / _odds(row.rejected / row.rejected_length) for row in rows
    ]
    return nll + m.lambda_or * mean([minus_log_sigmoid(math.log(ratio)) for ratio in ratios])


@reference(
    Cpo,
    paper="2401.08417",
    equation="-log σ(β [log π(y_w) - log π(y_l)]) - α log π(y_w)/|y_w|",
    computed_by=OURS,
    elsewhere="TRL (experimental): the NLL pools the tokens of a batch",
    settings=[{"beta": 0.1, "alpha": 1.0}, {"beta": 0.5, "alpha": 0.3}],
    golden=2.3132616875,
)
def cpo(rows: Sequence[Row], m: Any) -> float:
    """2401.08417: L_prefer + alpha · L_NLL."""
    prefer = mean([minus_log_sigmoid(m.beta * row.chosen - m.beta * row.rejected) for row in rows])
    return prefer + m.alpha * mean([-row.chosen / row.chosen_length for row in rows])


@reference(
    Kto,
    paper="2402.01306 v5 eq. 8",
    equation="λ_D (1 - σ(β(r - z0))), λ_U (1 - σ(β(z0 - r)))",
    computed_by=f"{TRL} kto",
    elsewhere=(
        "TRL: y' is the neighbour in the device's batch, here a fixed partner, and both λ are set by hand; oxRL: z0 is a running "
        "mean of chosen log-ratios, log-sigmoid; align-anything: token-mean KL"
    ),
    settings=[
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7},
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0, "weight_ratio": 4 / 3},
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0, "weight_ratio": 0.5},
    ],
    golden=(0.5249791875 + 0.3775406688) / 2,  # the mean of the desirable and the undesirable row
    at_first_step=lambda rows, m: 0.25 * sum(kto_weights(m)),
)
def kto(rows: Sequence[Row], m: Any) -> float:
    """2402.01306 v5, eq. 8: E[lambda_y - v(x, y)] over both rows of each pair; z0 from mismatches."""
    drift = [row.mismatched_chosen - row.ref_mismatched_chosen for row in rows]
    drift += [row.mismatched_rejected - row.ref_mismatched_rejected for row in rows]
    z0 = max(0.0, mean(drift))
    lambda_d, lambda_u = kto_weights(m)
    desirable = [lambda_d - lambda_d * sigmoid(m.beta * (row.gain_chosen - z0)) for row in rows]
    undesirable = [lambda_u - lambda_u * sigmoid(m.beta * (z0 - row.gain_rejected)) for row in rows]
    return mean(desirable + undesirable)


def kto_weights(m: Any) -> tuple[float, float]:
    """The weights (lambda_D, lambda_U).

    As set; or with weight_ratio, on pairs (as many desirable as undesirable rows): their ratio is
    weight_ratio and the smaller is 1.
    """
    if m.weight_ratio is None:
        return m.desirable_weight, m.undesirable_weight
    return max(m.weight_ratio, 1.0), max(1 / m.weight_ratio, 1.0)


@reference(
    KtoPair,
    paper="HALOs, TRL, December 2023",
    equation="1 - σ(β(r_w - KL_l)), 1 - σ(β(KL_w - r_l))",
    computed_by=OURS,
    elsewhere="TRL's DPOTrainer until June 2024; SPA's fork and turbo-alignment call it KTO; not KTOTrainer's loss",
    settings=[{"beta": 0.1}, {"beta": 0.5}],
    golden=0.4257391713,  # KL_w 2, KL_l 0: half of (1 - sigma(0.2)) + (1 - sigma(0.4))
    at_first_step=lambda rows, m: 0.5,
)
def kto_pair(rows: Sequence[Row], m: Any) -> float:
    """HALOs and TRL, December 2023: the reference point is the mean log-ratio of the other half."""
    chosen_kl = max(0.0, mean([row.gain_chosen for row in rows]))
    rejected_kl = max(0.0, mean([row.gain_rejected for row in rows]))
    chosen = [1 - sigmoid(m.beta * (row.gain_chosen - rejected_kl)) for row in rows]
    rejected = [1 - sigmoid(m.beta * (chosen_kl - row.gain_rejected)) for row in rows]
    return mean(chosen + rejected)


Rewards = tuple[float, float]  # of a pair's chosen and rejected completion


def bradley_terry(rows: Sequence[Rewards]) -> float:
    """2203.02155, eq. 1, every pair an element of the mean: the loss of best_of_n's reward model."""
    return mean([minus_log_sigmoid(chosen - rejected) for chosen, rejected in rows])


@reference(
    Csft,
    paper="2302.08582; HALOs",
    equation="-log π(y|x,c)/|y|, c = <|good|>, <|bad|>",
    computed_by=OURS,
    elsewhere="HALOs (legacy) sums over tokens; without <|good|> appended it is judged as plain SFT on good and bad rows; TRL: none",
    settings=[{}],
    golden=2.25,  # (20 / 10 + 30 / 12) / 2
)
def csft(rows: Sequence[Row], m: Any) -> float:
    """HALOs, per token: every completion counts once, whatever its label; the label is in the prompt."""
    return mean(
        [-row.chosen / row.chosen_length for row in rows]
        + [-row.rejected / row.rejected_length for row in rows]
    )


@dataclass(frozen=True)
class Judged:
    """One completion, with one list entry per token.

    Log-probabilities of policy and reference, and a critic's values.
    """

    policy: Sequence[float]
    reference: Sequence[float]
    values: Sequence[float]
    desirable: bool


def spread(total: float, n: int) -> list[float]:
    """A sum spread over n tokens like in the stand-in model, in proportion 1, 2, ... n."""
    return [2 * total * k / (n * (n + 1)) for k in range(1, n + 1)]


def judged(rows: Sequence[Row]) -> list[Judged]:
    """Both completions of each pair."""
    completions = []
    for row in rows:
        for side in ("chosen", "rejected"):
            n = getattr(row, f"{side}_length")
            policy, reference, values = (
                spread(getattr(row, name), n) for name in (side, f"ref_{side}", f"value_{side}")
            )
            completions.append(Judged(policy, reference, values, desirable=side == "chosen"))
    return completions


class PpoParts(NamedTuple):
    policy: float
    value: float
    kl: float


def ppo_parts(completions: Sequence[Judged], m: Any) -> PpoParts:
    """HALOs legacy: advantages from their definition as sums; the only reward is on the last token."""
    advantages, losses, errors, drift = [], [], [], []
    for each in completions:
        n = len(each.values)
        reward = 1.0 if each.desirable else -1.0
        after = [*each.values[1:], 0.0]
        td_error = [(reward if t == n - 1 else 0.0) + m.gamma * after[t] - each.values[t] for t in range(n)]
        advantages += [
            math.fsum((m.gamma * m.gae_lambda) ** (k - t) * td_error[k] for k in range(t, n))
            for t in range(n)
        ]
        errors += [
            (each.values[t] - (reward * m.gamma ** (n - 2 - t) if t < n - 1 else 0.0)) ** 2 for t in range(n)
        ]
        drift += [b - a for a, b in zip(each.policy, each.reference, strict=True)]
    centre = mean(advantages)
    deviation = math.sqrt(mean([(a - centre) ** 2 for a in advantages]) + 1e-8)
    for advantage, kl in zip(advantages, drift, strict=True):
        a, ratio = (advantage - centre) / deviation, math.exp(-kl)
        losses.append(max(-a * ratio, -a * min(max(ratio, m.clip), 1 / m.clip)))
    return PpoParts(mean(losses), 0.5 * mean(errors), mean(drift))


def ppo_total(parts: PpoParts, m: Any) -> float:
    return parts.policy + m.value_weight * parts.value + m.kl_weight * parts.kl


@reference(
    OfflinePpo,
    paper="2402.01306; HALOs legacy",
    equation="mean max(-Aρ, -A clip(ρ, c, 1/c)) + .01 L_V + .1 KL",
    computed_by=OURS,
    elsewhere="the KTO paper prints a clip of [1/4, 4], its code has [1/2, 2] and leaves the last reward out of G; TRL: none",
    settings=[
        {"clip": 0.5, **HALOS},
        {"clip": 0.25, **HALOS},
        {
            "clip": 0.8,
            "gamma": 0.7,
            "gae_lambda": 0.4,
            "value_weight": 1.5,
            "kl_weight": 2.0,
            "value_max_grad_norm": 1.0,
        },
    ],
    # TD errors: .99 x .2 - .1 = .098, 1 - .2 = .8 and -1 - .4 = -1.4; advantages .098 + .9405 x .8 = .8504,
    # .8, -1.4, their mean .0834666667 and variance 1.1007600356, whitened .7309897465, .6829518251,
    # -1.4139415716. Policy: the mean of -1.5 x .7309897465, -2 x .6829518251 (clipped) and .5 x
    # 1.4139415716 (clipped) = -.5851391614. Value: half the mean of (.1 - 1)², .2², .4² = .1683333333. KL:
    # -ln(1.5 x 2.25 x .4) / 3 = -.1000348642. In all -.5851391614 + .0016833333 - .0100034864.
    row=PPO_ROW,
    golden=-0.5934593145,
    # Whitened advantages have mean 0, and there is no KL.
    at_first_step=lambda rows, m: m.value_weight * ppo_parts(judged(rows), m).value,
)
def offline_ppo(rows: Sequence[Row], m: Any) -> float:
    """HALOs legacy: policy loss + 0.01 critic loss + 0.1 KL, with the reference as the old policy."""
    return ppo_total(ppo_parts(judged(rows), m), m)
