"""Losses that TRL's stable trainers lack, as pure functions of summed log-probabilities (B,) and completion lengths (B,).

Each returns one loss a pair (kto_pair: one a completion); the trainer takes their mean. Papers, deviations and what each logs stand
in the methods' files; bench/conformance holds every function against a second reading of its equation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of a batch of pairs (B,), summed over completion tokens with EOS, and how many tokens that were."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def delta(self) -> Tensor:
        """[log π/π_ref](y_w) - [log π/π_ref](y_l), sums."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    @property
    def chosen_mean(self) -> Tensor:
        return self.chosen / self.chosen_length

    @property
    def rejected_mean(self) -> Tensor:
        return self.rejected / self.rejected_length


def pair_logps(per_token_logps: Tensor, completion_mask: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor) -> PairLogps:
    """Of TRL's batch, chosen rows first: `per_token_logps` (2B, T-1) is 0 outside completions, `completion_mask` is (2B, T)."""
    chosen, rejected = per_token_logps.sum(dim=1).chunk(2)
    chosen_length, rejected_length = completion_mask[:, 1:].sum(dim=1).chunk(2)
    return PairLogps(chosen, rejected, ref_chosen_logps, ref_rejected_logps, chosen_length, rejected_length)


def cdpo(pairs: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """-(1-ε) log σ(βΔ) - ε log σ(-βΔ)"""
    logits = beta * pairs.delta
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def ipo_summed(pairs: PairLogps, *, beta: float) -> Tensor:
    """(Δ - 1/(2τ))², τ as `beta`"""
    return (pairs.delta - 1 / (2 * beta)) ** 2


def slic(pairs: PairLogps, *, delta: float, lambda_nll: float) -> Tensor:
    """max(0, δ - log π(y_w) + log π(y_l)) - λ log π(y_w), sums"""
    return torch.relu(delta - pairs.chosen + pairs.rejected) - lambda_nll * pairs.chosen


def simpo(pairs: PairLogps, *, beta: float, gamma: float) -> Tensor:
    """-log σ(β [log π(y_w)/|y_w| - log π(y_l)/|y_l|] - γ)"""
    return -logsigmoid(beta * (pairs.chosen_mean - pairs.rejected_mean) - gamma)


def log_odds(mean_logps: Tensor) -> Tensor:
    """log p/(1-p) with p = exp(mean log-probability); by expm1, since 1 - exp(.) of a mean near 0 is 0 in float32."""
    return mean_logps - torch.log(-torch.expm1(mean_logps))


def orpo(pairs: PairLogps, *, lambda_or: float) -> Tensor:
    """-log π(y_w)/|y_w| - λ log σ(log odds(y_w) - log odds(y_l))"""
    return -pairs.chosen_mean - lambda_or * logsigmoid(log_odds(pairs.chosen_mean) - log_odds(pairs.rejected_mean))


def cpo(pairs: PairLogps, *, beta: float, alpha: float) -> Tensor:
    """-log σ(β [log π(y_w) - log π(y_l)]) - α log π(y_w)/|y_w|"""
    return -logsigmoid(beta * (pairs.chosen - pairs.rejected)) - alpha * pairs.chosen_mean


def kto_pair(pairs: PairLogps, *, beta: float) -> Tensor:
    """1 - σ(β (r_w - KL_l)) of every chosen, then 1 - σ(β (KL_w - r_l)) of every rejected: (2B,), coupled through the batch.

    KL_w = max(0, mean r_w), KL_l = max(0, mean r_l). Gradients go through both, as in the code it was quoted from.
    """
    chosen, rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    chosen_kl, rejected_kl = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
    return torch.cat([1 - torch.sigmoid(beta * (chosen - rejected_kl)), 1 - torch.sigmoid(beta * (chosen_kl - rejected))])


def sft_chosen(pairs: PairLogps) -> Tensor:
    """-log π(y_w)/|y_w|"""
    return -pairs.chosen_mean
