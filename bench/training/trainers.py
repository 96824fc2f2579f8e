"""Shared code of the trained methods: TRL's trainers over prepared rows, batch order, recorded curves.

Reference log-probabilities are cached: each row carries its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SchedulerType,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.training_args import OptimizerNames

from bench.config import METHODS
from bench.engines.adapters import check_finite, is_adapted
from bench.models.model_size import checkpoints
from bench.models.tokenize import all_preference_ids
from bench.planning.judging import reward_scale
from bench.records import Logps, Pair, Unpaired
from bench.store.stage_run import Progress
from bench.store.stage_settings import RewardModelSettings, TrainSettings
from bench.training import losses
from bench.training.devices import check_rows, share_of
from bench.training.training_record import TrainerRow, TrainFacts, VisitedRows, digest

# transformers reads warmup_steps below 1 as a share of the steps, rounded up, and from 1 on as a number of
# steps.
ALL_STEPS = 1 - 1e-9
# Batches whose rows are sorted by length together. More saves padding, fewer mix lengths better.
MEGABATCH = 16


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a method needs to make its trainer.

    `reference`: the reference's log-probabilities by name (see stages/logps.py); empty for a reward model.
    `reference_model`: the reference's folder, for losses that need its logits.
    """

    settings: TrainSettings | RewardModelSettings
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Pair | Unpaired]
    reference: dict[str, Logps]
    out: Path
    callback: TrainerCallback
    reference_model: Path | None = None
    base: Path | None = None  # The base model's folder, if the reference model is an adapter.
    devices: int = 1  # Number of devices that train together, this process's included.


class LengthBatches(torch.utils.data.Sampler[int]):
    """Row indices in a seeded order: rows of similar length share a batch, and batches come in random order.

    The order differs from epoch to epoch and is the same for the same seed. The short last batch stays last.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"order/{self.seed}/{self.epoch}")
        rows = list(range(len(self.lengths)))
        rng.shuffle(rows)
        span = self.batch_size * MEGABATCH
        rows = [
            row
            for start in range(0, len(rows), span)
            for row in sorted(rows[start : start + span], key=lambda i: self.lengths[i])
        ]
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        last = batches.pop() if len(batches[-1]) < self.batch_size else []
        rng.shuffle(batches)
        return iter([row for batch in [*batches, last] for row in batch])


class Recorder(TrainerCallback):
    """Records the curve: the numbers of every logged step.

    Speeds go to a file of their own, because they differ from run to run. Raises FloatingPointError at the
    first number that is not finite, because further steps would be wasted.
    """

    recorded_files = frozenset({"speed.jsonl"})

    def __init__(self, progress: Progress):
        self.progress = progress
        self.history: list[dict[str, float]] = []
        self.speed: list[dict[str, float]] = []
        self.tokens = 0
        self._last = time.perf_counter()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        now, seconds = time.perf_counter(), time.perf_counter() - self._last
        self._last = now
        speed = {"step": state.global_step, "seconds": seconds}
        pace = {}  # Stays empty for a trainer that does not count its tokens.
        if "num_tokens" in logs:
            pace = {"tokens_per_second": (int(logs["num_tokens"]) - self.tokens) / seconds}
            self.tokens = int(logs["num_tokens"])
        numbers = {name: float(value) for name, value in logs.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                step = f"step {state.global_step} of {state.max_steps}"
                raise FloatingPointError(
                    f"the training diverged: {name} was {value} at {step}. Lower the learning rate."
                )
        self.history.append({"step": state.global_step, **numbers})
        self.speed.append(speed | pace)
        self.progress(state.global_step, state.max_steps, **numbers, **pace)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def write(self, out: Path) -> None:
        for name, rows in (("history.jsonl", self.history), ("speed.jsonl", self.speed)):
            (out / name).write_text(
                "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows),
                encoding="utf-8",
            )


def common_arguments(out: Path, *, seed: int, dtype: str, checkpointing: bool = False) -> dict[str, Any]:
    """transformers' training arguments that all training stages share.

    `checkpointing`: gradient checkpointing (see checkpoints in models/model_size.py).
    """
    return {
        "output_dir": str(out / "trainer"),
        "seed": seed,
        "data_seed": seed,
        "bf16": dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": checkpointing,
        # The reentrant kind loses gradients behind frozen embeddings.
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


def on_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """The arguments, limited to one GPU per process.

    Otherwise transformers' DataParallel would use all visible GPUs, and a batch would grow by their number.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def method_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments of the trainers that use a reference in their loss."""
    return {**training_arguments(job), "precompute_ref_log_probs": True}


