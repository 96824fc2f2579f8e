"""Best of n samples of the start model, by a Bradley-Terry reward model.

Papers: Ouyang et al. 2022 (arXiv 2203.02155, eq. 1) for the reward model; Rafailov et al. 2023
(arXiv 2305.18290, section 6) for best of n as a baseline. TRL's RewardTrainer trains the reward model.

-log σ(R(x, y_w) - R(x, y_l)),  mean over pairs
y = argmax R(x, y_i) over y_1 ... y_n ~ π_start(.|x);  of equal rewards the first sample

R is the start model with a new linear head. The head is seeded and has the model's own initial spread. R is
read at the last token of prompt and completion. Rows are cut where every method's training cuts them. One
reward model serves every n.

No policy is trained. The result is an upper baseline: it shows what the pairs are worth to a policy that may
try n times, and it costs n completions a prompt. Turns are chosen one by one: a later turn is sampled after
the chosen earlier completions. The first sample is the one that the start model writes alone. A smaller n
chooses among the first samples of a larger n; in later turns this holds only while the same completions were
chosen before.

Deviations:
- InstructGPT ranks K completions of a prompt and takes all C(K, 2) pairs as one element of a batch. Shuffled
  as separate pairs, each completion would be seen K-1 times an epoch, and the reward model would overfit
  within one epoch. Here a pair is a row, so that every method sees the same rows. The controlled world has
  one pair a prompt. With a file of several pairs a prompt, keep to one epoch and read reward_accuracy, which
  is measured on held-out prompts.
- InstructGPT also shifts R so that demonstrations have mean 0. This changes no choice.
- If a tokenizer pads with its EOS, R is read at the token before EOS, in training and in choosing alike.

KL to the start model is not measured, because choosing has no log-probabilities. It is at most
log n - (n-1)/n nats (Beirami et al. 2024, arXiv 2401.01879).

rewards/accuracies: share of pairs with R(y_w) > R(y_l); a tie counts a half.
rewards/margins: R(y_w) - R(y_l), mean over pairs.
min_reward, mean_reward, max_reward: over the completions of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.config import BestOfN, Cell, RewardModel, Training
from bench.models.tokenize import all_preference_ids
from bench.planning import pieces
from bench.planning.inputs import Ground, Policy
from bench.records import Pair
from bench.store.stage_settings import RewardModelSettings, stage
from bench.training.training_record import TrainerRow

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.training.trainers import TrainingJob


def chain(cell: Cell, ground: Ground) -> Policy:
    assert isinstance(cell.method, BestOfN)
    method = RewardModel(**cell.method.model_dump(include=set(Training.model_fields)))
    settings = RewardModelSettings(method=method, **pieces.training_settings(cell))
    reward_model = stage(
        "train", settings, {"model": ground.start, "preferences": ground.preferences}, "reward model"
    )
    return Policy(ground.start, reward_model, reward_model=reward_model, best_of=cell.method.n)


def _rows(job: TrainingJob) -> list[dict[str, Any]]:
    """Rows for TRL's RewardTrainer. Raises ValueError for unpaired data."""
    rows = []
    ids_of = all_preference_ids(job.tokenizer, job.rows, job.settings.max_length)
    for row, ids in zip(job.rows, ids_of, strict=True):
        if not isinstance(row, Pair):
            raise ValueError(
                "The data are unpaired, and the reward model of method=best_of_n needs pairs. Use paired data, or method=kto."
            )
        whole = {f"{side}_ids": ids[side].whole for side in ("chosen", "rejected")}
        example = TrainerRow(row, {side: ids[side] for side in ("chosen", "rejected")})
        rows.append({**whole, "length": max(map(len, whole.values())), "example": example})
    return rows


def make_trainer(job: TrainingJob) -> Trainer:
    from trl import RewardConfig, RewardTrainer

    from bench.training.trainers import Prepared, outputs_of, share_right, training_arguments

    class BradleyTerryTrainer(Prepared, RewardTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            with outputs_of(model) as outputs:
                result = super().compute_loss(model, inputs, *args, **named)
            # TRL counts a tie as wrong.
            right = share_right(*outputs[0].logits.detach().squeeze(-1).chunk(2))
            self._metrics["train"]["accuracy"][-1] = self.accelerator.gather(right).mean().item()
            return result

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            metrics = self._metrics["train"]
            for trl_name, name in (("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
                if trl_name in metrics:
                    metrics[name] = metrics.pop(trl_name)
            super().log(logs, start_time)

    return BradleyTerryTrainer.over(_rows(job), job, RewardConfig(**training_arguments(job)))
