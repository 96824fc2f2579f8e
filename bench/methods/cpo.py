"""CPO (Xu et al. 2024, arXiv 2401.08417, section 3), reference-free; a loss of ours.

-log σ(β [log π(y_w) - log π(y_l)]) - α log π(y_w)/|y_w|

DPO with a uniform reference, and behaviour cloning of the chosen completion. Deviation: the NLL term is a mean over the completion's tokens
and then over pairs; TRL (trl.experimental.cpo) pools the tokens of a batch.

The reference takes no part in the loss. rewards/*: β log π/π_ref with sums, as for DPO, so that methods can be compared; other curves as
for DPO.
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
    assert settings.name == "cpo"
    return own_loss_trainer(job, lambda pairs: losses.cpo(pairs, beta=settings.beta, alpha=settings.alpha))


__all__ = ["chain", "make_trainer"]