def training_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments of all trainers over preference rows, from the method's settings."""
    method = job.settings.method
    share = share_of(method, job.devices)
    return {
        **common_arguments(
            job.out,
            seed=job.settings.seed,
            dtype=job.settings.dtype,
            checkpointing=checkpoints(job.settings.gradient_checkpointing, job.model.num_parameters()),
        ),
        "learning_rate": method.learning_rate,
        "num_train_epochs": method.num_train_epochs,
        "per_device_train_batch_size": share.batch_size,
        "gradient_accumulation_steps": share.accumulation,
        # With fewer rows than the others, a device would wait for ever.
        "dataloader_drop_last": job.devices > 1,
        "optim": method.optimizer,
        "lr_scheduler_type": method.lr_scheduler_type,
        "warmup_steps": min(method.warmup_ratio, ALL_STEPS),  # A share of all steps.
        "weight_decay": method.weight_decay,
        "max_grad_norm": method.max_grad_norm,
        "max_length": job.settings.max_length,
        # With an adapter, own_dropout_off did it.
        "disable_dropout": getattr(job.settings, "adapter", None) is None,
        "remove_unused_columns": False,  # Keep the column of row numbers.
    }


class Prepared:
    """Mixin for TRL's preference trainers: rows come tokenised, with reference log-probs, in our order.

    Batches are made by a row's `length`. A row's `example` names its preference row and the completions that
    the loss uses. `visited` counts the rows of each step.
    """

    visited: VisitedRows

    @classmethod
    def over(cls, rows: Sequence[dict[str, Any]], job: TrainingJob, arguments: Any) -> Self:
        """A trainer of these rows. Raises ValueError if several devices have fewer rows than one batch."""
        check_rows(len(rows), job.settings.method, job.devices)
        trained = [
            (parameter, parameter.data) for parameter in job.model.parameters() if parameter.requires_grad
        ]
        trainer = cls(  # type: ignore[call-arg]
            model=job.model,
            args=on_one_gpu(arguments),
            train_dataset=Dataset.from_list(
                [
                    {k: v for k, v in row.items() if k not in ("length", "example")} | {"row": i}
                    for i, row in enumerate(rows)
                ]
            ),
            processing_class=job.tokenizer,
            callbacks=[job.callback],
        )
        for parameter, data in trained:
            # TRL rounds a QLoRA adapter to bfloat16, which loses small steps.
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        method = job.settings.method
        trainer.order = LengthBatches([row["length"] for row in rows], method.batch_size, job.settings.seed)  # type: ignore[attr-defined]
        trainer.visited = VisitedRows([row["example"] for row in rows])
        collate = trainer.data_collator  # type: ignore[attr-defined]
        trainer.data_collator = lambda rows: {  # type: ignore[attr-defined]
            **collate(rows),
            "row": torch.tensor([row["row"] for row in rows]),
        }
        return trainer

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> torch.Tensor:
        rows = self.accelerator.gather(inputs.pop("row")).tolist()  # type: ignore[attr-defined]
        state = self.state  # type: ignore[attr-defined]
        self.visited.visit(rows, step=state.global_step, epoch=int(state.epoch))
        return super().training_step(model, inputs, *args, **named)  # type: ignore[misc]

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        ours = self.model  # type: ignore[attr-defined]
        if not is_adapted(ours):
            super()._load_from_checkpoint(checkpoint, model)  # type: ignore[misc]
            return
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        # transformers' own method expects PEFT's model class.
        set_peft_model_state_dict(ours, load_file(Path(checkpoint) / "adapter_model.safetensors"))

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBatches:
        return self.order  # type: ignore[attr-defined]


