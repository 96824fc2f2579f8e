"""Shared code of methods that learn from unpaired rows: a trainer for our losses, and the accuracy of rewards
in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from bench.engines.base import by_length
from bench.engines.hf import per_token_logps
from bench.models.tokenize import Ids
from bench.planning.judging import reward_scale
from bench.training.trainers import Prepared, TrainingJob, method_arguments, outputs_of, share_right


@dataclass(frozen=True)
class UnpairedBatch:
    """Inputs of our losses: B judged completions at T positions; each position predicts the next token."""

    policy_logps: torch.Tensor  # (B, T), 0 outside completions.
    ref_logps: torch.Tensor | None  # (B, T); None without `token_references`.
    mask: torch.Tensor  # (B, T), 1 at completion tokens.
    desirable: torch.Tensor  # (B,), bool.
    hidden: torch.Tensor  # (B, T, H), the last hidden states, detached.


@dataclass(frozen=True)
class Critic:
    """A module trained together with the policy, by the same optimizer.

    Its gradient is clipped separately. It is not part of the saved model.
    """

    module: torch.nn.Module
    max_grad_norm: float


# Returns the loss, and further numbers for the curve by name.
UnpairedLoss = Callable[[UnpairedBatch], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def own_unpaired_trainer(
    job: TrainingJob,
    rows: Sequence[dict[str, Any]],
    loss: UnpairedLoss,
    *,
    token_references: bool = False,
    critic: Critic | None = None,
) -> Trainer:
    """TRL's KTOTrainer over judged completions (rows of `unpaired_rows`), with our `loss` and without KTO's
    second forward pass.

    Forward pass, batches and metrics are TRL's: rewards/* are reward_scale times log π/π_ref (summed),
    whatever the loss is. `token_references`: compute the start model's log-probabilities per token before the
    first step.
    """
    from trl import KTOConfig, KTOTrainer

    class OwnUnpairedTrainer(Prepared, KTOTrainer):
        def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
            if not token_references:
                return dataset
            # The policy still equals the reference.
            return dataset.add_column("ref_token_logps", _token_logps(self.model, dataset, job))

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*self._signature_columns, "ref_token_logps"]  # type: ignore[misc,assignment]

        def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
            fresh, optimizer = self.optimizer is None, super().create_optimizer(*args)
            if critic and fresh:
                optimizer.add_param_group(
                    {"params": list(critic.module.parameters()), "weight_decay": self.args.weight_decay}
                )
            return optimizer

        def _clip_grad_norm(self, model):  # type: ignore[no-untyped-def]
            if critic:
                self.accelerator.clip_grad_norm_(critic.module.parameters(), critic.max_grad_norm)
            return super()._clip_grad_norm(model)

        def _compute_loss(self, model, inputs, return_outputs):  # type: ignore[no-untyped-def]
            inputs = dict(inputs)
            references = inputs.pop("ref_token_logps", None)
            backbone = self.accelerator.unwrap_model(model).base_model
            with outputs_of(model) as outputs, outputs_of(backbone) as states:
                # For its metrics; TRL's loss (APO) is dropped.
                result = super()._compute_loss(model, inputs, return_outputs)
            batch = UnpairedBatch(
                outputs[0].log_probs,
                references,
                inputs["completion_mask"][:, 1:],
                inputs["label"].bool(),
                states[0].last_hidden_state[:, :-1].detach(),
            )
            own_loss, numbers = loss(batch)
            metrics = self._metrics["train"]
            metrics["kl"].pop()  # TRL logs 0 for a loss without a KL term.
            if not metrics["kl"]:
                del metrics["kl"]
            for name, value in numbers.items():
                metrics[name].append(value.item())
            rewards = batch.policy_logps.detach().sum(dim=1) - inputs["ref_logps"]
            log_accuracy(metrics, *self.accelerator.gather((rewards, batch.desirable)))
            if self.aux_loss_enabled:
                own_loss = own_loss + self.router_aux_loss_coef * outputs[0].aux_loss
            return (own_loss, result[1]) if return_outputs else own_loss

    # Only KTO's second pass needs them.
    rows = [{name: value for name, value in row.items() if "KL" not in name} for row in rows]
    # Rows are cut already; a control token comes on top of max_length.
    arguments = method_arguments(job) | {"max_length": None}
    trainer = OwnUnpairedTrainer.over(
        rows,
        job,
        KTOConfig(**arguments, loss_type="apo_zero_unpaired", beta=reward_scale(job.settings.method)),
    )
    trainer.critic = critic  # type: ignore[attr-defined]  # Conformance checks read it.
    trainer.data_collator = _with_token_references(trainer.data_collator)
    if critic:
        trainer.add_callback(_ZeroGradient(critic.module))
    return trainer


class _ZeroGradient(TrainerCallback):
    """Clears a critic's gradients before each step's end; transformers' Trainer only clears its model's."""

    def __init__(self, module: torch.nn.Module):
        self.module = module

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.module.zero_grad()


def log_accuracy(metrics: dict[str, list[float]], rewards: torch.Tensor, desirable: torch.Tensor) -> None:
    """Append rewards/accuracies: the share of (desirable, undesirable) row pairs of a batch that the rewards
    order correctly.

    A tie counts one half. A batch with only one label appends nothing.
    """
    if desirable.any() and (~desirable).any():
        right = share_right(rewards[desirable][:, None], rewards[~desirable][None, :])
        metrics["rewards/accuracies"].append(right.mean().item())


def _token_logps(model: Any, dataset: Dataset, job: TrainingJob) -> list[list[float]]:
    """Log-probabilities (nats) of every token but the first of each row, 0 in its prompt.

    Rows are batched by length, as the logps stages do it.
    """
    rows = [Ids(row["prompt_ids"], row["completion_ids"]) for row in dataset]
    logps: list[list[float]] = [[] for _ in rows]
    for batch in by_length([len(row.whole) for row in rows], job.settings.method.batch_size):
        values = per_token_logps(
            model, [rows[i] for i in batch], job.tokenizer.pad_token_id, job.settings.dtype
        )
        for i, row in zip(batch, values.tolist(), strict=True):
            logps[i] = row[: len(rows[i].whole) - 1]
    return logps


def _with_token_references(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """TRL's collator, extended to pad the reference's log-probabilities to the batch's width."""

    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(rows)
        if "ref_token_logps" in rows[0]:
            width = batch["input_ids"].shape[1] - 1
            given = [row["ref_token_logps"] for row in rows]
            batch["ref_token_logps"] = torch.tensor([row + [0.0] * (width - len(row)) for row in given])
        return batch

    return collated
