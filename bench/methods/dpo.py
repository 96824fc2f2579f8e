"""DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), trained by TRL's DPOTrainer (`sigmoid`).

-log σ(β Δ),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l),  log-probabilities summed over completion tokens, EOS included

Deviations: the reference's log-probabilities are computed once and shared, not once a step; a batch holds rows of like length
(training.py). Settings other than β and the learning rate come from the scale preset.

rewards/chosen, rewards/rejected: β log π/π_ref, mean over pairs; rewards/margins: their difference; rewards/accuracies: share of
pairs with a positive margin; logps/*: summed log-probabilities, mean over pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.methods import one_shot as chain

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.methods.training import TrainingJob


def make_trainer(job: TrainingJob) -> Trainer:
    from bench.methods.training import paired_trainer

    return paired_trainer(job, loss_type="sigmoid")


__all__ = ["chain", "make_trainer"]
