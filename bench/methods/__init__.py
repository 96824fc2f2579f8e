"""Methods: a file each, with its chain of stages (light, for planning) and its trainer (torch, when a stage runs)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

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


NAMES = (
    "none",
    "sft_chosen",
    "dpo",
    "cdpo",
    "robust",
    "ipo",
    "ipo_summed",
    "hinge",
    "slic",
    "simpo",
    "orpo",
    "cpo",
    "kto",
    "kto_pair",
    "best_of_n",
    "csft",
    "offline_ppo",
    "iterative_dpo",
    "spa",
    "spin",
    "self_rewarding",
)


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