@contextlib.contextmanager
def outputs_of(module: torch.nn.Module) -> Iterator[list[Any]]:
    """Collect the outputs of a module's forward passes inside the `with` block, in order."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def share_right(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Per pair: 1 if the chosen reward is larger, 0.5 if both are equal, else 0."""
    return (torch.sign(chosen - rejected) + 1) / 2


class TiesHalf(Prepared):
    """Mixin for TRL's DPOTrainer: a tie counts one half in rewards/accuracies. TRL counts it as wrong."""

    def own_loss(self, model: Any, inputs: dict[str, Any], pairs: losses.PairLogps) -> torch.Tensor | None:
        """The batch's loss, a scalar; None to use TRL's."""
        return None

    def _compute_loss(self, model, inputs, return_outputs):  # type: ignore[no-untyped-def]
        with outputs_of(model) as model_outputs:
            result = super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
        # The first forward pass is the policy's: the reference's log-probabilities are cached, and passes of
        # `own_loss` come later.
        outputs = model_outputs[0]
        references = {name: inputs[name] for name in ("ref_chosen_logps", "ref_rejected_logps")}
        pairs = losses.pair_logps(outputs.log_probs, inputs["completion_mask"], **references)
        loss = self.own_loss(model, inputs, pairs)
        chosen_rewards = (pairs.policy_chosen_logps - pairs.ref_chosen_logps).detach()
        rejected_rewards = (pairs.policy_rejected_logps - pairs.ref_rejected_logps).detach()
        right = share_right(chosen_rewards, rejected_rewards)
        self._metrics["train"]["rewards/accuracies"][-1] = self.accelerator.gather(right).mean().item()  # type: ignore[attr-defined]
        if loss is None:
            return result
        if self.aux_loss_enabled:  # type: ignore[attr-defined]
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss  # type: ignore[attr-defined]
        return (loss, result[1]) if return_outputs else loss


def paired_trainer(job: TrainingJob, **loss: Any) -> Trainer:
    """TRL's DPOTrainer over pairs; `loss`: keyword arguments of DPOConfig that choose TRL's loss."""
    from trl import DPOConfig, DPOTrainer

    class PairedTrainer(TiesHalf, DPOTrainer):
        pass

    rows = paired_rows(job)
    return PairedTrainer.over(
        rows, job, DPOConfig(**method_arguments(job), beta=reward_scale(job.settings.method), **loss)
    )


def own_loss_trainer(
    job: TrainingJob,
    loss: Callable[[losses.PairLogps], torch.Tensor],
    learns_from: Sequence[str] = ("chosen", "rejected"),
) -> Trainer:
    """TRL's DPOTrainer over pairs with our `loss`; its mean is minimised.

    `learns_from`: the completions that the loss reads. Forward pass, batches and metrics are TRL's: rewards/*
    are reward_scale times log π/π_ref (summed), whatever the loss is.
    """
    from trl import DPOConfig, DPOTrainer

    class OwnLossTrainer(TiesHalf, DPOTrainer):
        def own_loss(self, model: Any, inputs: dict[str, Any], pairs: losses.PairLogps) -> torch.Tensor:
            return loss(pairs).mean()

    rows = paired_rows(job, learns_from)
    return OwnLossTrainer.over(
        rows, job, DPOConfig(**method_arguments(job), beta=reward_scale(job.settings.method))
    )


