"""Best of n samples of the start model by a Bradley-Terry reward model (Ouyang et al. 2022, arXiv 2203.02155, eq. 1; best of n as the
baseline of Rafailov et al. 2023, arXiv 2305.18290, section 6). The reward model is trained by TRL's RewardTrainer.

-log σ(R(x, y_w) - R(x, y_l)),  mean over pairs;  y = argmax R(x, y_i) over y_1 ... y_n ~ π_start(.|x), the first of equals

R is the start model with a new linear head (seeded; the model's own initial spread), read at the last token of prompt and completion, cut
where every method's training cuts. No policy is trained: this is what the pairs are worth to a policy that may try n times, an upper
baseline that costs n completions a prompt. Turns are chosen one by one: a later turn is asked after the chosen earlier answer. The first
sample is what the start model writes alone, and a smaller n chooses among the first samples of a larger one; in later turns only as long
as the same answers were chosen before. One reward model serves every n.

Deviations. InstructGPT ranks K completions of a prompt and takes all C(K, 2) pairs as one element of a batch, for each completion is in
K-1 pairs: shuffled as pairs of their own, they are seen K-1 times an epoch and the reward model overfits within one. Here a pair is a row,
so that every method sees the same rows; the controlled world has one pair a prompt. With a file of several pairs a prompt keep to one epoch
and read reward_accuracy, which is of held-out prompts. InstructGPT also shifts R so that demonstrations have mean 0, which changes no
choice. A tokenizer that pads with its EOS makes R be read at the token before EOS, in training and in choosing alike.

KL to the start model is not measured (choosing has no log-probabilities); at most log n - (n-1)/n nats (Beirami et al. 2024,
arXiv 2401.01879).

rewards/accuracies: share of pairs with R(y_w) > R(y_l), a tie a half; rewards/margins: R(y_w) - R(y_l), mean over pairs; min_reward,
mean_reward, max_reward: of a batch's completions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.config import BestOfN, Cell, RewardModel, Training
from bench.models.tokenize import preference_ids
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
    reward_model = stage("train", settings, {"model": ground.start, "preferences": ground.preferences}, "reward model")
    return Policy(ground.start, reward_model, reward_model=reward_model, best_of=cell.method.n)


def _rows(job: TrainingJob) -> list[dict[str, Any]]:
    """Rows of TRL's RewardTrainer. Raises ValueError for unpaired data."""
    rows = []
    for row in job.rows:
        if not isinstance(row, Pair):
            raise ValueError("a reward model learns from pairs and the data are unpaired: bring pairs, or take method=kto")
        ids = preference_ids(job.tokenizer, row, job.settings.max_length)
        whole = {f"{side}_ids": ids[side].whole for side in ("chosen", "rejected")}
        example = TrainerRow(row, {side: ids[side] for side in ("chosen", "rejected")})
        rows.append({**whole, "length": max(map(len, whole.values())), "example": example})
    return rows


def make_trainer(job: TrainingJob) -> Trainer:
    from trl import RewardConfig, RewardTrainer

    from bench.training.trainers import Prepared, outputs_of, share_right, training_arguments

    class BradleyTerryTrainer(Prepared, RewardTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            with outputs_of(model) as seen:
                result = super().compute_loss(model, inputs, *args, **named)
            right = share_right(*seen[0].logits.detach().squeeze(-1).chunk(2))  # TRL counts a tie as wrong
            self._metrics["train"]["accuracy"][-1] = self.accelerator.gather(right).mean().item()
            return result

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            found = self._metrics["train"]
            for name, usual in (("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
                if name in found:
                    found[usual] = found.pop(name)
            super().log(logs, start_time)

    return BradleyTerryTrainer.over(_rows(job), job, RewardConfig(**training_arguments(job)))
