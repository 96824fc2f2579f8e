"""Paired KTO, or SimpleKTO (HALOs, December 2023; TRL's `kto_pair` until June 2024), a named historical form; a loss of ours.

1 - σ(β (r_w - KL_l)) of each chosen and 1 - σ(β (KL_w - r_l)) of each rejected completion, mean over both;  r = log π/π_ref
KL_w = max(0, mean over the batch of r_w),  KL_l = max(0, mean over the batch of r_l); gradients go through both

Not KTO: the reference point is the mean log-ratio of the other half of the batch and not of mismatched completions, it is not detached, and
there are no weights; see `kto`. The rows of a batch are coupled, so batch size and accumulation are part of the method (per device, as
in TRL). Deviation from that code: a batch holds rows of like length (training.py), which both means are over.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.methods import one_shot as chain

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.training.trainers import TrainingJob


def make_trainer(job: TrainingJob) -> Trainer:
    from bench.training import losses
    from bench.training.trainers import own_loss_trainer

    settings = job.settings.method
    assert settings.name == "kto_pair"
    return own_loss_trainer(job, lambda pairs: losses.kto_pair(pairs, beta=settings.beta))


__all__ = ["chain", "make_trainer"]
