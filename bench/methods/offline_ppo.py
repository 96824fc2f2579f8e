"""Offline PPO (a baseline of Ethayarajh et al. 2024, arXiv 2402.01306), as HALOs (legacy) has it; a loss of ours.

L = L_π + 0.01 L_V + 0.1 KL, means over the completion tokens of a batch
L_π = mean_t max(-A_t ρ_t, -A_t clip(ρ_t, c, 1/c)),  ρ_t = π(y_t|.)/π_ref(y_t|.),  c = 0.5
A = GAE (γ 0.99, λ 0.95) of reward ±1 by label on the last token and of V, whitened over the batch's tokens
L_V = ½ mean_t (V_t - G_t)²,  G_t the discounted reward after step t
KL = mean_t (log π_ref(y_t|.) - log π(y_t|.)), of the data's tokens: it may be negative

One pass over fixed data: nothing is sampled, the old policy is the reference. V is a three-layer MLP on the policy's detached last hidden
states, seeded, with a gradient clip of its own (`value_max_grad_norm`); it is thrown away after training. Pairs become two rows. Means and
whitening are over a batch, so batch size and accumulation are part of the method.

Code or paper: the paper prints a clip of [0.25, 4]; the code has c = 0.5, that is [0.5, 2], which is the default here; `clip=0.25` is the
paper's. As in the code, G leaves out step t's own reward, so V learns 0 at the last token, where the reward is; and the KL term has the
sign of behaviour cloning: it raises the data's likelihood, of undesirable completions too.

Deviations: the reference's log-probabilities are needed token by token and the store keeps sums; the trainer computes them from the start
model by one pass before its first step, through its own forward: no second model in memory, no per-token files in the store. A batch holds
rows of like length (trainers.py). HALOs trains by RMSprop with 150 steps of warm-up; optimizer and schedule here are the scale preset's.

rewards/*: log π/π_ref in nats (no β); logps/*, rewards/accuracies as for KTO. ppo/policy_loss, ppo/value_loss: L_π, L_V; kl: KL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.methods import one_shot

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from bench.training.trainers import TrainingJob
    from bench.training.unpaired import UnpairedBatch

chain = one_shot


def make_trainer(job: TrainingJob) -> Trainer:
    import torch

    from bench.training import losses
    from bench.training.trainers import unpaired_rows
    from bench.training.unpaired import Critic, own_unpaired_trainer

    settings = job.settings.method
    assert settings.name == "offline_ppo"
    value_head = make_value_head(job.model.config.get_text_config().hidden_size, job.settings.seed).to(job.model.device)

    def loss(batch: UnpairedBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.ref_logps is not None
        with torch.autocast(batch.hidden.device.type, enabled=False):  # as in HALOs: values want float32
            values = value_head(batch.hidden.to(next(value_head.parameters()).dtype)).squeeze(-1)
        rows = losses.TokenLogps(batch.policy_logps, batch.ref_logps, batch.mask.to(batch.policy_logps.dtype), batch.desirable)
        parts = losses.offline_ppo(rows, values, clip=settings.clip, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
        numbers = {"ppo/policy_loss": parts.policy, "ppo/value_loss": parts.value, "kl": parts.kl}
        return parts.policy + settings.value_weight * parts.value + settings.kl_weight * parts.kl, numbers

    critic = Critic(value_head, settings.value_max_grad_norm)
    return own_unpaired_trainer(job, unpaired_rows(job), loss, token_references=True, critic=critic)


def make_value_head(hidden_size: int, seed: int) -> torch.nn.Sequential:
    """Hidden states (..., H) to values (..., 1); the same weights for the same seed, torch's global generator left as it was."""
    import torch
    from torch.nn import Linear, ReLU

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            Linear(hidden_size, hidden_size), ReLU(), Linear(hidden_size, hidden_size), ReLU(), Linear(hidden_size, 1)
        )
