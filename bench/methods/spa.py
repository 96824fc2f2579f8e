"""SPA, spread preference annotation (Kim et al. 2024, arXiv 2406.04412).

Training starts from few labelled pairs; then the policy labels pairs of its own samples.

    π_0 = DPO(π_start; labelled pairs)        for t = 1 ... iteration:
    y_1, y_2 ~ π_{t-1}(.|x), x new
    chosen by p = σ(β [log π_{t-1}/π_start (y_1) - log π_{t-1}/π_start (y_2)]) > 1/2    (eq. 7, 8)
    π_t from π_{t-1}, against π_{t-1}:  -(1-αz) log σ(βΔ) - αz log σ(-βΔ)               (eq. 10)

z is 1 if the confidence σ(βΔ̃) in the label is below the K-th percentile of the latest `window` confidences
(eq. 9). It is 0 in the first `delay` share of the steps: at first policy and reference are equal, and every
confidence is 1/2.

De-coupled noise detection (eq. 11, 12): Δ̃ belongs to an imagined model with logits (1+λ) h_π - λ h_ref,
token by token, so it needs the logits of both models. `decoupling` lists λ of iterations 1, 2, ...; with 0,
Δ̃ is the policy's own Δ.

Where paper and release (kingdy2002/SPA) differ, the paper is the default. The release's settings:
`decoupling: [0.0]` (no released config sets it); `threshold: batch_means`, the percentile of mean margins of
device batches. That threshold is 0 until the window is full (inferred), and a label at the threshold is
distrusted too. If the K-th percentile falls between two values, it is the middle, as in the release.

Without a seed (`seed_training: null`, `data.fraction: 0`) π_0 is the start model. Rewards are then taken
against the model that the start model was tuned from, `judging_reference: base` (figure 4:
Mistral-7B-Instruct and Mistral-7B). `previous` is the ablation of table 7.

length_penalty: labels come from the reward minus c |y| (eq. 13; the paper tries c from 0.001 to 0.01). |y|
counts tokens here, and the reward includes β.

Deviations: a forward pass is compared with the confidences before it, of this device, and then joins them.
Optimiser and schedule come from the scale preset (the paper: AdamW, cosine, 10 % warm-up). With α 0 it is
iterative_dpo with implicit labels, bit for bit.

spa/distrusted: share of a batch with z = 1. spa/confidence: σ(βΔ̃), mean. The other curves are as for DPO.
trust.jsonl: z and σ(βΔ̃) of each pair at each step after the delay. The score stage compares them with the
truth where it is known.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bench.config import Cell, RefinedDpo, Spa, Training, scheduled
from bench.methods import iterations
from bench.planning.inputs import Ground, Policy
from bench.records import sigmoid

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from bench.training.trainers import TrainingJob


def chain(cell: Cell, ground: Ground) -> Policy:
    settings = cell.method
    assert isinstance(settings, Spa)
    seed = settings.seed_training
    return iterations.unfold(
        cell,
        ground,
        iterations.LoopMethod(
            first=1,
            start=iterations.seeded(cell, ground, seed) if seed else ground.start,
            seed_pairs=ground.preferences if seed else None,
            draws=2,
            items=partial(iterations.prompts, cell, ground, settings),
            labels=partial(iterations.implicit_labels, cell, ground),
            training=partial(_training, settings),
            with_reference_model=lambda t: _decoupling(settings, t) > 0,
        ),
    )


def _decoupling(settings: Spa, t: int) -> float:
    return scheduled(settings.decoupling, t - 1)


def _training(settings: Spa, t: int) -> RefinedDpo:
    names = {*Training.model_fields, "beta", "alpha", "distrusted", "window", "threshold", "delay"}
    return RefinedDpo(**settings.model_dump(include=names), name="spa", decoupling=_decoupling(settings, t))


class RunningThreshold:
    """Finds labels to distrust: those with the lowest confidences, relative to the latest ones.

    `share` in [0, 1] is the percentile; `window` is the number of values that are kept.
    """

    def __init__(self, share: float, window: int, of: Literal["pairs", "batch_means"]):
        self.share, self.of = share, of
        self.seen: deque[float] = deque(maxlen=window)  # confidences, or mean margins of batches

    @property
    def value(self) -> float | None:
        """The current threshold: a confidence, or a margin for batch means. None before any value."""
        if self.of == "batch_means" and len(self.seen) < (self.seen.maxlen or 0):
            return 0.0
        return float(np.quantile(self.seen, self.share, method="hazen")) if self.seen else None

    def distrusts(self, margins: Sequence[float]) -> list[bool]:
        """Returns for each pair whether its label is distrusted.

        `margins` are βΔ̃ of the pairs; they join the window afterwards.
        """
        threshold, confidences = self.value, [sigmoid(margin) for margin in margins]
        if self.of == "batch_means":
            self.seen.append(math.fsum(margins) / len(margins))
            assert threshold is not None
            return [not margin > threshold for margin in margins]
        self.seen.extend(confidences)
        return [threshold is not None and confidence < threshold for confidence in confidences]


def make_trainer(job: TrainingJob) -> Trainer:
    import torch
    from trl import DPOConfig, DPOTrainer

    from bench.engines.hf import in_float32, load_model
    from bench.records import Trust, write_jsonl
    from bench.training import losses
    from bench.training.trainers import TiesHalf, method_arguments, paired_rows

    assert isinstance(job.settings.method, RefinedDpo)
    settings: RefinedDpo = job.settings.method
    reference: Any = None
    if settings.decoupling:
        if job.reference_model is None:
            raise ValueError(
                "De-coupled detection needs the reference's logits, and this training has no model for them. Set method.decoupling=[0.0]."
            )
        reference = in_float32(
            load_model(job.reference_model, job.settings.dtype, job.settings.loading, job.base)
        )

    class RefinedTrainer(TiesHalf, DPOTrainer):
        judgements: list[tuple[bool, float]]  # of the latest batch: distrusted, confidence
        trust: list[Trust]
        threshold: RunningThreshold

        def train(self, *args: Any, **named: Any) -> Any:
            result = super().train(*args, **named)
            write_jsonl(job.out / "trust.jsonl", self.trust)
            return result

        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> torch.Tensor:
            rows = inputs["row"].tolist()
            loss = super().training_step(model, inputs, *args, **named)
            if not self.delayed:
                self.trust += [
                    Trust(self.visited.examples[i].row.id, *judgement)
                    for i, judgement in zip(rows, self.judgements, strict=True)
                ]
            return loss

        @property
        def delayed(self) -> bool:
            return self.state.global_step < settings.delay * self.state.max_steps

        def own_loss(self, model: Any, inputs: dict[str, Any], pairs: losses.PairLogps) -> torch.Tensor:
            margins = settings.beta * self.judged(model, inputs, pairs)
            distrusts = self.threshold.distrusts(margins.tolist())
            if self.delayed:
                distrusts = [False] * len(distrusts)
            confidences = torch.sigmoid(margins)
            self.judgements = list(zip(distrusts, confidences.tolist(), strict=True))
            distrusted = torch.tensor(distrusts, dtype=pairs.delta.dtype, device=pairs.delta.device)
            self._metrics["train"]["spa/distrusted"].append(distrusted.mean().item())
            self._metrics["train"]["spa/confidence"].append(confidences.mean().item())
            return losses.refined_dpo(pairs, distrusted, beta=settings.beta, alpha=settings.alpha).mean()

        @torch.no_grad()
        def judged(self, model: Any, inputs: dict[str, Any], pairs: losses.PairLogps) -> torch.Tensor:
            """Returns Δ̃ (B,): of the policy, or of the imagined model if detection is de-coupled."""
            if reference is None:
                return pairs.delta.detach()
            texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            ours, theirs = (
                each(**texts, use_cache=False).logits[:, :-1].float() for each in (model, reference)
            )
            mask = inputs["completion_mask"][:, 1:]
            chosen, rejected = losses.extrapolated_logps(
                ours, theirs, inputs["input_ids"][:, 1:], mask, settings.decoupling
            ).chunk(2)
            return (chosen - pairs.ref_chosen_logps) - (rejected - pairs.ref_rejected_logps)

    trainer = RefinedTrainer.over(
        paired_rows(job), job, DPOConfig(**method_arguments(job), beta=settings.beta)
    )
    trainer.threshold = RunningThreshold(settings.distrusted, settings.window, settings.threshold)
    trainer.trust = []
    return trainer
