"""SFT on the chosen completions ("Preferred-FT" in Rafailov et al. 2023, section 6), a baseline; a loss of ours.

-log π(y_w)/|y_w|,  mean over completions

Deviation from the start stage and TRL's `sft`: those pool the tokens of a batch, which weighs long completions more; here each completion
counts once. The rejected completion goes through the model for the curves only, so a step costs what DPO's costs.

The reference takes no part in the loss. rewards/*: log π/π_ref in nats (SFT has no β), so that methods can be compared; other curves as
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
    assert settings.name == "sft_chosen"
    return own_loss_trainer(job, lambda pairs: losses.sft_chosen(pairs), learns_from=("chosen",))


__all__ = ["chain", "make_trainer"]
