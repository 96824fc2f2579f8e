"""One point of the grid, and the combinations that are impossible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bench.config.adapters import Adapter, NoAdapter
from bench.config.base import AsList, Count, Misfit, Name, Positive, Seed, Settings, Unkeyed, misfit
from bench.config.data import DatasetData, LocalData, Sft, WorldData
from bench.config.forgetting import Forgetting
from bench.config.judges import AnyJudge
from bench.config.methods import AnyMethod, SelfRewarding, Spin, Written, is_loop, method_facts
from bench.config.world import LocalModel, NoModel, World, WorldModel


class Transformers(Settings):
    name: Literal["transformers"]
    batch_size: Count  # may change a number (padding), so it is keyed


class Serving(Settings):
    """How vLLM is run; what changes no number reaches no key."""

    python: Annotated[str | None, Unkeyed()]  # of an environment that has vLLM; None: this one
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), Unkeyed()]
    tensor_parallel_size: Annotated[Count, Unkeyed()]  # GPUs that one policy is spread over
    max_model_len: Annotated[Count | None, Unkeyed()]  # tokens of prompt and completion; None: what the model takes
    arguments: dict[str, Any]  # further ones of vllm.LLM, such as quantization

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Vllm(Serving):
    name: Literal["vllm"]
    batch_size: Count  # of what transformers does beside it: log-probs of training data, and rewards
    logps: Literal["transformers", "vllm"]  # who scores evaluation completions


# One point of the grid -----------------------------------------------------------------------------------------------


class Cell(Settings):
    model: WorldModel | LocalModel | NoModel = Field(discriminator="kind")
    method: AnyMethod = Field(discriminator="name")
    data: WorldData | LocalData | DatasetData = Field(discriminator="kind")
    world: World | None
    judge: AnyJudge = Field(discriminator="name")
    engine: Transformers | Vllm = Field(discriminator="name")
    seed: Seed
    adapter: NoAdapter | Adapter = Field(default=NoAdapter(), discriminator="name")
    sft: Sft | None = None  # what makes the start model of the model's folder; None: the folder is the start model
    forgetting: Forgetting | None = None  # what is asked beside the judge

    @model_validator(mode="after")
    def _fits_together(self) -> Cell:
        if found := misfits(self.model_dump()):
            raise misfit(*found)
        return self


def misfits(cell: Mapping[str, Any]) -> list[Misfit]:
    """Combinations of a cell's sections that are impossible; the sections may have faults of their own."""
    model, method, data, judge = ({} if not isinstance(cell[key], Mapping) else cell[key] for key in ("model", "method", "data", "judge"))
    in_world = data.get("kind") == "world"
    facts = method_facts(method)
    found: list[Misfit] = []
    if in_world and cell["world"] is None:
        found.append(("world", "data of the controlled world need the world section that data=world brings, got null"))
    if model.get("kind") == "world" and not in_world:
        text = f"model={model.get('name')} knows only the controlled world's words and needs its data, got data={data.get('name')}"
        found.append(("model", f"{text}; take model=local model.path=DIR"))
    members = judge.get("judges") if isinstance(judge.get("judges"), Mapping) else {}
    gold = {label: member for label, member in members.items() if isinstance(member, Mapping) and member.get("name") == "gold"}
    for label, member in gold.items():
        if not in_world or judge.get("items") is not None:
            text = f"the gold judge knows the truth of the controlled world's own prompts only; leave {label} out of this jury"
            found.append((f"judge.judges.{label}", text))
        elif (member.get("split"), _opponent(member)) != ("evaluation", "reference"):
            text = "in a jury the gold judge compares with the reference writer on evaluation prompts, as the others do"
            found.append((f"judge.judges.{label}", text))
    if judge.get("name") == "gold" and not in_world:
        text = f"judge=gold knows the truth of the controlled world only and needs its data, got data={data.get('name')}"
        found.append(("judge", f"{text}; take judge=none"))
    if model.get("kind") == "none" and facts is not Written:
        found.append(("model", f"method={method.get('name')} needs a model, got none; a file of completions is judged by completions=FILE"))
    if model.get("kind") != "none" and facts is Written:
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
    if data.get("form") == "unpaired" and facts.needs_pairs():
        text = f"method={method['name']} learns from pairs, got unpaired rows; take method=kto, csft or offline_ppo, or paired data"
        found.append(("data.form", text))
    if data.get("fraction") == 0 and facts.needs_labels and method.get("seed_training", ...) is not None:
        way_out = "; set method.seed_training=null" if "seed_training" in method else ""
        found.append(("data.fraction", f"method={method.get('name')} learns from labelled rows, got data.fraction=0{way_out}"))
    if method.get("judging_reference") == "base" and model.get("kind") == "local" and model.get("base") is None and not cell.get("sft"):
        text = "method.judging_reference=base holds a policy against the model that the start model was tuned from: set model.base=DIR"
        found.append(("method.judging_reference", text))
    if method.get("judging_reference") == "base" and model.get("start") == "base":
        text = "method.judging_reference=base needs a start model that was tuned from the base model, got model.start=base"
        found.append(("method.judging_reference", text))
    if facts is SelfRewarding:
        found += _self_rewarding_misfits(method, data, in_world)
    elif is_loop(method) and not in_world and method.get("prompts") is None and (facts.demonstrates or data.get("kind") != "dataset"):
        what = "demonstrations" if facts.demonstrates else "new prompts"
        text = f"method={method['name']} needs {what} beside data={data.get('name')}: set method.prompts=FILE"
        found.append(("method.prompts", text))
    if in_world and facts is not SelfRewarding and method.get("prompts") is not None:
        text = f"prompts of a file go with data=local, got data={data.get('name')}, which has its own: leave out method.prompts"
        found.append(("method.prompts", text))
    if method.get("labeller") == "gold" and not in_world and facts is not SelfRewarding:
        text = f"labeller=gold knows the truth of the controlled world only, got data={data.get('name')}; take another method.labeller"
        found.append(("method.labeller", text))
    if cell.get("sft") is not None and model.get("kind") != "local":
        text = f"sft={_name(cell['sft'])} makes a start model of a base model's folder, got model={model.get('name')}"
        found.append(("sft", f"{text}; take model=DIR or sft=none"))
    for key, section in (("data", data), ("sft", cell.get("sft")), ("model", model)):
        if isinstance(section, Mapping) and "hub" in section and section.get("hub") is None and section.get("path") is None:
            text = f"{key}.path must be set where {key}.hub is not: name a folder or file of yours, or what the hub has as {key}.hub"
            found.append((f"{key}.path", text))
    if facts is Spin and in_world:
        iteration, n, there = method.get("iteration"), method.get("n_prompts"), data.get("n_demonstrations")
        if isinstance(iteration, int) and isinstance(n, int) and isinstance(there, int) and (needed := (iteration + 1) * n) > there:
            text = f"iterations 0 to {iteration} of {n} prompts each need {needed} demonstrations, got data.n_demonstrations={there}"
            found.append(("method.n_prompts", text))
    if cell.get("forgetting") is not None and facts.control is not None:
        text = f"method={method['name']} is asked with a control token after every prompt, which lm_eval does not write"
        found.append(("forgetting", f"{text}; leave it out of the sweep or take forgetting=none"))
    adapter = cell.get("adapter")
    if isinstance(adapter, Mapping) and adapter.get("name") != "none" and facts.whole is not None:
        text = f"method={method['name']} trains {facts.whole}, got adapter={adapter.get('name')}; take adapter=none"
        found.append(("adapter", text))
    engine, adapter = (cell[key] if isinstance(cell.get(key), Mapping) else {} for key in ("engine", "adapter"))
    if engine.get("name") == "vllm" and adapter.get("name") == "qlora":
        text = "engine=vllm reads the base whole, and adapter=qlora was trained beside one of four bits; take engine=transformers"
        found.append(("engine", text))
    if engine.get("logps") == "vllm" and adapter.get("name") == "lora":
        found.append(("engine.logps", "vLLM does not score prompts under an adapter; take engine.logps=transformers"))
    if facts.chooses:
        text = f"method={method['name']} chooses among samples, which are all the same at temperature 0; set it above 0"
        asked = {"": judge, "preference.": judge.get("preference"), "rating.": judge.get("rating")}
        decodings = {place: manner.get("decoding") for place, manner in asked.items() if isinstance(manner, Mapping)}
        found += [
            (f"judge.{place}decoding.temperature", text)
            for place, decoding in decodings.items()
            if isinstance(decoding, Mapping) and decoding.get("temperature") == 0
        ]
    return found


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, Mapping) else section


def _self_rewarding_misfits(method: Mapping[str, Any], data: Mapping[str, Any], in_world: bool) -> list[Misfit]:
    found: list[Misfit] = []
    if method.get("prompts") is not None:
        text = "self_rewarding has its own prompts, or writes them (method.new_prompts): leave out method.prompts"
        found.append(("method.prompts", text))
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
    brings: dict[Literal["model", "data"], str]  # choices of other groups, where none are made; the door reads it
