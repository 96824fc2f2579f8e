"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306 v5, eq. 8), trained by TRL's KTOTrainer.

λ_D (1 - σ(β (r - z0))) if desirable, λ_U (1 - σ(β (z0 - r))) if undesirable;  r = log π/π_ref (y|x)
z0 = max(0, mean over the batch of [log π/π_ref](y'|x)), y' the completion of another prompt
No gradient flows through z0.

A pair becomes two rows: chosen desirable, rejected undesirable.

Deviations from TRL: the data stage fixes y' for each row (seeded, always of another prompt); TRL takes the
batch's neighbour. So one reference pass serves every β, order and batch. A batch holds rows of like length
(training/trainers.py), and z0 is a mean over such a batch.

Weights: λ_D n_D / (λ_U n_U) should lie in [1, 3/2] (v1 of the paper: [1, 4/3]; its study of imbalance: 4/3).
`weight_ratio` sets both λ to this ratio from the counts of the train rows. The curve then records them as
desirable_weight and undesirable_weight.

kl: z0. rewards/*: β r. rewards/accuracies: over all (desirable, undesirable) pairs of rows in a batch, the
share that the reward orders correctly. TRL logs no accuracy for KTO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.methods import one_shot

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.training.trainers import TrainingJob

chain = one_shot


class Weights(NamedTuple):
    desirable: float
    undesirable: float


def class_weights(ratio: float, n_desirable: int, n_undesirable: int) -> Weights:
    """The weights λ_D and λ_U with λ_D n_D / (λ_U n_U) equal to `ratio`.

    The side with too little weight is raised; the other stays at 1. Raises ValueError if one side has no
    rows.
    """
    if not n_desirable or not n_undesirable:
        raise ValueError(
            f"method.weight_ratio needs desirable and undesirable rows, got {n_desirable} desirable and {n_undesirable} undesirable. "
            "Set method.weight_ratio=null, and the two weights yourself."
        )
    raised = ratio * n_undesirable / n_desirable
    return Weights(raised, 1.0) if raised >= 1 else Weights(1.0, 1 / raised)


def make_trainer(job: TrainingJob) -> Trainer:
    from trl import KTOConfig, KTOTrainer

    from bench.training.trainers import Prepared, method_arguments, outputs_of, unpaired_rows
    from bench.training.unpaired import log_accuracy

    rows = unpaired_rows(job)
    settings = job.settings.method
    assert settings.name == "kto"
    weights = Weights(settings.desirable_weight, settings.undesirable_weight)
    if settings.weight_ratio is not None:
        n_desirable = sum(row["label"] for row in rows)
        weights = class_weights(settings.weight_ratio, n_desirable, len(rows) - n_desirable)

    class KtoTrainer(Prepared, KTOTrainer):
        def _compute_loss(self, model, inputs, return_outputs):  # type: ignore[no-untyped-def]
            with outputs_of(model) as outputs:
                loss = super()._compute_loss(model, inputs, return_outputs)
            # TRL runs the completions after their partners, so that the last output is theirs.
            logps = outputs[-1].log_probs.detach().sum(dim=1)
            rewards, label = logps - inputs["ref_logps"], inputs["label"].bool()
            log_accuracy(self._metrics["train"], *self.accelerator.gather((rewards, label)))
            if settings.weight_ratio is not None:
                self._metrics["train"]["desirable_weight"].append(weights.desirable)
                self._metrics["train"]["undesirable_weight"].append(weights.undesirable)
            return loss

    arguments = KTOConfig(
        **method_arguments(job),
        loss_type="kto",
        beta=settings.beta,
        desirable_weight=weights.desirable,
        undesirable_weight=weights.undesirable,
        train_sampling_strategy="sequential",
    )
    return KtoTrainer.over(rows, job, arguments)
