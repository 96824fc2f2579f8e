"""Losses that TRL's stable trainers lack, as pure functions of log-probabilities.

Losses of pairs take log-probabilities summed over a completion (B,) and return one loss per pair; kto_pair
returns one per completion. The trainer takes the mean. Losses of unpaired rows take log-probabilities per
token (B, T): `csft` returns one loss per row, `offline_ppo` returns means over the tokens of a batch. The
file of each method (bench/methods) names its paper, the deviations from it and the logged numbers.
bench/conformance checks every function against a second reading of its equation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probabilities (nats) of a batch of pairs, and the completions' lengths in tokens.

    All are (B,). Sums and lengths are over completion tokens, EOS included.
    """

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def delta(self) -> Tensor:
        """Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l) (B,), of summed log-probabilities."""
        chosen_ratio = self.policy_chosen_logps - self.ref_chosen_logps
        rejected_ratio = self.policy_rejected_logps - self.ref_rejected_logps
        return chosen_ratio - rejected_ratio

    @property
    def policy_chosen_mean(self) -> Tensor:
        """log π(y_w)/|y_w| (B,)"""
        return self.policy_chosen_logps / self.chosen_length

    @property
    def policy_rejected_mean(self) -> Tensor:
        """log π(y_l)/|y_l| (B,)"""
        return self.policy_rejected_logps / self.rejected_length


