"""Losses that TRL's stable trainers lack, as pure functions of log-probabilities: of pairs summed (B,), of unpaired rows per token (B, T).

Of pairs each returns one loss a pair (kto_pair: one a completion), and the trainer takes their mean; `csft` one a row; offline_ppo's parts
are means over the tokens of a batch. Papers, deviations and what each logs stand in the methods' files; bench/conformance holds every
function against a second reading of its equation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid


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


def dpo_sft(pairs: PairLogps, *, beta: float, sft_weight: float) -> Tensor:
    """-log σ(βΔ) - w log π(y_w)/|y_w|"""
    return -logsigmoid(beta * pairs.delta) - sft_weight * pairs.chosen_mean


def cdpo(pairs: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """-(1-ε) log σ(βΔ) - ε log σ(-βΔ)"""
    logits = beta * pairs.delta
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def refined_dpo(pairs: PairLogps, distrusted: Tensor, *, beta: float, alpha: float) -> Tensor:
    """-(1-αz) log σ(βΔ) - αz log σ(-βΔ); z as `distrusted` (B,), 1 where a label is not trusted, else 0"""
    logits = beta * pairs.delta
    smoothing = alpha * distrusted
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def extrapolated_logps(policy: Tensor, reference: Tensor, tokens: Tensor, mask: Tensor, decoupling: float) -> Tensor:
    """Σ_t log softmax((1+λ) h - λ h_ref)[y_t] (B,), λ as `decoupling`; logits h (B, T, V) predict `tokens` (B, T), `mask` says which"""
    logits = (1 + decoupling) * policy - decoupling * reference
    return (log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * mask).sum(dim=1)


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


# Unpaired rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenLogps:
    """A batch of judged completions, token by token (B, T); log-probabilities are 0 outside completions."""

    policy: Tensor
    reference: Tensor
    mask: Tensor  # 1 at the tokens of completions, else 0, in the log-probabilities' dtype
    desirable: Tensor  # (B,), bool

    @property
    def ratio(self) -> Tensor:
        """log π/π_ref"""
        return self.policy - self.reference


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a batch: a long completion weighs more."""
    return (values * mask).sum() / mask.sum()


def csft(policy_logps: Tensor, mask: Tensor) -> Tensor:
    """-log π(y)/|y| of each row (B,), the control token in its prompt"""
    return -policy_logps.sum(dim=1) / mask.sum(dim=1)


def _next(values: Tensor) -> Tensor:
    """Each place's successor (B, T); 0 after the last."""
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
    """±1 by label on the last token of each completion, 0 elsewhere (B, T)."""
    last = rows.mask * (1 - _next(rows.mask))
    return torch.where(rows.desirable, 1.0, -1.0).unsqueeze(1) * last


def future_rewards(rewards: Tensor, gamma: float) -> Tensor:
    """Σ_{k>t} γ^(k-t-1) r_k: what is still to come after step t, whose own reward is left out (B, T)."""
    return _discounted(_next(rewards), gamma)


def generalized_advantages(values: Tensor, rewards: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Σ_{k≥t} (γλ)^(k-t) δ_k,  δ_t = r_t + γ V_{t+1} - V_t (B, T); both are 0 outside completions."""
    return _discounted(rewards + gamma * _next(values) - values, gamma * gae_lambda)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the tokens of a batch (variance over n, not n - 1)."""
    centred = values - token_mean(values, mask)
    return centred * torch.rsqrt(token_mean(centred**2, mask) + 1e-8)


def clipped_policy_loss(advantages: Tensor, rows: TokenLogps, clip: float) -> Tensor:
    """mean_t max(-A ρ, -A clip(ρ, c, 1/c)),  ρ = π/π_ref"""
    ratio = rows.ratio.exp()
    return token_mean(torch.maximum(-advantages * ratio, -advantages * ratio.clamp(clip, 1 / clip)), rows.mask)


@dataclass(frozen=True)
class PpoLoss:
    policy: Tensor
    value: Tensor
    kl: Tensor  # mean_t (log π_ref - log π) on the data's tokens; may be negative


def offline_ppo(rows: TokenLogps, values: Tensor, *, clip: float, gamma: float, gae_lambda: float) -> PpoLoss:
    """The three parts of HALOs' one-step PPO with π_ref as the old policy; `values` (B, T) carry gradients of the value loss only."""
    rewards = terminal_rewards(rows)
    fixed = (values * rows.mask).detach()
    advantages = whitened(generalized_advantages(fixed, rewards, gamma, gae_lambda), rows.mask)
    return PpoLoss(
        policy=clipped_policy_loss(advantages, rows, clip),
        value=0.5 * token_mean((values - future_rewards(rewards, gamma)) ** 2, rows.mask),
        kl=-token_mean(rows.ratio, rows.mask),
    )
