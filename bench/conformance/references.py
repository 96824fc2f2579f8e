"""What each method's paper says, a second time: plain floats, one row after another, no torch, nothing shared with losses.py or TRL.

Every function gives the mean loss of a batch. Log-probabilities are sums over completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class PrescribedPair:
    """One pair: log-probabilities of policy and reference, lengths, the same of KTO's mismatched completions, and a critic's values."""

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
    value_chosen: float = 0.0  # a critic's values of a completion's tokens, summed
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


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def dpo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2305.18290, eq. 7, plus the SFT term of 2404.19733"""
    preference = mean([minus_log_sigmoid(m.beta * row.delta) for row in rows])
    return preference + m.sft_weight * sft_chosen(rows, m)


def cdpo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """Mitchell 2023: cross-entropy between the label's probability 1 - eps and sigma(beta delta)"""
    eps = m.label_smoothing
    return mean([cross_entropy(eps, m.beta * row.delta) for row in rows])


def cross_entropy(eps: float, margin: float) -> float:
    """Of a label that is right with probability 1 - eps."""
    return (1 - eps) * minus_log_sigmoid(margin) + eps * minus_log_sigmoid(-margin)


SPA_THRESHOLD = 0.6  # the confidence below which checks have it distrust a label


def spa(rows: Sequence[PrescribedPair], m: Any, threshold: float = SPA_THRESHOLD) -> float:
    """2406.04412, eq. 9 and 10: a share alpha of the label moves to the other side where the policy's confidence is low"""
    margins = [m.beta * row.delta for row in rows]
    return mean([cross_entropy(m.alpha if sigmoid(margin) < threshold else 0.0, margin) for margin in margins])


def extrapolated(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], tokens: Sequence[int], extent: float) -> float:
    """2406.04412, eq. 11 and 12: log-probability of tokens under the imagined model, (1 + lambda) h - lambda h_ref token by token"""
    total = 0.0
    for h, h_ref, token in zip(policy, reference, tokens, strict=True):
        imagined = [(1 + extent) * a - extent * b for a, b in zip(h, h_ref, strict=True)]
        top = max(imagined)
        total += imagined[token] - top - math.log(math.fsum(math.exp(each - top) for each in imagined))
    return total