def pair_logps(
    per_token_logps: Tensor, completion_mask: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> PairLogps:
    """PairLogps of a TRL batch of 2B rows, the chosen ones first.

    `per_token_logps` (2B, T-1) is 0 outside completions; `completion_mask` is (2B, T).
    """
    policy_chosen_logps, policy_rejected_logps = per_token_logps.sum(dim=1).chunk(2)
    chosen_length, rejected_length = completion_mask[:, 1:].sum(dim=1).chunk(2)
    return PairLogps(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        chosen_length,
        rejected_length,
    )


def dpo_sft(pairs: PairLogps, *, beta: float, sft_weight: float) -> Tensor:
    """-log σ(βΔ) - w log π(y_w)/|y_w|"""
    return -logsigmoid(beta * pairs.delta) - sft_weight * pairs.policy_chosen_mean


def cdpo(pairs: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """-(1-ε) log σ(βΔ) - ε log σ(-βΔ)"""
    logits = beta * pairs.delta
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def refined_dpo(pairs: PairLogps, distrusted: Tensor, *, beta: float, alpha: float) -> Tensor:
    """-(1-αz) log σ(βΔ) - αz log σ(-βΔ)

    z is `distrusted` (B,): 1 where a label is not trusted, else 0.
    """
    logits = beta * pairs.delta
    smoothing = alpha * distrusted
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def extrapolated_logps(
    policy_logits: Tensor, ref_logits: Tensor, tokens: Tensor, mask: Tensor, decoupling: float
) -> Tensor:
    """Σ_t log softmax((1+λ) h - λ h_ref)[y_t] (B,)

    λ is `decoupling`. The logits h and h_ref (B, T, V) predict `tokens` (B, T); `mask` (B, T) is 1 at the
    tokens to sum over.
    """
    logits = (1 + decoupling) * policy_logits - decoupling * ref_logits
    return (log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * mask).sum(dim=1)


def ipo_summed(pairs: PairLogps, *, beta: float) -> Tensor:
    """(Δ - 1/(2τ))²; τ is `beta`."""
    return (pairs.delta - 1 / (2 * beta)) ** 2


def slic(pairs: PairLogps, *, delta: float, lambda_nll: float) -> Tensor:
    """max(0, δ - log π(y_w) + log π(y_l)) - λ log π(y_w), of summed log-probabilities"""
    hinge = torch.relu(delta - pairs.policy_chosen_logps + pairs.policy_rejected_logps)
    return hinge - lambda_nll * pairs.policy_chosen_logps


def simpo(pairs: PairLogps, *, beta: float, gamma: float) -> Tensor:
    """-log σ(β [log π(y_w)/|y_w| - log π(y_l)/|y_l|] - γ)"""
    return -logsigmoid(beta * (pairs.policy_chosen_mean - pairs.policy_rejected_mean) - gamma)


def log_odds(mean_logps: Tensor) -> Tensor:
    """log p/(1-p) with p = exp(mean log-probability)."""
    # expm1, because 1 - exp(.) of a mean near 0 is 0 in float32.
    return mean_logps - torch.log(-torch.expm1(mean_logps))


def orpo(pairs: PairLogps, *, lambda_or: float) -> Tensor:
    """-log π(y_w)/|y_w| - λ log σ(log odds(y_w) - log odds(y_l))"""
    return -pairs.policy_chosen_mean - lambda_or * logsigmoid(
        log_odds(pairs.policy_chosen_mean) - log_odds(pairs.policy_rejected_mean)
    )


def cpo(pairs: PairLogps, *, beta: float, alpha: float) -> Tensor:
    """-log σ(β [log π(y_w) - log π(y_l)]) - α log π(y_w)/|y_w|"""
    return (
        -logsigmoid(beta * (pairs.policy_chosen_logps - pairs.policy_rejected_logps))
        - alpha * pairs.policy_chosen_mean
    )


def kto_pair(pairs: PairLogps, *, beta: float) -> Tensor:
    """1 - σ(β (r_w - KL_l)) of every chosen, then 1 - σ(β (KL_w - r_l)) of every rejected completion (2B,).

    r = log π/π_ref, KL_w = max(0, mean r_w), KL_l = max(0, mean r_l); the means are over the batch. Gradients
    go through both, as in the code that this loss was quoted from.
    """
    chosen_ratio = pairs.policy_chosen_logps - pairs.ref_chosen_logps
    rejected_ratio = pairs.policy_rejected_logps - pairs.ref_rejected_logps
    chosen_kl, rejected_kl = chosen_ratio.mean().clamp(min=0), rejected_ratio.mean().clamp(min=0)
    chosen_losses = 1 - torch.sigmoid(beta * (chosen_ratio - rejected_kl))
    rejected_losses = 1 - torch.sigmoid(beta * (chosen_kl - rejected_ratio))
    return torch.cat([chosen_losses, rejected_losses])


def sft_chosen(pairs: PairLogps) -> Tensor:
    """-log π(y_w)/|y_w|"""
    return -pairs.policy_chosen_mean


# Unpaired rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities (nats) of a batch of judged completions, token by token (B, T); 0 outside
    completions.
    """

    policy_logps: Tensor
    ref_logps: Tensor
    mask: Tensor  # (B, T): 1 at completion tokens, else 0, in the dtype of the log-probabilities.
    desirable: Tensor  # (B,), bool.

    @property
    def ratio(self) -> Tensor:
        """log π/π_ref of each token (B, T)"""
        return self.policy_logps - self.ref_logps


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all tokens of a batch, a scalar. A long completion weighs more than a short one."""
    return (values * mask).sum() / mask.sum()


def csft(policy_logps: Tensor, mask: Tensor) -> Tensor:
    """-log π(y)/|y| of each row (B,); the control token is part of the prompt."""
    return -policy_logps.sum(dim=1) / mask.sum(dim=1)


def _next(values: Tensor) -> Tensor:
    """The values one place later (B, T); 0 at the last place."""
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def _discounted(values: Tensor, discount: float) -> Tensor:
    """x_t + discount x_{t+1} + discount² x_{t+2} + ... (B, T)"""
    sums: list[Tensor] = []
    total: Tensor | float = 0.0
    for value in reversed(values.unbind(dim=1)):
        total = value + discount * total
        sums.append(total)
    return torch.stack(sums[::-1], dim=1)


def terminal_rewards(rows: TokenLogps) -> Tensor:
    """Rewards (B, T): +1 (desirable) or -1 on the last token of each completion, 0 elsewhere."""
    last = rows.mask * (1 - _next(rows.mask))
    return torch.where(rows.desirable, 1.0, -1.0).unsqueeze(1) * last


def future_rewards(rewards: Tensor, gamma: float) -> Tensor:
    """Σ_{k>t} γ^(k-t-1) r_k (B, T): the rewards after step t, without its own."""
    return _discounted(_next(rewards), gamma)


def generalized_advantages(values: Tensor, rewards: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Σ_{k≥t} (γλ)^(k-t) δ_k (B, T),  δ_t = r_t + γ V_{t+1} - V_t

    `values` and `rewards` (B, T) are 0 outside completions.
    """
    return _discounted(rewards + gamma * _next(values) - values, gamma * gae_lambda)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Values scaled to mean 0 and variance 1 over the tokens of a batch (variance over n, not n - 1)."""
    centred = values - token_mean(values, mask)
    return centred * torch.rsqrt(token_mean(centred**2, mask) + 1e-8)


def clipped_policy_loss(advantages: Tensor, rows: TokenLogps, clip: float) -> Tensor:
    """mean_t max(-A ρ, -A clip(ρ, c, 1/c)), a scalar;  ρ = π/π_ref"""
    ratio = rows.ratio.exp()
    return token_mean(
        torch.maximum(-advantages * ratio, -advantages * ratio.clamp(clip, 1 / clip)), rows.mask
    )


@dataclass(frozen=True)
class PpoLoss:
    """The three parts of the offline PPO loss, each a scalar."""

    policy: Tensor
    value: Tensor
    kl: Tensor  # mean_t (log π_ref - log π) over the data's tokens. It may be negative.


def offline_ppo(rows: TokenLogps, values: Tensor, *, clip: float, gamma: float, gae_lambda: float) -> PpoLoss:
    """The loss parts of HALOs' one-step PPO with π_ref as the old policy.

    `values` (B, T): the critic's; only the value loss has a gradient with respect to them.
    """
    rewards = terminal_rewards(rows)
    fixed = (values * rows.mask).detach()
    advantages = whitened(generalized_advantages(fixed, rewards, gamma, gae_lambda), rows.mask)
    return PpoLoss(
        policy=clipped_policy_loss(advantages, rows, clip),
        value=0.5 * token_mean((values - future_rewards(rewards, gamma)) ** 2, rows.mask),
        kl=-token_mean(rows.ratio, rows.mask),
    )
