"""One point of the grid, and the combinations that are impossible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bench.config.base import AsList, Count, Misfit, Name, Positive, Seed, Settings, misfit
from bench.config.data import LocalData, WorldData
from bench.config.judges import AlpacaEvalJudge, GoldJudge, MtBenchJudge, NoJudge, RewardModelJudge
from bench.config.methods import LOOPS, NEEDS_PAIRS, BestOfN, IterativeDpo, NoMethod, SelfRewarding, Spa, Spin, Trained, Written
from bench.config.world import LocalModel, NoModel, World, WorldModel


class Engine(Settings):
    name: Literal["transformers"]
    batch_size: Count  # may change a number (padding), so it is keyed


# One point of the grid -----------------------------------------------------------------------------------------------


class Cell(Settings):
    model: WorldModel | LocalModel | NoModel = Field(discriminator="kind")
    method: NoMethod | Written | Trained | BestOfN | IterativeDpo | Spa | Spin | SelfRewarding = Field(discriminator="name")
    data: WorldData | LocalData = Field(discriminator="kind")
    world: World | None
    judge: GoldJudge | NoJudge | AlpacaEvalJudge | MtBenchJudge | RewardModelJudge = Field(discriminator="name")
    engine: Engine
    seed: Seed

    @model_validator(mode="after")
    def _fits_together(self) -> Cell:
        if found := misfits(self.model_dump()):
            raise misfit(*found)
        return self


def misfits(cell: Mapping[str, Any]) -> list[Misfit]:
    """Combinations of a cell's sections that are impossible; the sections may have faults of their own."""
    model, method, data, judge = ({} if not isinstance(cell[key], Mapping) else cell[key] for key in ("model", "method", "data", "judge"))
    in_world = data.get("kind") == "world"
    found: list[Misfit] = []
    if in_world and cell["world"] is None:
        found.append(("world", "data of the controlled world need the world section that data=world brings, got null"))
    if model.get("kind") == "world" and not in_world:
        text = f"model={model.get('name')} knows only the controlled world's words and needs its data, got data={data.get('name')}"
        found.append(("model", f"{text}; take model=local model.path=DIR"))
    if judge.get("name") == "gold" and not in_world:
        text = f"judge=gold knows the truth of the controlled world only and needs its data, got data={data.get('name')}"
        found.append(("judge", f"{text}; take judge=none"))
    if model.get("kind") == "none" and method.get("name") != "completions":
        found.append(("model", f"method={method.get('name')} needs a model, got none; a file of completions is judged by completions=FILE"))
    if model.get("kind") != "none" and method.get("name") == "completions":
        found.append(("model", f"completions of a file have no model, got model={model.get('name')}; take model=none"))
    if in_world and data.get("completions_by") == "sft" and _opponent(judge) == "chosen":
        text = "chosen completions are one opponent for all models only where data.completions_by=writer, got sft"
        found.append(("judge.preference.opponent", text))
    thinned = [key for key in ("desirable_fraction", "undesirable_fraction") if data.get(key, 1) != 1]
    if thinned and data.get("form") == "paired":
        text = f"data.{thinned[0]} drops rows of one label, and a pair has both: take unpaired data (data.form=unpaired)"
        found.append((f"data.{thinned[0]}", text))
    if judge.get("items", "") is None and not in_world:
        text = f"judge={judge.get('name')} asks the controlled world's prompts unless it is given some, got data={data.get('name')}"
        found.append(("judge.items", f"{text}; set judge.items=FILE"))
    if judge.get("items", "") is None and judge.get("n_items", 1) is None:
        found.append(("judge.n_items", "judge.n_items must be set where judge.items is not: the controlled world has no end of prompts"))
    if data.get("form") == "unpaired" and method.get("name") in NEEDS_PAIRS:
        text = f"method={method['name']} learns from pairs, got unpaired rows; take method=kto, csft or offline_ppo, or paired data"
        found.append(("data.form", text))
    if method.get("name") == "self_rewarding":
        found += _self_rewarding_misfits(method, data, in_world)
    elif method.get("name") in LOOPS and not in_world:
        text = f"method={method['name']} asks the controlled world for new prompts and needs its data, got data={data.get('name')}"
        found.append(("data", f"{text}; take method=dpo"))
    if method.get("name") == "spin" and in_world:
        iteration, n, there = method.get("iteration"), method.get("n_prompts"), data.get("n_demonstrations")
        if isinstance(iteration, int) and isinstance(n, int) and isinstance(there, int) and (needed := (iteration + 1) * n) > there:
            text = f"iterations 0 to {iteration} of {n} prompts each need {needed} demonstrations, got data.n_demonstrations={there}"
            found.append(("method.n_prompts", text))
    if method.get("name") == "best_of_n":
        text = "method=best_of_n chooses among samples, which are all the same at temperature 0; set it above 0"
        asked = {"": judge, "preference.": judge.get("preference"), "rating.": judge.get("rating")}
        decodings = {place: manner.get("decoding") for place, manner in asked.items() if isinstance(manner, Mapping)}
        found += [
            (f"judge.{place}decoding.temperature", text)
            for place, decoding in decodings.items()
            if isinstance(decoding, Mapping) and decoding.get("temperature") == 0
        ]
    return found


def _self_rewarding_misfits(method: Mapping[str, Any], data: Mapping[str, Any], in_world: bool) -> list[Misfit]:
    found: list[Misfit] = []
    if in_world and method.get("new_prompts") == "self_instruct":
        text = "the world's tiny models cannot write prompts, and its truth knows only its own: take method.new_prompts=family"
        found.append(("method.new_prompts", text))
    if not in_world and method.get("new_prompts") == "family":
        text = f"new prompts of the family are the controlled world's, got data={data.get('name')}; take method.new_prompts=self_instruct"
        found.append(("method.new_prompts", text))
    if not in_world and method.get("labeller", "self") != "self":
        text = f"method.labeller={method['labeller']} labels in the controlled world only, got data={data.get('name')}"
        found.append(("method.labeller", f"{text}; take method.labeller=self"))
    return found


def _opponent(judge: Mapping[str, Any]) -> Any:
    preference = judge.get("preference")
    return preference.get("opponent") if isinstance(preference, Mapping) else None


class Scale(Settings):
    """What a scale preset hands to the other sections, which read it by interpolation: `${scale.batch_size}`."""

    learning_rate: dict[str, Positive]  # by method
    num_train_epochs: Positive
    batch_size: Count
    gradient_accumulation_steps: Count
    optimizer: str
    lr_scheduler_type: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: Positive
    generation_batch_size: Count
    n_prompts: Count  # of the world's training data
    n_new_prompts: Count  # of a loop's iteration
    max_new_tokens: Count  # of a sample, or of a judgement that a policy writes
    judge_prompt: str  # in which a policy of this scale can judge by writing
    n_items: Count  # that are judged
    models: Annotated[tuple[Name, ...], AsList]  # axis of the sweeps over sizes
    seeds: Annotated[tuple[Seed, ...], AsList]  # axis of the sweeps that compare methods
