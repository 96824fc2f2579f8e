"""Offline PPO as in HALOs (legacy), with a loss of ours.

Paper: Ethayarajh et al. 2024 (arXiv 2402.01306), where it is a baseline.

L = L_π + 0.01 L_V + 0.1 KL, means over the completion tokens of a batch
L_π = mean_t max(-A_t ρ_t, -A_t clip(ρ_t, c, 1/c)),  ρ_t = π(y_t|.)/π_ref(y_t|.),  c = 0.5
A = GAE (γ 0.99, λ 0.95) of V and of reward ±1 by label on the last token, whitened over the batch's tokens
L_V = ½ mean_t (V_t - G_t)²,  G_t the discounted reward after step t
KL = mean_t (log π_ref(y_t|.) - log π(y_t|.)), on the data's tokens: it may be negative

Training passes over fixed data: nothing is sampled, and the old policy is the reference. V is a seeded
three-layer MLP on the policy's detached last hidden states. Its gradient has a clip of its own
(`value_max_grad_norm`), and V is discarded after training. A pair becomes two rows. Means and whitening are
over a batch, so batch size and accumulation are part of the method.

Where code and paper differ: the paper prints a clip of [0.25, 4]. The code has c = 0.5, that is [0.5, 2],
which is the default here; `clip=0.25` is the paper's. As in the code, G leaves out step t's own reward, so V
learns 0 at the last token, where the reward is. As in the code, the KL term has the sign of behaviour
cloning: it raises the likelihood of the data, undesirable completions included.

Deviations: the loss needs the reference's log-probabilities token by token, and the store keeps sums. So the
trainer computes them from the start model before its first step, with its own forward pass. This needs no
second model in memory and no per-token files. A batch holds rows of like length (training/trainers.py). HALOs
trains with RMSprop and 150 steps of warm-up; here optimizer and schedule come from the scale preset.

rewards/*: log π/π_ref in nats (there is no β). logps/*, rewards/accuracies: as for KTO.
ppo/policy_loss, ppo/value_loss: L_π, L_V. kl: KL.
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
    value_head = make_value_head(job.model.config.get_text_config().hidden_size, job.settings.seed).to(
        job.model.device
    )

    def loss(batch: UnpairedBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.ref_logps is not None
        # As in HALOs, values are computed in float32.
        with torch.autocast(batch.hidden.device.type, enabled=False):
            values = value_head(batch.hidden.to(next(value_head.parameters()).dtype)).squeeze(-1)
        rows = losses.TokenLogps(
            batch.policy_logps, batch.ref_logps, batch.mask.to(batch.policy_logps.dtype), batch.desirable
        )
        parts = losses.offline_ppo(
            rows, values, clip=settings.clip, gamma=settings.gamma, gae_lambda=settings.gae_lambda
        )
        numbers = {"ppo/policy_loss": parts.policy, "ppo/value_loss": parts.value, "kl": parts.kl}
        return parts.policy + settings.value_weight * parts.value + settings.kl_weight * parts.kl, numbers

    critic = Critic(value_head, settings.value_max_grad_norm)
    return own_unpaired_trainer(job, unpaired_rows(job), loss, token_references=True, critic=critic)


def make_value_head(hidden_size: int, seed: int) -> torch.nn.Sequential:
    """Returns a value head from hidden states (..., H) to values (..., 1).

    The same seed gives the same weights. torch's global generator is left as it was.
    """
    import torch
    from torch.nn import Linear, ReLU

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            Linear(hidden_size, hidden_size),
            ReLU(),
            Linear(hidden_size, hidden_size),
            ReLU(),
            Linear(hidden_size, 1),
        )
