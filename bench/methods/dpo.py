"""DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), trained by TRL's DPOTrainer (`sigmoid`).

With an SFT term the loss is ours.

-log σ(β Δ),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l),  sums over completion tokens, EOS included
- w log π(y_w)/|y_w|,  w set as `sft_weight`, 0 as published

The SFT term keeps the chosen completion likely; DPO alone often lets its likelihood fall. RPO (Liu et al.
2024, arXiv 2405.16436) adds such a term. IRPO (Pang et al. 2024, arXiv 2404.19733) adds it in this form, a
mean over the completion's tokens, but puts its weight α on the DPO term (w = 1/α). TRL's loss_type=[sigmoid,
sft] with loss_weights pools the tokens of a batch, which weighs long completions more and couples the rows of
a batch. Here each completion counts once.

Deviations: the reference's log-probabilities are computed once and shared, not at every step. A batch holds
rows of like length (training/trainers.py). Settings other than β and the learning rate come from the scale
preset.

rewards/chosen, rewards/rejected: β log π/π_ref, mean over pairs.
rewards/margins: their difference.
rewards/accuracies: share of pairs with a positive margin; a tie counts a half.
logps/*: summed log-probabilities, mean over pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.methods import one_shot

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.training.trainers import TrainingJob

chain = one_shot


def make_trainer(job: TrainingJob) -> Trainer:
    from bench.training import losses
    from bench.training.trainers import own_loss_trainer, paired_trainer

    settings = job.settings.method
    assert settings.name == "dpo"
    if not settings.sft_weight:
        return paired_trainer(job, loss_type="sigmoid")
    return own_loss_trainer(
        job, lambda pairs: losses.dpo_sft(pairs, beta=settings.beta, sft_weight=settings.sft_weight)
    )
