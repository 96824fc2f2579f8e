"""cDPO (E. Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023), conservative DPO; a loss of ours.

-(1-ε) log σ(β Δ) - ε log σ(-β Δ),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l),  ε set as `label_smoothing`

Least at σ(β Δ) = 1 - ε: a margin that is reached, where DPO's runs away. Deviations: none in the loss.
TRL's DPOTrainer took `label_smoothing` for this loss before v0.29; since then its `sigmoid` ignores the setting without a word, and a
"cDPO" of it is plain DPO.

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
    assert settings.name == "cdpo"
    return own_loss_trainer(job, lambda pairs: losses.cdpo(pairs, beta=settings.beta, label_smoothing=settings.label_smoothing))


__all__ = ["chain", "make_trainer"]
