"""Methods, one file each: the chain of stages (light, for planning) and the trainer (torch, for running)."""

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
    """The interface of a method's module."""

    @staticmethod
    def chain(cell: Cell, ground: Ground) -> Policy:
        """Returns the judged policy with the stages that make it. It reads settings alone."""

    @staticmethod
    def make_trainer(job: TrainingJob) -> Trainer:
        """Returns a trainer over prepared rows with cached reference log-probs.

        An iterative method has none: its rounds run other methods' trainings.
        """


def load(name: str) -> Method:
    return import_module(f"bench.methods.{name}")  # type: ignore[return-value]


def chain(cell: Cell, ground: Ground) -> Policy:
    return load(cell.method.name).chain(cell, ground)


def one_shot(cell: Cell, ground: Ground) -> Policy:
    """Returns the policy of one train stage.

    The stage starts from the start model, reads the preference rows, and takes the start model as its
    reference.
    """
    assert not isinstance(cell.method, NoMethod | Written | BestOfN | Loop)
    settings = pieces.train_settings(cell, cell.method)
    inputs = {"model": ground.start, "preferences": ground.preferences, "reference_logps": ground.reference}
    trained = stage("train", settings, inputs, cell.method.name)
    return Policy(trained, trained)


def own_loss(name: str, *settings: str, **options: Any) -> Callable[[TrainingJob], Trainer]:
    """Returns `make_trainer` for a method with a loss of ours.

    `name` is the function in training/losses.py. It is called with the method's `settings`.
    `options` go to own_loss_trainer.
    """

    def make_trainer(job: TrainingJob) -> Trainer:
        from bench.training import losses
        from bench.training.trainers import own_loss_trainer

        chosen = {setting: getattr(job.settings.method, setting) for setting in settings}
        return own_loss_trainer(job, lambda pairs: getattr(losses, name)(pairs, **chosen), **options)

    return make_trainer


def trl_loss(name: str, *settings: str) -> Callable[[TrainingJob], Trainer]:
    """Returns `make_trainer` for a loss that TRL's DPOTrainer has under `name`.

    The loss is called with the method's `settings`.
    """

    def make_trainer(job: TrainingJob) -> Trainer:
        from bench.training.trainers import paired_trainer

        return paired_trainer(
            job, loss_type=name, **{setting: getattr(job.settings.method, setting) for setting in settings}
        )

    return make_trainer
