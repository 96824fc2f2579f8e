"""Methods: a file each, with its chain of stages (light, for planning) and its trainer (torch, when a stage runs)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from bench.config import BestOfN, Cell, Loop, NoMethod, Written
from bench.planning import pieces
from bench.planning.inputs import Ground, Policy
from bench.store.stage_settings import stage

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.training.trainers import TrainingJob


class Method(Protocol):
    """What a method's module holds."""

    @staticmethod
    def chain(cell: Cell, ground: Ground) -> Policy:
        """What is judged and how it comes to be, from settings alone."""

    @staticmethod
    def make_trainer(job: TrainingJob) -> Trainer:
        """A trainer over prepared rows with cached reference log-probs. A loop whose trainings are other methods' has none."""


def load(name: str) -> Method:
    return import_module(f"bench.methods.{name}")  # type: ignore[return-value]


def chain(cell: Cell, ground: Ground) -> Policy:
    return load(cell.method.name).chain(cell, ground)


def one_shot(cell: Cell, ground: Ground) -> Policy:
    """One train stage from the start model, on the preference rows, against the start model's log-probs."""
    assert not isinstance(cell.method, NoMethod | Written | BestOfN | Loop)
    settings = pieces.train_settings(cell, cell.method)
    inputs = {"model": ground.start, "preferences": ground.preferences, "reference_logps": ground.reference}
    trained = stage("train", settings, inputs, cell.method.name)
    return Policy(trained, trained)


def own_loss(name: str, *settings: str, **options: Any) -> Callable[[TrainingJob], Trainer]:
    """The `make_trainer` of a method whose loss is the function of that name in training/losses.py, called with the method's `settings`;
    `options`: of own_loss_trainer."""

    def make_trainer(job: TrainingJob) -> Trainer:
        from bench.training import losses
        from bench.training.trainers import own_loss_trainer

        chosen = {setting: getattr(job.settings.method, setting) for setting in settings}
        return own_loss_trainer(job, lambda pairs: getattr(losses, name)(pairs, **chosen), **options)

    return make_trainer


def trl_loss(name: str, *settings: str) -> Callable[[TrainingJob], Trainer]:
    """The `make_trainer` of a method whose loss TRL's DPOTrainer has under that name, with the method's `settings`."""

    def make_trainer(job: TrainingJob) -> Trainer:
        from bench.training.trainers import paired_trainer

        return paired_trainer(job, loss_type=name, **{setting: getattr(job.settings.method, setting) for setting in settings})

    return make_trainer