def paired_rows(
    job: TrainingJob, learns_from: Sequence[str] = ("chosen", "rejected")
) -> list[dict[str, Any]]:
    """Rows for TRL's DPOTrainer, one per pair. Raises ValueError for unpaired data."""
    rows = []
    for row, ids in zip(
        job.rows, all_preference_ids(job.tokenizer, job.rows, job.settings.max_length), strict=True
    ):
        if not isinstance(row, Pair):
            name = job.settings.method.name
            rows_too = ", ".join(name for name, kind in METHODS.items() if kind.feedback == "rows")
            raise ValueError(
                f"{name} learns from pairs, but the data are unpaired. Use paired data, or method={rows_too}."
            )
        rows.append(
            {
                "prompt_ids": ids["chosen"].prompt,
                "chosen_ids": ids["chosen"].completion,
                "rejected_ids": ids["rejected"].completion,
                "ref_chosen_logps": job.reference[f"train/{row.id}/chosen"].logps,
                "ref_rejected_logps": job.reference[f"train/{row.id}/rejected"].logps,
                "length": max(len(ids[side].whole) for side in ("chosen", "rejected")),
                "example": TrainerRow(row, {side: ids[side] for side in learns_from}),
            }
        )
    return rows


def unpaired_rows(job: TrainingJob) -> list[dict[str, Any]]:
    """Rows for TRL's KTOTrainer. A pair gives two: chosen as desirable, rejected as undesirable."""
    rows: list[dict[str, Any]] = []
    for row, ids in zip(
        job.rows, all_preference_ids(job.tokenizer, job.rows, job.settings.max_length), strict=True
    ):
        if isinstance(row, Pair):
            parts = [("chosen", "mismatched_chosen", True), ("rejected", "mismatched_rejected", False)]
        else:
            parts = [("completion", "mismatched", row.label)]
        rows += [
            {
                "prompt_ids": ids[column].prompt,
                "completion_ids": ids[column].completion,
                "KL_completion_ids": ids[mismatched].completion,
                "label": label,
                "ref_logps": job.reference[f"train/{row.id}/{column}"].logps,
                "ref_KL_logps": job.reference[f"train/{row.id}/{mismatched}"].logps,
                "length": len(ids[column].whole),
                "example": TrainerRow(row, {column: ids[column]}),
            }
            for column, mismatched, label in parts
        ]
    return rows


def training_facts(trainer: Trainer, job: TrainingJob) -> TrainFacts:
    """Facts of a finished training: its rows, counted by `Prepared`, and its trainer's arguments."""
    arguments, template = trainer.args, job.tokenizer.chat_template
    return TrainFacts(
        **trainer.visited.facts(),  # type: ignore[attr-defined]
        template=digest(template) if template else "none",
        optimizer=OptimizerNames(arguments.optim).value,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        schedule=SchedulerType(arguments.lr_scheduler_type).value,
        warmup=job.settings.method.warmup_ratio,
        learning_rate=arguments.learning_rate,
        max_length=job.settings.max_length,
        dtype=job.settings.dtype,
    )


def fingerprint(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor] | None = None
) -> dict[str, tuple[float, float]]:
    """Sum and sum of absolute values of each tensor, by name.

    Two fingerprints show whether weights changed, without a copy of them. `weights`: taken instead of the
    model's, where it is sharded.
    """
    return {
        name: (value.sum(dtype=torch.float64).item(), value.abs().sum(dtype=torch.float64).item())
        for name, value in (model.state_dict() if weights is None else weights).items()
    }


def check_weights(
    model: PreTrainedModel,
    before: dict[str, tuple[float, float]],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Raises FloatingPointError for weights that are not finite, and RuntimeError if no weight has changed.

    `before`: fingerprint at the start. `weights`: taken instead of the model's, where it is sharded.
    """
    check_finite(model.state_dict() if weights is None else weights)
    after = fingerprint(model, weights)
    # One of two tied weights may be missing.
    if all(before.get(name) == numbers for name, numbers in after.items()):
        raise RuntimeError(
            "the training changed no weight. Either the learning rate is too small for this precision, or no step ran, or all steps "
            "were warm-up. Raise the learning rate, use more rows, or set this training's warmup_ratio=0."
        )