def robust(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2403.00409: the unbiased estimate of the clean loss under flips with probability eps"""
    eps = m.label_smoothing
    clean, flipped = ([minus_log_sigmoid(sign * m.beta * row.delta) for row in rows] for sign in (1, -1))
    return mean([((1 - eps) * a - eps * b) / (1 - 2 * eps) for a, b in zip(clean, flipped, strict=True)])


def ipo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2310.12036, eq. 17, log-ratios per token"""
    h = [row.gain_chosen / row.chosen_length - row.gain_rejected / row.rejected_length for row in rows]
    return mean([(each - 0.5 / m.beta) ** 2 for each in h])


def ipo_summed(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2310.12036, eq. 17, as printed"""
    return mean([(row.delta - 0.5 / m.beta) ** 2 for row in rows])


def hinge(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2309.06657, hinge-norm"""
    return mean([max(0.0, 1 - m.beta * row.delta) for row in rows])


def slic(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2305.10425, eq. 4, with y_ref := y_w"""
    calibration = [max(0.0, m.delta - row.chosen + row.rejected) for row in rows]
    return mean(calibration) - m.lambda_nll * mean([row.chosen for row in rows])


def simpo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2405.14734, eq. 6"""
    return mean(
        [minus_log_sigmoid(m.beta / row.chosen_length * row.chosen - m.beta / row.rejected_length * row.rejected - m.gamma) for row in rows]
    )


def _odds(mean_logps: float) -> float:
    p = math.exp(mean_logps)
    return p / (1 - p)


def orpo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2403.07691, eq. 6 and 7: NLL + lambda · L_OR"""
    ratios = [_odds(row.chosen / row.chosen_length) / _odds(row.rejected / row.rejected_length) for row in rows]
    return sft_chosen(rows, m) + m.lambda_or * mean([minus_log_sigmoid(math.log(ratio)) for ratio in ratios])


def cpo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2401.08417: L_prefer + alpha · L_NLL"""
    prefer = mean([minus_log_sigmoid(m.beta * row.chosen - m.beta * row.rejected) for row in rows])
    return prefer + m.alpha * sft_chosen(rows, m)


def kto(rows: Sequence[PrescribedPair], m: Any) -> float:
    """2402.01306 v5, eq. 8: E[lambda_y - v(x, y)] over both rows of each pair, z0 from mismatched completions"""
    drift = [row.mismatched_chosen - row.ref_mismatched_chosen for row in rows]
    drift += [row.mismatched_rejected - row.ref_mismatched_rejected for row in rows]
    z0 = max(0.0, mean(drift))
    lambda_d, lambda_u = kto_weights(m)
    desirable = [lambda_d - lambda_d * sigmoid(m.beta * (row.gain_chosen - z0)) for row in rows]
    undesirable = [lambda_u - lambda_u * sigmoid(m.beta * (z0 - row.gain_rejected)) for row in rows]
    return mean(desirable + undesirable)


def kto_weights(m: Any) -> tuple[float, float]:
    """As set; or, on pairs (as many desirable as undesirable rows), so that lambda_D / lambda_U is the ratio and the smaller is 1."""
    if m.weight_ratio is None:
        return m.desirable_weight, m.undesirable_weight
    return max(m.weight_ratio, 1.0), max(1 / m.weight_ratio, 1.0)


def kto_pair(rows: Sequence[PrescribedPair], m: Any) -> float:
    """HALOs and TRL, December 2023: the other half's mean log-ratio is the reference point"""
    chosen_kl = max(0.0, mean([row.gain_chosen for row in rows]))
    rejected_kl = max(0.0, mean([row.gain_rejected for row in rows]))
    chosen = [1 - sigmoid(m.beta * (row.gain_chosen - rejected_kl)) for row in rows]
    rejected = [1 - sigmoid(m.beta * (chosen_kl - row.gain_rejected)) for row in rows]
    return mean(chosen + rejected)


def sft_chosen(rows: Sequence[PrescribedPair], m: Any) -> float:
    """Likelihood of the chosen completion per token, each completion counted once"""
    return mean([-row.chosen / row.chosen_length for row in rows])


Rewards = tuple[float, float]  # of a pair's chosen and rejected completion


def bradley_terry(rows: Sequence[Rewards]) -> float:
    """2203.02155, eq. 1, every pair an element of the mean: what best_of_n's reward model is trained by"""
    return mean([minus_log_sigmoid(chosen - rejected) for chosen, rejected in rows])


def csft(rows: Sequence[PrescribedPair], m: Any) -> float:
    """HALOs, per token: every completion counts once, whatever its label; the label is in the prompt"""
    return mean([-row.chosen / row.chosen_length for row in rows] + [-row.rejected / row.rejected_length for row in rows])


@dataclass(frozen=True)
class Judged:
    """One completion, a list entry a token: log-probabilities of policy and reference, a critic's values."""

    policy: Sequence[float]
    reference: Sequence[float]
    values: Sequence[float]
    desirable: bool


def spread(total: float, n: int) -> list[float]:
    """A sum over a completion's tokens as the stand-in model spreads it: 1, 2, ... n parts."""
    return [2 * total * k / (n * (n + 1)) for k in range(1, n + 1)]


def judged(rows: Sequence[PrescribedPair]) -> list[Judged]:
    """Both completions of each pair."""
    found = []
    for row in rows:
        for side in ("chosen", "rejected"):
            n = getattr(row, f"{side}_length")
            policy, reference, values = (spread(getattr(row, name), n) for name in (side, f"ref_{side}", f"value_{side}"))
            found.append(Judged(policy, reference, values, desirable=side == "chosen"))
    return found


class PpoParts(NamedTuple):
    policy: float
    value: float
    kl: float


def ppo_parts(completions: Sequence[Judged], m: Any) -> PpoParts:
    """HALOs legacy: advantages from their definition as sums, the only reward on the last token"""
    advantages, losses, errors, drift = [], [], [], []
    for each in completions:
        n = len(each.values)
        reward = 1.0 if each.desirable else -1.0
        after = [*each.values[1:], 0.0]
        surprise = [(reward if t == n - 1 else 0.0) + m.gamma * after[t] - each.values[t] for t in range(n)]
        advantages += [math.fsum((m.gamma * m.gae_lambda) ** (k - t) * surprise[k] for k in range(t, n)) for t in range(n)]
        errors += [(each.values[t] - (reward * m.gamma ** (n - 2 - t) if t < n - 1 else 0.0)) ** 2 for t in range(n)]
        drift += [b - a for a, b in zip(each.policy, each.reference, strict=True)]
    centre = mean(advantages)
    deviation = math.sqrt(mean([(a - centre) ** 2 for a in advantages]) + 1e-8)
    for advantage, kl in zip(advantages, drift, strict=True):
        a, ratio = (advantage - centre) / deviation, math.exp(-kl)
        losses.append(max(-a * ratio, -a * min(max(ratio, m.clip), 1 / m.clip)))
    return PpoParts(mean(losses), 0.5 * mean(errors), mean(drift))


def ppo_total(parts: PpoParts, m: Any) -> float:
    return parts.policy + m.value_weight * parts.value + m.kl_weight * parts.kl


def offline_ppo(rows: Sequence[PrescribedPair], m: Any) -> float:
    """HALOs legacy: policy loss + 0.01 critic loss + 0.1 KL, with the reference as the old policy"""
    return ppo_total(ppo_parts(judged(rows), m), m)


METHODS: tuple[Callable[[Sequence[PrescribedPair], Any], float], ...] = (
    sft_chosen, dpo, cdpo, robust, ipo, ipo_summed, hinge, slic, simpo, orpo, cpo, kto, kto_pair, csft, offline_ppo, spa,
)  # fmt: skip
REFERENCES = {method.__name__: method for method in METHODS}
