"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306 v5, eq. 8), trained by TRL's KTOTrainer.

λ_D (1 - σ(β (r - z0))) if desirable, λ_U (1 - σ(β (z0 - r))) if undesirable;  r = log π/π_ref (y|x)
z0 = max(0, mean over the batch of [log π/π_ref](y'|x)), y' the completion of another prompt; no gradient through it

Pairs become two rows: chosen desirable, rejected undesirable. Deviation from TRL: y' is fixed for each row by the data stage
(seeded, always of another prompt) and not the batch's neighbour, so that one reference pass serves every β, order and batch; a
batch holds rows of like length (training.py), which z0 is a mean over.

kl: z0. rewards/*: β r. rewards/accuracies: share of (desirable, undesirable) row pairs of a batch that the reward orders rightly;
TRL logs none for KTO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.methods import one_shot as chain

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.methods.training import TrainingJob


def make_trainer(job: TrainingJob) -> Trainer:
    from trl import KTOConfig, KTOTrainer

    from bench.methods.training import Prepared, method_arguments, unpaired_rows

    rows = unpaired_rows(job)
    settings = job.settings.method
    assert settings.name == "kto"

    class KtoTrainer(Prepared, KTOTrainer):
        def _compute_loss(self, model, inputs, return_outputs):  # type: ignore[no-untyped-def]
            seen = []
            handle = model.register_forward_hook(lambda _module, _args, output: seen.append(output.log_probs))
            try:
                loss = super()._compute_loss(model, inputs, return_outputs)
            finally:
                handle.remove()
            logps = next(out for out in reversed(seen) if out.shape[0] == len(inputs["label"])).detach().sum(dim=1)
            rewards, label = logps - inputs["ref_logps"], inputs["label"].bool()
            if label.any() and (~label).any():
                right = rewards[label][:, None] > rewards[~label][None, :]
                self._metrics["train"]["rewards/accuracies"].append(right.float().mean().item())
            return loss

    arguments = KTOConfig(
        **method_arguments(job),
        loss_type="kto",
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        train_sampling_strategy="sequential",
    )
    return KtoTrainer.over(rows, job, arguments)


__all__ = ["chain", "make_trainer"]
